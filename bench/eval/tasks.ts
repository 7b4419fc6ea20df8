/** Questions about documents, answered under every selection from the same dense KV of the document. */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { askDocument, type Reply } from "../recall/ask.ts";
import { casesOf, passageOf, type RecallCase, type RecallDocument } from "../recall/cases.ts";
import type { TurnPlan } from "../recall/sequence.ts";
import type { Candidate } from "./grid.ts";
import type { EvalSubject } from "./subject.ts";

/** One question at one length. */
export interface TaskResult {
  kind: string;
  lengthTokens: number;
  /** Questions about one document are not independent. */
  document: string;
  /** Where in the passage the answer stands, 0 to 1; absent where it is not in one place. */
  depth?: number;
  denseRight: boolean;
  /** Share of such questions that a toss of coins would answer. */
  chance: number;
  /** Of the steps that read the question and answered, densely. */
  denseBytes: number;
  replies: { name: string; budgetTokens: number; isRight: boolean; bytes: number }[];
}

/** Asks the questions of a document under every candidate, and densely. */
export async function measureDocument(
  subject: EvalSubject,
  options: {
    document: RecallDocument;
    /** What it is called among all. */
    id: string;
    passage: string;
    lengthTokens: number;
    candidates: readonly (Candidate & { plan: SelectionPlan })[];
    signal: AbortSignal;
  },
): Promise<TaskResult[]> {
  const { document, id, passage, lengthTokens, candidates: selections, signal } = options;
  const plans: TurnPlan[] = [{ plan: { kind: "dense" } }, ...selections];
  const answers = await askDocument(subject, { document, passage, plans, signal });
  const bytes = ({ traffic }: Reply): number => traffic.kvBytes + traffic.metadataBytes;
  return casesOf(document).map((question, at) => {
    const [dense, ...replies] = answers[at] as [Reply, ...Reply[]];
    const depth = depthOf(question);
    return {
      kind: question.kind,
      lengthTokens,
      document: id,
      ...(depth === undefined ? {} : { depth }),
      denseRight: dense.isRight,
      chance: chanceOf(question),
      denseBytes: bytes(dense),
      replies: replies.map((reply, place) => {
        const { name, budgetTokens } = selections[place] as Candidate;
        return { name, budgetTokens, isRight: reply.isRight, bytes: bytes(reply) };
      }),
    };
  });
}

/** Passages of documents or cases, so long that the longest conversation about one has `lengthTokens`. */
export function passagesOf(
  { tokenizer }: Pick<EvalSubject, "tokenizer">,
  asked: readonly (RecallDocument | RecallCase)[],
  {
    sentences,
    sentenceTokens,
    lengthTokens,
  }: { sentences: readonly string[]; sentenceTokens: readonly number[]; lengthTokens: number },
): string[] {
  const count = (text: string): number => tokenizer.encode(text).length;
  return asked.map((each) => passageOf(each, sentences, { tokens: lengthTokens, sentenceTokens, count }));
}

/** A reply to `absent` says that it is not there, or something else; other free text is never right by chance. */
function chanceOf({ kind, turns }: RecallCase): number {
  const { choices } = turns.at(-1) ?? {};
  if (choices !== undefined) return 1 / choices.length;
  return kind === "absent" ? 0.5 : 0;
}

function depthOf({ items, turns }: RecallCase): number | undefined {
  const expect = turns.at(-1)?.expect ?? [];
  const holding = items.filter(({ text }) => expect.length > 0 && expect.every((wanted) => text.includes(wanted)));
  return holding.length === 1 ? holding[0]?.at : undefined;
}
