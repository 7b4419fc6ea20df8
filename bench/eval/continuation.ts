/** Long generation: a text that dense attention makes, and where and how far a selection that reads along would have made another one. */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { best, divergenceOf, logSoftmax } from "../distribution.ts";
import type { Random } from "../random.ts";
import type { Sequence } from "../recall/sequence.ts";
import { type Baseline, BaselineChoices } from "./baseline-choices.ts";
import type { ProbeOptions } from "./fidelity.ts";
import type { Candidate } from "./grid.ts";
import { meanOf } from "./statistics.ts";
import { pause } from "./window.ts";

/** Continuations begin at so many places of a text at most, {@link CONTINUATION_STRIDE} tokens apart. */
export const CONTINUATIONS_PER_TEXT_MAX = 16;
/** A block, so that what a sequence has read up to a place stays when it goes back there. */
const CONTINUATION_STRIDE = 64;
/** What a token's logit is divided by (multiplied, below 0) once it has been said: greedy text of a small model runs in circles without it. */
const REPETITION_PENALTY = 1.3;

const DENSE: SelectionPlan = { kind: "dense" };
/** Steps between two turns of the event loop. */
const STEPS_PER_PAUSE = 8;

/** What a selection made of dense's text. */
export interface ContinuationResult {
  name: string;
  budgetTokens: number;
  /** Index of the first token that it would have said otherwise, and its own text from there on; absent: never within the text. */
  divergedAt?: number;
  /** Share of the steps, each behind dense's own words, whose token is dense's. */
  agreement: number;
  /** KL(dense, selection) of the next token over these steps, nats; of the model's own distributions, without the penalty. */
  divergence: number;
  /** Bytes that a step read, by the device's count. */
  bytes: number;
}

/** One continuation. */
export interface Continuation {
  /** Tokens of dense's text. */
  tokenCount: number;
  /** Of all runs of four tokens in dense's text the share that is there for the first time: 1 where nothing repeats, near 0 in a loop. */
  freshShare: number;
  denseBytes: number;
  results: ContinuationResult[];
}

/** Where the continuations of one text begin, descending from `contextTokens`: that many tokens are read before. */
export function continuationStarts(contextTokens: number, count: number): number[] {
  const fitting = Math.min(count, CONTINUATIONS_PER_TEXT_MAX, Math.floor(contextTokens / CONTINUATION_STRIDE));
  return Array.from({ length: fitting }, (_, index) => contextTokens - index * CONTINUATION_STRIDE);
}

/** A sequence, and the logits of its last step. */
export interface ContinuedSequence {
  sequence: Sequence;
  logits(): Float32Array;
}

/**
 * Continues greedily from where the sequence is, at a block's border; leaves it there. `firstId`: the token to come. Until its first difference a
 * selection's own text is dense's, so one reading of dense's text tells where the two part as well as how they agree behind that.
 */
export async function measureContinuation(
  { sequence, logits }: ContinuedSequence,
  options: {
    firstId: number;
    tokenCount: number;
    candidates: readonly (Candidate & { plan: SelectionPlan })[];
    /** Baselines that read along as well. */
    baselines?: { candidates: readonly Baseline[]; probe: ProbeOptions; random: Random };
    signal: AbortSignal;
  },
): Promise<Continuation> {
  const { firstId, tokenCount, baselines, signal } = options;
  const start = sequence.length;
  const perToken = (): number => (sequence.traffic.kvBytes + sequence.traffic.metadataBytes) / tokenCount;
  const said: number[] = [];
  const distributions: { logs: Float64Array; probabilities: Float64Array }[] = [];
  const chosen: (Uint8Array | undefined)[][] = [];
  const guide =
    baselines && new BaselineChoices({ ...baselines.probe, baselines: baselines.candidates, random: baselines.random });
  sequence.rewind(start);
  for (let step = 0; step < tokenCount; step++) {
    if (step % STEPS_PER_PAUSE === 0) await pause(signal);
    if (baselines !== undefined) baselines.probe.capture.isOn = true;
    await sequence.advance(said.at(-1) ?? firstId, DENSE);
    if (baselines !== undefined) baselines.probe.capture.isOn = false;
    if (guide !== undefined) chosen.push(await guide.at(sequence.slice(sequence.length - 1, 1, DENSE)));
    const logs = logSoftmax(logits());
    distributions.push({ logs, probabilities: logs.map(Math.exp) });
    said.push(nextToken(logits(), said));
  }
  const denseBytes = perToken();
  const follow = async (
    { name, budgetTokens }: Candidate,
    planAt: (step: number) => readonly [SelectionPlan, Uint8Array?],
  ): Promise<ContinuationResult> => {
    sequence.rewind(start);
    const agrees: boolean[] = [];
    const divergences: number[] = [];
    for (let step = 0; step < tokenCount; step++) {
      if (step % STEPS_PER_PAUSE === 0) await pause(signal);
      await sequence.advance(step === 0 ? firstId : (said[step - 1] as number), ...planAt(step));
      agrees.push(nextToken(logits(), said.slice(0, step)) === said[step]);
      const { logs, probabilities } = distributions[step] as (typeof distributions)[number];
      divergences.push(divergenceOf(logs, logSoftmax(logits()), probabilities));
    }
    const divergedAt = agrees.indexOf(false);
    const [agreement, divergence] = [meanOf(agrees.map(Number)), meanOf(divergences)];
    return { name, budgetTokens, ...(divergedAt < 0 ? {} : { divergedAt }), agreement, divergence, bytes: perToken() };
  };
  const results: ContinuationResult[] = [];
  for (const [index, baseline] of (baselines?.candidates ?? []).entries()) {
    const plan = BaselineChoices.planOf(baseline);
    const planAt = (step: number) => {
      const choice = chosen[step]?.[index];
      return choice === undefined ? ([DENSE] as const) : ([plan, choice] as const);
    };
    results.push(await follow(baseline, planAt));
  }
  for (const candidate of options.candidates) results.push(await follow(candidate, () => [candidate.plan]));
  sequence.rewind(start);
  return { tokenCount, freshShare: freshShareOf(said), denseBytes, results };
}

/** Greedy, what was said before made less likely; the first of equals. */
export function nextToken(logits: Float32Array, said: readonly number[]): number {
  const penalized = new Float64Array(logits);
  for (const id of new Set(said)) {
    const logit = logits[id] as number;
    penalized[id] = logit > 0 ? logit / REPETITION_PENALTY : logit * REPETITION_PENALTY;
  }
  return best(penalized);
}

function freshShareOf(ids: readonly number[]): number {
  const runs = Array.from({ length: Math.max(1, ids.length - 3) }, (_, at) => ids.slice(at, at + 4).join(" "));
  return new Set(runs).size / runs.length;
}
