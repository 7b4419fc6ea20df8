/** The prompts that the router is trained and judged on: the case files' questions, two kinds more, each at a length of its own. */
import { createHash } from "node:crypto";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { type CaseFile, passageOf, type RecallCase, readCases, userMessage } from "../recall/cases.ts";
import { rephrased, type Split } from "./phrasings.ts";

/** Lengths of the prompts in tokens, replies included; a prompt has one of them. */
export const PROMPT_LENGTHS = [512, 1024, 2048, 4096, 8192] as const;

/** The files whose cases are asked; what differs in phrasings and names from all others is test only. */
export const CASE_FILES = [
  { name: "eval", path: "weights/house/eval-cases.jsonl.gz", isTestOnly: false },
  { name: "fresh", path: "weights/house/eval-cases-fresh.jsonl.gz", isTestOnly: true },
] as const;

/** Cases of one kind and file, of 200: the first are trained on, the next choose the threshold, the others are the test. */
const TRAIN_CASES = 110;
const VALIDATION_CASES = 40;
/** Of the fresh file's cases, whose kinds are few, so that no kind outweighs the others. */
const FRESH_CASES = 60;

/** A prompt by a name that says how to build it again: `file/kind/index@length`. */
export interface RouterPrompt {
  id: string;
  split: Split;
  lengthTokens: number;
  file: (typeof CASE_FILES)[number]["name"];
  /** As it is asked. */
  question: RecallCase;
  /** As the file has it. */
  original: RecallCase;
}

/** Everything that prompts of a file are made with. */
export type CaseFiles = Readonly<Record<RouterPrompt["file"], CaseFile>>;

/** Case files of the repository. @throws {UsageError} where one is missing. */
export async function readCaseFiles(): Promise<CaseFiles> {
  const files = await Promise.all(CASE_FILES.map(async ({ name, path }) => [name, await readCases(path)] as const));
  return Object.fromEntries(files) as unknown as CaseFiles;
}

/** All prompts, in an order that is random and always the same: any first part of it holds all kinds, lengths and splits. */
export function routerPrompts(files: CaseFiles): RouterPrompt[] {
  const prompts = CASE_FILES.flatMap(({ name, isTestOnly }) => {
    const cases = withMoreKinds(files[name].cases);
    const kinds = [...new Set(cases.map(({ kind }) => kind))];
    return kinds.flatMap((kind) => {
      const some = cases.filter((each) => each.kind === kind).slice(0, isTestOnly ? FRESH_CASES : undefined);
      return some.map((question, index) => promptOf(name, question, { index, isTestOnly }));
    });
  });
  const askOf = ({ question }: RouterPrompt): string => question.turns.at(-1)?.ask ?? "";
  const held = new Set(prompts.filter((prompt) => prompt.split === "test").map(askOf));
  const judged = prompts.filter((prompt) => {
    // Cases of this kind are all asked in one way, the plainest there is, which is trained on.
    if (prompt.split === "test") return prompt.question.kind !== "code";
    // Small talk without names may happen to be the test's.
    return prompt.question.kind === "continuation" || !held.has(askOf(prompt));
  });
  const order = new Map(judged.map(({ id }) => [id, createHash("sha256").update(id).digest("hex")]));
  const place = ({ id }: RouterPrompt): string => order.get(id) as string;
  return judged.sort((a, b) => (place(a) < place(b) ? -1 : 1));
}

/** The conversation as a client sends it before the reply that counts; earlier replies are those the model is trained to give. */
export function messagesOf(question: RecallCase, passage: string): ChatMessage[] {
  return question.turns.flatMap((turn, index): ChatMessage[] => {
    const user = userMessage(question, index, passage);
    return index === question.turns.length - 1 ? [user] : [user, { role: "assistant", content: turn.answer }];
  });
}

/** Cuts passages for prompts; sentences are counted once. */
export function passageMaker(files: CaseFiles, count: (text: string) => number): (prompt: RouterPrompt) => string {
  const sentenceTokens = new Map<string, number[]>();
  return ({ file, question, lengthTokens }) => {
    const { sentences } = files[file];
    const counted = sentenceTokens.get(file) ?? sentences.map(count);
    sentenceTokens.set(file, counted);
    return passageOf(question, sentences, { tokens: lengthTokens, sentenceTokens: counted, count });
  };
}

function promptOf(
  file: RouterPrompt["file"],
  question: RecallCase,
  { index, isTestOnly }: { index: number; isTestOnly: boolean },
): RouterPrompt {
  const lengthTokens = PROMPT_LENGTHS[index % PROMPT_LENGTHS.length] as number;
  const split = isTestOnly || index >= TRAIN_CASES + VALIDATION_CASES ? "test" : splitOf(index);
  return {
    id: `${file}/${question.kind}/${index}@${lengthTokens}`,
    split,
    lengthTokens,
    file,
    // Not the index itself: it would give every length the same words.
    question: rephrased(question, split, Math.floor(index / PROMPT_LENGTHS.length) + index),
    original: question,
  };
}

function splitOf(index: number): Split {
  return index < TRAIN_CASES ? "train" : "validation";
}

/** And: small talk behind a question that was answered, and a passage with nothing asked. */
function withMoreKinds(cases: readonly RecallCase[]): RecallCase[] {
  const talk = cases
    .filter(({ kind }) => kind === "second-turn")
    .map((each) => ({ ...each, kind: "talk", turns: each.turns.slice(0, 2) }));
  const continuation = cases
    .filter(({ kind }) => kind === "single")
    .map((each) => ({ ...each, kind: "continuation", items: [], turns: [{ ask: "", answer: "", expect: [] }] }));
  return [...cases, ...talk, ...continuation];
}
