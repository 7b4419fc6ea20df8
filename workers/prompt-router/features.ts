/**
 * What the prompt router sees of a prompt: numbers, computed from the text alone. Lengths, the words of what is asked (hashed), and where in
 * the rest of the text the things asked about stand. A pure function, so that the classifier is trained on exactly what the Worker computes.
 */
import type { ChatMessage } from "../../tokenizer/contract.ts";

/** Numbers that are not hashed words; their order is {@link plainFeatures}'s. */
export const PLAIN_FEATURE_COUNT = 32;
/** Buckets of hashed words. */
const WORD_BUCKET_COUNT = 160;
/** Length of {@link promptFeatures}'s answer. */
export const FEATURE_COUNT = PLAIN_FEATURE_COUNT + WORD_BUCKET_COUNT;

/** Of longer texts only so much of the end is looked at, and of what is asked so much: time does not grow with the prompt. */
const TEXT_CHARS_MAX = 131_072;
const ASKED_CHARS_MAX = 400;
const ASKED_WORDS_MAX = 24;
/** Words that are in every text and say nothing about what is asked. */
const COMMON = new Set(
  "the a an of is was what which and or to in for from it its that this does do did has have had me you tell can all with by on at as be are i".split(
    " ",
  ),
);

/** Features `[FEATURE_COUNT]`, all finite, for any messages, none included. Nothing is kept. */
export function promptFeatures(messages: readonly ChatMessage[]): Float32Array {
  const features = new Float32Array(FEATURE_COUNT);
  const charCount = messages.reduce((sum, { content }) => sum + content.length, 0);
  const last = messages.at(-1)?.content ?? "";
  const { final, before } = askedOf(last);
  const text = textBefore(messages, final.length + before.length);
  const asked = lookUp(text, `${before} ${final}`);
  features.set(plainFeatures({ messages, charCount, last, text, final, asked }));
  for (const word of wordsOf(final)) {
    const bucket = PLAIN_FEATURE_COUNT + (hashOf(word) % WORD_BUCKET_COUNT);
    features[bucket] = 1;
  }
  return features;
}

/** How many characters the messages had that features were made of. */
export function charsOf(features: Float32Array): number {
  return 2 ** (features[0] ?? 0) - 1;
}

