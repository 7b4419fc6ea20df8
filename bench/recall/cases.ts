/** Evaluation cases of the house model and the texts made of them; weights/house/train/prompts.py builds the same. */
import { readFile } from "node:fs/promises";
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
}

/** A conversation about a passage; it has no length of its own. */
export interface RecallCase {
  kind: string;
  /** Stands in front of the passage. */
  intro: string;
  /** Index of the first sentence. */
  start: number;
  /** Texts that stand in the passage, ascending by `at`: 0 in front of it, towards 1 at its end. */
  items: { at: number; text: string }[];
  /** The last one counts. */
  turns: CaseTurn[];
}

/** A file of cases and the sentences their passages are made of. */
export interface CaseFile {
  sentences: string[];
  cases: RecallCase[];
}

/** Tokens that a turn's markers take, with some to spare. */
const TURN_TOKENS = 16;

/**
 * Reads what weights/house/train/cases.py wrote (JSON lines, gzip).
 * @throws {UsageError} one line, for a file that is not there or not of this kind.
 */
export async function readCases(path: string): Promise<CaseFile> {
  try {
    const lines = gunzipSync(await readFile(path))
      .toString("utf8")
      .trimEnd()
      .split("\n");
    const [head, ...cases] = lines.map((line) => JSON.parse(line));
    if (!Array.isArray(head.sentences) || head.sentences.length === 0) throw new Error("no sentences");
    return { sentences: head.sentences, cases };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new UsageError(`cases ${path} cannot be read (${code ?? message})`);
  }
}

/** What {@link passageOf} measures lengths with. */
export interface PassageOptions {
  /** The whole conversation, answers included, takes at most so many tokens. */
  tokens: number;
  /** Length of each sentence in tokens. */
  sentenceTokens: readonly number[];
  count(text: string): number;
}

/** The text that a case's items stand in: as many sentences as fit, the first one following the last. */
export function passageOf(question: RecallCase, sentences: readonly string[], options: PassageOptions): string {
  const { sentenceTokens, count } = options;
  const { intro, items, turns, start } = question;
  let room = options.tokens - count(intro);
  for (const item of items) room -= count(item.text);
  for (const turn of turns) room -= count(turn.ask) + count(turn.answer) + TURN_TOKENS;
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
