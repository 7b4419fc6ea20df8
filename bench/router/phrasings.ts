/**
 * Questions of evaluation cases in other words, so that the router is trained on phrasings that its test does not hold. Test prompts keep the
 * phrasings of the case files, none of which stands here. `{a}`, `{n}`, `{s}`: attribute, name, sentence.
 */
import type { CaseTurn, RecallCase } from "../recall/cases.ts";

/** Which prompts a part of the router's life may see. */
export type Split = "train" | "validation" | "test";

/** Phrasings of one sort of question; the model was asked in the first two lists, `unasked` only vary what is trained on. */
type Phrases = Readonly<Record<Exclude<Split, "test"> | "unasked", readonly string[]>>;

const LOOKUPS: Phrases = {
  train: [
    "What is the {a} of {n}?",
    "Which {a} has {n}?",
    "Tell me the {a} of {n}.",
    "Look up the {a} that {n} has.",
    "I want the {a} for {n}.",
    "State {n}'s {a}.",
    "Find the {a} of {n} in the text above.",
    "Somewhere the {a} of {n} is given. What is it?",
  ],
  validation: [
    "Please say what the {a} of {n} is.",
    "Do you know the {a} of {n}?",
    "Which {a} does {n} have?",
    "Where the text speaks of {n}, what {a} does it name?",
  ],
  unasked: [
    "What does the text say the {a} of {n} is?",
    "{n} has which {a}?",
    "What {a} was {n} given?",
    "Give me the {a} of {n}, please.",
    "I am looking for the {a} of {n}.",
    "Could you find {n}'s {a}?",
    "Answer in one word: the {a} of {n}.",
    "So what is {n}'s {a}, then?",
    "Name the {a} of {n}.",
    "As to {n}: what {a} was mentioned?",
    "{n} was mentioned with a {a}. What was it?",
    "What is the {a} that goes with {n}?",
    "Is there a {a} for {n}? Say it.",
    "Repeat the {a} of {n}.",
  ],
};

const TABLES: Phrases = {
  train: [
    "What {a} does the table give for {n}?",
    "In the table, which {a} stands beside {n}?",
    "Read the row of {n}: what is the {a}?",
    "Find {n} in the table. What is the {a}?",
  ],
  validation: ["Which {a} has {n} in the table?", "What is the {a} in the row of {n}?"],
  unasked: [
    "Use the table: {n} has what {a}?",
    "What stands in the table beside {n}?",
    "See the table. Which {a} belongs to {n}?",
    "Look at the table and give the {a} of {n}.",
    "The table lists {n}. With which {a}?",
    "Which {a} is in the line of {n} in that table?",
  ],
};

const SEVERAL: Phrases = {
  train: [
    "What are the {a}s of {n}?",
    "Name all {a}s of {n}.",
    "List the {a}s that {n} has.",
    "Which {a}s has {n}? Name all.",
  ],
  validation: ["Tell me all the {a}s of {n}.", "How many {a}s has {n}, and which?"],
  unasked: [
    "Which are the {a}s of {n}?",
    "Say every {a} of {n}.",
    "Write down all the {a}s for {n}.",
    "{n} has several {a}s. What are they?",
    "What {a}s are there for {n}?",
    "Collect each {a} that {n} has.",
    "I need all of {n}'s {a}s.",
  ],
};

const VARIABLES: Phrases = {
  train: [
    "What is the value of the variable {n}?",
    "Which value has the variable {n}?",
    "Follow the variable {n}. What is its value?",
    "Work out the variable {n}.",
  ],
  validation: ["What does {n} stand for, as a variable?", "Give the value of variable {n}."],
  unasked: [
    "What number is in the variable {n}?",
    "Resolve the variable {n}.",
    "The variable {n}: what is it in the end?",
    "Which number does the variable {n} come to?",
    "Tell me what the variable {n} equals.",
    "Find the value behind the variable {n}.",
    "Evaluate the variable {n}.",
  ],
};

const QUOTES: Phrases = {
  train: [
    "What comes after this sentence: {s}",
    "Which sentence follows this one: {s}",
    "Go on from here as the text does: {s}",
    "Quote what stands behind: {s}",
  ],
  validation: ["What is the next sentence after: {s}", "Say how the text continues: {s}"],
  unasked: [
    "The sentence behind this one, please: {s}",
    "Continue the text after: {s}",
    "How does the text go on after this: {s}",
    "What did the text say right after: {s}",
    "Give the sentence that follows: {s}",
    "Look up this sentence and repeat the one behind it: {s}",
    "What stands after these words: {s}",
  ],
};

const TALK: Phrases = {
  train: ["Thank you.", "Good.", "I see.", "That is all for now.", "Well done.", "Are you still there?"],
  validation: ["Thanks a lot.", "Fine, then.", "Understood."],
  unasked: [
    "Okay.",
    "Nice.",
    "That will do.",
    "Great, thank you.",
    "Interesting.",
    "Let us continue.",
    "Wait a moment.",
    "Very well.",
    "Can we proceed?",
    "Ready for more?",
    "You are right.",
    "Now something else.",
  ],
};

const BY_KIND: Readonly<Record<string, Phrases>> = {
  table: TABLES,
  "multi-value": SEVERAL,
  variable: VARIABLES,
  quote: QUOTES,
};

/** The case with its questions in words of `split`, the `seed`-th of them; a test case stays as it is. Nothing is changed in place. */
export function rephrased(question: RecallCase, split: Split, seed: number): RecallCase {
  if (split === "test") return question;
  return withWords(question, (phrases, index) => {
    const list = phrases[split];
    return list[(seed + index) % list.length] as string;
  });
}

/** The case in all words that may be trained on, the model having been asked in one of them: what is asked is the same. */
export function trainVariants(question: RecallCase): RecallCase[] {
  const listOf = ({ train, unasked }: Phrases): readonly string[] => [...train, ...unasked];
  const count = Math.max(...[LOOKUPS, ...Object.values(BY_KIND)].map((phrases) => listOf(phrases).length));
  return Array.from({ length: question.kind === "continuation" ? 1 : count }, (_, variant) =>
    withWords(question, (phrases, index) => {
      const list = listOf(phrases);
      return list[(variant + index) % list.length] as string;
    }),
  );
}

function withWords(question: RecallCase, draw: (phrases: Phrases, turn: number) => string): RecallCase {
  const turns = question.turns.map((turn, index) =>
    rephrasedTurn(question.kind, turn, (phrases) => draw(phrases, index)),
  );
  return { ...question, turns };
}

function rephrasedTurn(kind: string, turn: CaseTurn, draw: (phrases: Phrases) => string): CaseTurn {
  const ask = (phrases: Phrases, words: Readonly<Record<string, string>>): CaseTurn => ({
    ...turn,
    ask: draw(phrases).replaceAll(/\{(\w)\}/g, (_, key: string) => words[key] ?? ""),
  });
  if (kind === "continuation") return turn;
  if (kind === "quote") return ask(QUOTES, { s: turn.ask.slice(turn.ask.indexOf(":") + 1).trim() });
  const about = /^The (\S+) (?:of )?(\S+)/.exec(turn.answer);
  // What a second turn has between two questions is talk.
  if (about === null) return ask(TALK, {});
  const [, attribute = "", name = ""] = about;
  const isSeveral = kind === "multi-value";
  return ask(BY_KIND[kind] ?? LOOKUPS, { a: isSeveral ? attribute.replace(/s$/, "") : attribute, n: name });
}