/** The last sentence of a text and the one in front of it: a question often has its subject there. */
function askedOf(last: string): { final: string; before: string } {
  const end = last.slice(-ASKED_CHARS_MAX).trimEnd();
  const sentences = end.split(/(?<=[.?!:]["']?)\s+/);
  return { final: sentences.at(-1) ?? "", before: sentences.at(-2) ?? "" };
}

/** Everything in front of what is asked, from the end, as far as is looked. */
function textBefore(messages: readonly ChatMessage[], askedChars: number): string {
  const parts: string[] = [];
  let room = TEXT_CHARS_MAX;
  for (let index = messages.length - 1; index >= 0 && room > 0; index--) {
    const content = messages[index]?.content ?? "";
    const end = index === messages.length - 1 ? Math.max(0, content.length - askedChars) : content.length;
    const part = content.slice(Math.max(0, end - room), end);
    parts.push(part);
    room -= part.length + 1;
  }
  return parts.reverse().join("\n");
}

/** Where the words that are asked about stand in the text. */
interface Asked {
  nameCount: number;
  /** Occurrences of names: the fewest, the most; 0 where no name is asked about. */
  nameHitsMin: number;
  nameHitsMax: number;
  /** Occurrences of other words that are not common ones. */
  wordHitsMin: number;
  wordHitsMax: number;
  /** Characters from the end and from the beginning to the nearest of the rarest word's occurrences. */
  charsFromEnd: number;
  charsFromStart: number;
  /** Characters between the first and the last place of the rarest word. */
  spreadChars: number;
  /** Capitalised words that are as long as a name asked about and differ from it in one or two letters. */
  lookAlikes: number;
  /** Of all words asked about, those that stand nowhere before. */
  unknownShare: number;
}

function lookUp(text: string, asked: string): Asked {
  const words = [...asked.matchAll(/[\p{L}\p{N}]+/gu)].map(([word]) => word).slice(-ASKED_WORDS_MAX);
  const subjects = [...new Set(words.slice(1))].filter((word) => word.length > 2 && !COMMON.has(word.toLowerCase()));
  const found = subjects.map((word) => ({ word, isName: /^\p{Lu}/u.test(word), ...placesOf(text, word) }));
  const names = found.filter(({ isName }) => isName);
  const others = found.filter(({ isName }) => !isName);
  const present = found
    .filter(({ count }) => count > 0)
    .sort((a, b) => a.count - b.count || b.word.length - a.word.length);
  // What is rare is what the question turns on.
  const rarest = present.find(({ isName }) => isName) ?? present[0];
  return {
    nameCount: names.length,
    nameHitsMin: leastOf(names),
    nameHitsMax: mostOf(names),
    wordHitsMin: leastOf(others),
    wordHitsMax: mostOf(others),
    charsFromEnd: rarest === undefined ? text.length : text.length - rarest.last,
    charsFromStart: rarest?.first ?? text.length,
    spreadChars: rarest === undefined ? 0 : rarest.last - rarest.first,
    lookAlikes: lookAlikesOf(
      text,
      names.map(({ word }) => word),
    ),
    unknownShare: found.length === 0 ? 0 : 1 - present.length / found.length,
  };
}

const HITS_MAX = 64;

function placesOf(text: string, word: string): { count: number; first: number; last: number } {
  const first = text.indexOf(word);
  let [count, last] = [0, first];
  for (let at = first; at >= 0 && count < HITS_MAX; at = text.indexOf(word, at + word.length)) {
    count += 1;
    last = at;
  }
  return { count, first, last };
}

function leastOf(found: readonly { count: number }[]): number {
  return found.length === 0 ? 0 : Math.min(...found.map(({ count }) => count));
}

function mostOf(found: readonly { count: number }[]): number {
  return Math.max(0, ...found.map(({ count }) => count));
}

const CAPITALISED_MAX = 8192;

function lookAlikesOf(text: string, names: readonly string[]): number {
  const name = names.at(-1);
  if (name === undefined) return 0;
  const alike = new Set<string>();
  let seen = 0;
  for (const [word] of text.matchAll(/\p{Lu}\p{Ll}+/gu)) {
    if (++seen > CAPITALISED_MAX) break;
    if (word.length !== name.length || word === name || alike.has(word)) continue;
    if (lettersApart(word, name) <= 2) alike.add(word);
  }
  return alike.size;
}

function lettersApart(a: string, b: string): number {
  let apart = 0;
  for (let index = 0; index < a.length; index++) apart += Number(a.charCodeAt(index) !== b.charCodeAt(index));
  return apart;
}

interface Parts {
  messages: readonly ChatMessage[];
  charCount: number;
  last: string;
  text: string;
  final: string;
  asked: Asked;
}

/** All lengths and counts as `log2(1 + count)`: a prompt of any size stays within a few tens. */
function plainFeatures({ messages, charCount, last, text, final, asked }: Parts): number[] {
  const log = (count: number): number => Math.log2(1 + count);
  const has = (pattern: RegExp): number => Number(pattern.test(final));
  const numbers = countOf(text, /\p{N}{2,}/gu);
  return [
    log(charCount),
    log(last.length),
    log(final.length),
    log(messages.length),
    log(asked.nameCount),
    log(asked.nameHitsMin),
    log(asked.nameHitsMax),
    Number(asked.nameCount > 0 && asked.nameHitsMin === 0),
    log(asked.wordHitsMin),
    log(asked.wordHitsMax),
    log(asked.charsFromEnd),
    log(asked.charsFromStart),
    log(asked.spreadChars),
    log(asked.lookAlikes),
    asked.unknownShare,
    log(numbers),
    log(countOf(text, /\|/g)),
    log(countOf(text, /\n/g)),
    has(/\?["']?$/),
    has(/[.!]["']?$/),
    has(/:/),
    has(/\p{N}/u),
    has(/["'“”]/),
    has(/^(?:what|which|who|where|when|how|why|do|does|did|can|could|is|are)\b/i),
    has(/^(?:tell|give|find|name|list|read|quote|say|state|go|look|show)\b/i),
    Number(last.length < 200 && messages.length > 1),
    log(charCount / 1024) ** 2 / 8,
    log(final.split(/\s+/).length),
    // A sentence of the text is repeated: what stands behind it is wanted.
    Number(final.length >= QUOTED_CHARS_MIN && text.includes(final.replace(/["']$/, ""))),
    Number(asked.nameCount === 0),
    Number(asked.nameHitsMax === 1),
    Number(asked.nameHitsMax > 1 && asked.nameHitsMax < 5),
  ];
}

const COUNT_MAX = 4096;
const QUOTED_CHARS_MIN = 8;

function countOf(text: string, pattern: RegExp): number {
  let count = 0;
  for (const _ of text.matchAll(pattern)) if (++count >= COUNT_MAX) break;
  return count;
}

/** Words and pairs of them, in lower case; names and numbers are what they are, not which. */
function wordsOf(sentence: string): string[] {
  const words = [...sentence.matchAll(/[\p{L}\p{N}]+/gu)].map(([word], index) => {
    if (/^\p{N}/u.test(word)) return "<number>";
    return index > 0 && /^\p{Lu}/u.test(word) ? "<name>" : word.toLowerCase();
  });
  const few = words.slice(0, ASKED_WORDS_MAX);
  return [...few, ...few.slice(1).map((word, index) => `${few[index]} ${word}`)];
}

/** FNV-1a over UTF-16 units, unsigned. */
function hashOf(word: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < word.length; index++) hash = Math.imul(hash ^ word.charCodeAt(index), 0x01000193);
  return hash >>> 0;
}
