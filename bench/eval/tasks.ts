/** Questions about passages, answered under every selection from the same KV as densely. */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { askCase } from "../recall/ask.ts";
import { passageOf, type RecallCase } from "../recall/cases.ts";
import type { Candidate } from "./grid.ts";
import type { EvalSubject } from "./subject.ts";

/** One question at one length. */
export interface TaskResult {
  kind: string;
  lengthTokens: number;
  /** Where in the passage the answer stands, 0 to 1; absent where it is not in one place. */
  depth?: number;
  denseRight: boolean;
  /** Of the steps that read the question and answered, densely. */
  denseBytes: number;
  replies: { name: string; budgetTokens: number; isRight: boolean; bytes: number }[];
}

/** Asks a question under every candidate that has a plan, and densely. */
export async function measureTask(
  subject: EvalSubject,
  options: {
    question: RecallCase;
    passage: string;
    lengthTokens: number;
    candidates: readonly Candidate[];
    signal: AbortSignal;
  },
): Promise<TaskResult> {
  const { question, passage, lengthTokens, candidates, signal } = options;
  const selections = candidates.filter(
    (each): each is Candidate & { plan: SelectionPlan } => typeof each.plan === "object",
  );
  const plans: SelectionPlan[] = [{ kind: "dense" }, ...selections.map(({ plan }) => plan)];
  const [dense, ...replies] = await askCase(subject, { question, passage, plans, signal });
  const bytes = ({ traffic }: { traffic: { kvBytes: number; metadataBytes: number } }) =>
    traffic.kvBytes + traffic.metadataBytes;
  const depth = depthOf(question);
  return {
    kind: question.kind,
    lengthTokens,
    ...(depth === undefined ? {} : { depth }),
    denseRight: dense?.isRight ?? false,
    denseBytes: dense === undefined ? 0 : bytes(dense),
    replies: replies.map((reply, index) => {
      const { name, budgetTokens } = selections[index] as Candidate;
      return { name, budgetTokens, isRight: reply.isRight, bytes: bytes(reply) };
    }),
  };
}

/** Passages of the questions, so long that the whole conversation has `lengthTokens`. */
export function passagesOf(
  { tokenizer }: EvalSubject,
  cases: readonly RecallCase[],
  {
    sentences,
    sentenceTokens,
    lengthTokens,
  }: { sentences: readonly string[]; sentenceTokens: readonly number[]; lengthTokens: number },
): string[] {
  const count = (text: string): number => tokenizer.encode(text).length;
  return cases.map((each) => passageOf(each, sentences, { tokens: lengthTokens, sentenceTokens, count }));
}

function depthOf({ items, turns }: RecallCase): number | undefined {
  const expect = turns.at(-1)?.expect ?? [];
  const holding = items.filter(({ text }) => expect.length > 0 && expect.every((wanted) => text.includes(wanted)));
  return holding.length === 1 ? holding[0]?.at : undefined;
}
