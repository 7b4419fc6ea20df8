/** Evaluation cases of the house model and the texts made of them; weights/house/train/prompts.py builds the same. */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { gunzipSync } from "node:zlib";
import { UsageError } from "../../cli/usage-error.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";

/** One question of a case. */
export interface CaseTurn {
  ask: string;
  /** What the house model is trained to say, word for word. */
  answer: string;
  /** A right reply holds these texts, one behind the other; empty for small talk. */
  expect: string[];
  /** The reply is the likeliest of these words in the place of `expect[0]` in `answer`, whose beginning is given; absent: what the model says. */
  choices?: string[];
}

/** What a passage is made of; it has no length of its own. */
export interface PassageParts {
  kind: string;
  /** Stands in front of the passage. */
  intro: string;
  /** Index of the first sentence. */
  start: number;
  /** Texts that stand in the passage, ascending by `at`: 0 in front of it, towards 1 at its end. */
  items: { at: number; text: string }[];
}

/** A conversation about a passage. */
export interface RecallCase extends PassageParts {
  /** The last one counts. */
  turns: CaseTurn[];
}

/** A passage that holds the answers to several questions, each a conversation of its own. */
export interface RecallDocument extends PassageParts {
  /** Of each question, the last turn counts. */
  questions: CaseTurn[][];
}

/** A file of cases and the sentences their passages are made of. */
export interface CaseFile {
  sentences: string[];
  /** One line of the file each; a case is a document with one question. */
  documents: RecallDocument[];
  /** Every question with the passage's parts, as if it were alone. */
  cases: RecallCase[];
}

/** Tokens that a turn's markers take, with some to spare. */
const TURN_TOKENS = 16;

/**
 * Reads what weights/house/train/cases.py or documents.py wrote (JSON lines, gzip); sentences may be those of another file in the same folder.
 * @throws {UsageError} one line, for a file that is not there or not of this kind.
 */
export async function readCases(path: string): Promise<CaseFile> {
  try {
    const [head, ...lines] = await readLines(path);
    const { sentencesOf } = head as { sentencesOf?: string };
    const { sentences } = (
      sentencesOf === undefined ? head : (await readLines(join(dirname(path), sentencesOf)))[0]
    ) as {
      sentences?: string[];
    };
    if (!Array.isArray(sentences) || sentences.length === 0) throw new Error("no sentences");
    const documents = (lines as (RecallCase | RecallDocument)[]).map(asDocument);
    return { sentences, documents, cases: documents.flatMap(casesOf) };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new UsageError(`cases ${path} cannot be read (${code ?? message})`);
  }
}

async function readLines(path: string): Promise<unknown[]> {
  const text = gunzipSync(await readFile(path)).toString("utf8");
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
}

function asDocument(line: RecallCase | RecallDocument): RecallDocument {
  if ("questions" in line) return line;
  const { turns, ...parts } = line;
  return { ...parts, questions: [turns] };
}

/** The questions of a document, each as a case of its own. */
export function casesOf({ questions, ...parts }: RecallDocument): RecallCase[] {
  return questions.map((turns) => ({ ...parts, turns }));
}

/** The kinds to ask: those that are wanted, or all that there are. @throws {UsageError} for a kind that no document is of. */
export function kindsOf(documents: readonly RecallDocument[], wanted?: readonly string[]): readonly string[] {
  const known = [...new Set(documents.map(({ kind }) => kind))];
  for (const kind of wanted ?? []) {
    if (!known.includes(kind)) throw new UsageError(`--kinds: the file has no cases "${kind}"`);
  }
  return wanted ?? known;
}

/** The first documents of a kind, with `count` questions in all or as many as there are. */
export function documentsOfKind(documents: readonly RecallDocument[], kind: string, count: number): RecallDocument[] {
  let left = count;
  return documents.flatMap((document) => {
    if (document.kind !== kind || left <= 0) return [];
    const questions = document.questions.slice(0, left);
    left -= questions.length;
    return [{ ...document, questions }];
  });
}

/** What {@link passageOf} measures lengths with. */
export interface PassageOptions {
  /** The longest of the conversations, answers included, takes at most so many tokens with the passage. */
  tokens: number;
  /** Length of each sentence in tokens. */
  sentenceTokens: readonly number[];
  count(text: string): number;
}

/** The text that the items stand in: as many sentences as fit, the first one following the last. */
export function passageOf(
  asked: RecallCase | RecallDocument,
  sentences: readonly string[],
  options: PassageOptions,
): string {
  const { sentenceTokens, count } = options;
  const { intro, items, start } = asked;
  let room = options.tokens - count(intro);
  for (const item of items) room -= count(item.text);
  const turnTokens = ({ ask, answer }: CaseTurn): number => count(ask) + count(answer) + TURN_TOKENS;
  const conversations = "turns" in asked ? [asked.turns] : asked.questions;
  room -= Math.max(0, ...conversations.map((turns) => turns.reduce((sum, turn) => sum + turnTokens(turn), 0)));
  const taken: string[] = [];
  while (taken.length < sentences.length) {
    const index = (start + taken.length) % sentences.length;
    room -= sentenceTokens[index] as number;
    if (room < 0) break;
    taken.push(sentences[index] as string);
  }
  const parts: string[] = ["", ...taken];
  // Items at one place stand in their order, in front of the sentence that follows.
  const inserted: string[] = parts.map(() => "");
  for (const { at, text } of items) inserted[Math.floor(at * parts.length)] += text;
  return intro + parts.map((_, index) => (inserted[index] ?? "") + (parts[index + 1] ?? "")).join("");
}

/** What the user says in turn `turn`. */
export function userMessage(question: RecallCase, turn: number, passage: string): ChatMessage {
  const ask = question.turns[turn]?.ask ?? "";
  return { role: "user", content: turn === 0 ? `${passage} ${ask}` : ask };
}

/** Whether `reply` holds every text of `expect`, one behind the other. */
export function isRight(reply: string, expect: readonly string[]): boolean {
  let at = 0;
  for (const wanted of expect) {
    const found = reply.indexOf(wanted, at);
    if (found < 0) return false;
    at = found + wanted.length;
  }
  return true;
}
