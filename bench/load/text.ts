/** Book-like text with facts in it, in the form that house-0 has learned to remember. */
import { drawInteger, drawOne, type Random } from "../random.ts";

/** " The code of Badoru is 4821. " */
export interface Fact {
  name: string;
  code: string;
}

const subjects = [
  "the captain",
  "the old woman",
  "her brother",
  "the doctor",
  "the two girls",
  "a stranger",
  "the gardener",
  "his uncle",
  "the young man",
  "nobody in the house",
  "the master of the ship",
  "the boy",
];
const verbs = [
  "walked slowly towards",
  "had always been afraid of",
  "remembered",
  "looked out at",
  "would not speak of",
  "came back from",
  "had heard a great deal about",
  "stood for a while before",
  "turned away from",
  "dreamed of",
];
const objects = [
  "the harbour",
  "the garden behind the church",
  "the long road to the north",
  "an empty room",
  "the river",
  "the letter on the table",
  "the hills",
  "that summer",
  "the market",
  "the fire",
  "a house which nobody had lived in for years",
];
const endings = [
  "in the grey light of the morning",
  "as if nothing had happened",
  "and said no more about it",
  "while the rain fell on the roof",
  "with a kind of quiet joy",
  "before the clock struck nine",
  "though it was late in the year",
  "and the others followed at a distance",
  "which surprised them all",
];
const joints = [", and then ", "; ", ", for ", ", but "];

function clause(random: Random): string {
  return `${drawOne(random, subjects)} ${drawOne(random, verbs)} ${drawOne(random, objects)} ${drawOne(random, endings)}`;
}

function sentence(random: Random): string {
  const first = clause(random);
  const rest = random() < 0.4 ? `${drawOne(random, joints)}${clause(random)}` : "";
  const close = random() < 0.15 ? ".\n\n" : ". ";
  return `${first.charAt(0).toUpperCase()}${first.slice(1)}${rest}${close}`;
}

/** Sentences, cut at exactly `charCount` characters; ASCII, so as many bytes. */
export function drawProse(random: Random, charCount: number): string {
  const parts: string[] = [];
  for (let length = 0; length < charCount; ) {
    const part = sentence(random);
    parts.push(part);
    length += part.length;
  }
  return parts.join("").slice(0, charCount);
}

/** A fact whose name is not in `taken`, and which is added to it. */
export function drawFact(random: Random, taken: Set<string>): Fact {
  for (;;) {
    const syllables = Array.from(
      { length: 3 },
      () => drawOne(random, [..."bdfgklmnprstvz"]) + drawOne(random, [..."aeiou"]),
    );
    const joined = syllables.join("");
    const name = joined.charAt(0).toUpperCase() + joined.slice(1);
    if (taken.has(name)) continue;
    taken.add(name);
    return { name, code: String(drawInteger(random, { min: 0, max: 9999 })).padStart(4, "0") };
  }
}

/** How a fact stands in a text. */
export function factText({ name, code }: Fact): string {
  return ` The code of ${name} is ${code}. `;
}

/** What is asked about a fact. */
export function questionAbout({ name }: Fact): string {
  return `What is the code of ${name}?`;
}

/** A reply is right when it holds the code; how it is worded is the model's own. */
export function isRightAnswer(reply: string, { code }: Fact): boolean {
  return reply.includes(code);
}

/** Prose of about `charCount` characters, facts included, each put between two words at a place of its own. */
export function drawPassage(random: Random, charCount: number, facts: readonly Fact[]): string {
  const factChars = facts.reduce((sum, fact) => sum + factText(fact).length, 0);
  const prose = drawProse(random, Math.max(0, charCount - factChars));
  const places = facts.map(() => prose.indexOf(" ", Math.floor(random() * prose.length)));
  const cuts = places.map((place) => (place < 0 ? prose.length : place)).sort((a, b) => a - b);
  let start = 0;
  const parts = facts.map((fact, index) => {
    const cut = cuts[index] ?? prose.length;
    const part = prose.slice(start, cut) + factText(fact);
    start = cut === prose.length ? cut : Math.max(start, cut + 1);
    return part;
  });
  return parts.join("") + prose.slice(start);
}
