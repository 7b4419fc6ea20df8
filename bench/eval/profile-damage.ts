/**
 * What the answers of a model lose when one KV head sees less: it alone streams, or chooses so many pages, while every other head sees everything. A head
 * that copies does damage so, and so does one that looks everywhere at once; attention on what is copied shows the first kind only. The model reads
 * each question and its own dense reply, and what it expects next is compared with dense (DuoAttention learns its gates by such a distance; here each
 * head is asked for itself).
 */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { divergenceOf, logSoftmax } from "../distribution.ts";
import { REPLY_TOKENS_MAX, splitDocument } from "../recall/ask.ts";
import type { RecallDocument } from "../recall/cases.ts";
import type { HeadOption } from "./allot.ts";
import { meanOf } from "./statistics.ts";
import type { EvalSubject } from "./subject.ts";

/** A document and the text that its questions are about. */
export interface Passage {
  document: RecallDocument;
  passage: string;
}

/** What was measured of every KV head, layer by layer. */
export interface HeadDamage {
  /** Per head, one option for each share that was asked for; damage is the mean KL(dense, selection) of the next token, in nats. */
  heads: HeadOption[][];
  /** What the same steps read densely. */
  denseBytes: number;
}

/**
 * Of each KV head alone: what each of `shares` of a budget (as in `head-budgets`) damages and reads, over the rows that make the replies to the
 * documents' questions (of conversations the first).
 * @throws {QuireError} `invalid_request` for a selection in which heads cannot differ.
 * @throws {DOMException} `AbortError` when the signal fires.
 */
export async function measureHeads(
  subject: EvalSubject,
  passages: readonly Passage[],
  options: {
    selection: SelectionConfiguration;
    budgetTokens: number;
    shares: readonly number[];
    signal: AbortSignal;
    /** Called behind every document. */
    onDocument?: () => void;
  },
): Promise<HeadDamage> {
  const { shares, signal, onDocument } = options;
  const { layerCount, kvHeadCount } = subject.runner.config;
  const headCount = layerCount * kvHeadCount;
  const plans = Array.from({ length: headCount }, (_, head) =>
    shares.map((share) => oneHeadPlan(options, { head, headCount, share })),
  ).flat();
  const read: Reading[] = plans.map(() => ({ divergences: [], bytes: 0 }));
  let denseBytes = 0;
  for (const passage of passages) {
    denseBytes += await readDocument(subject, passage, { plans, read, signal });
    onDocument?.();
  }
  const others = (denseBytes * (headCount - 1)) / headCount;
  const optionsOf = (head: number): HeadOption[] =>
    shares.map((share, index) => {
      const { divergences, bytes } = read[head * shares.length + index] as Reading;
      return { share, damage: meanOf(divergences), bytes: bytes - others };
    });
  return { heads: Array.from({ length: headCount }, (_, head) => optionsOf(head)), denseBytes };
}

/** One head may choose its share, the others see everything. */
function oneHeadPlan(
  { selection, budgetTokens }: { selection: SelectionConfiguration; budgetTokens: number },
  { head, headCount, share }: { head: number; headCount: number; share: number },
): SelectionPlan {
  // Through the grammar first: it says which selections heads may differ in.
  const plan = policyNamed(`${selection}+head-budgets(${share})`).plan(budgetTokens);
  const shares = Array.from({ length: headCount }, (_, other) => (other === head ? share : Number.POSITIVE_INFINITY));
  return plan.kind === "pages" ? { ...plan, headShares: shares } : plan;
}

/** What came of one plan. */
interface Reading {
  /** One per question. */
  divergences: number[];
  bytes: number;
}

/** Adds what each plan makes of the questions; returns the bytes that dense reads. */
async function readDocument(
  subject: EvalSubject,
  { document, passage }: Passage,
  { plans, read, signal }: { plans: readonly SelectionPlan[]; read: readonly Reading[]; signal: AbortSignal },
): Promise<number> {
  const { sequence, runner } = subject;
  const { kept, rests } = splitDocument(subject, document, passage);
  sequence.rewind(0);
  await sequence.read(kept, signal);
  const dense = { kind: "dense" } as const;
  let denseBytes = 0;
  for (const rest of rests) {
    sequence.rewind(kept.length);
    const endIds = runner.config.eosTokenIds;
    const reply = await sequence.answer(rest, { plan: dense, tokensMax: REPLY_TOKENS_MAX, endIds, signal });
    const readUnder = async (plan: SelectionPlan): Promise<{ rows: Float64Array[]; bytes: number }> => {
      sequence.rewind(kept.length);
      const rows = await readReply(subject, { rest, reply, plan, signal });
      return { rows, bytes: sequence.traffic.kvBytes + sequence.traffic.metadataBytes };
    };
    const theirs = await readUnder(dense);
    denseBytes += theirs.bytes;
    for (const [index, plan] of plans.entries()) {
      const ours = await readUnder(plan);
      const reading = read[index] as Reading;
      reading.bytes += ours.bytes;
      reading.divergences.push(meanOf(ours.rows.map((row, at) => divergenceOf(theirs.rows[at] as Float64Array, row))));
    }
  }
  return denseBytes;
}

/** Log probabilities of what comes next, in the rows that make `reply`, all of it read under `plan`. */
async function readReply(
  { sequence, capture }: EvalSubject,
  options: { rest: readonly number[]; reply: readonly number[]; plan: SelectionPlan; signal: AbortSignal },
): Promise<Float64Array[]> {
  const { rest, reply, plan, signal } = options;
  await sequence.answer(rest, { plan, tokensMax: 1, endIds: [], signal });
  const rows = [logSoftmax(capture.logits)];
  for (const id of reply.slice(0, -1)) {
    await sequence.advance(id, plan);
    rows.push(logSoftmax(capture.logits));
  }
  return rows;
}
