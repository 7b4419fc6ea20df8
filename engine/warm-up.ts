/**
 * Runs a few steps over memory that nobody uses yet, so that a GPU compiles its kernels before the engine answers and not within the first
 * turn. What the steps leave in open slots, blocks and summaries is undefined content, as before the first write.
 */
import { BLOCK_TOKENS, type KvPoolSpec, type SelectionPlan } from "../kernels/contract.ts";
import type { ModelRunner, SequenceStep } from "../models/contract.ts";
import { BUDGET_TOKENS_MIN } from "../models/selection/policy.ts";
import { POLICY_NAMES, policyNamed } from "../models/selection/registry.ts";

/** How far warming up is. */
export interface WarmUpProgress {
  stepsDone: number;
  stepCount: number;
}

/** Behind the first split of attention, so that splits are merged, and behind the least budget, so that pages are chosen. */
const POSITION = 10 * BLOCK_TOKENS;
/** More rows than are decoded one by one; the last of them fills a block. */
const CHUNK_ROWS = 16;
/** A GPU has kernels of their own for products of a few rows, up to 4 and up to 8: those of sequences that decode together. */
const FEW_ROWS = [2, 5];

/**
 * Runs every step once, before anything else uses the runner. `onStep` hears of each as it ends.
 * @throws {QuireError} what a step throws, such as a kernel that the driver cannot compile
 */
export async function warmUp(runner: ModelRunner, onStep: (progress: WarmUpProgress) => void): Promise<void> {
  const steps = warmUpSteps(runner);
  for (const [index, step] of steps.entries()) {
    await runner.step([step]);
    onStep({ stepsDone: index + 1, stepCount: steps.length });
  }
}

/** A chunk and a decoded token, attending to all and by one policy for each kind of summaries that the pool keeps; and a few rows. */
function warmUpSteps({ config, pool, rowsMax, sampledMax }: ModelRunner): SequenceStep[] {
  const position = Math.min(POSITION, Math.floor((config.contextTokensMax - 1) / BLOCK_TOKENS) * BLOCK_TOKENS);
  const rows = Math.min(CHUNK_ROWS, rowsMax, position);
  const few = FEW_ROWS.filter((rowCount) => rowCount <= Math.min(rows, sampledMax)).map((rowCount): SequenceStep => {
    const step = stepAt(pool.spec, { kind: "dense" }, { position: position - rows, rowCount });
    return { ...step, sample: DRAWN, draftSamples: Array<typeof DRAWN>(rowCount - 1).fill(DRAWN) };
  });
  const ofPlans = plansOf(pool.spec).flatMap((plan): SequenceStep[] => {
    const chunk = stepAt(pool.spec, plan, { position: position - rows, rowCount: rows });
    const token = stepAt(pool.spec, plan, { position, rowCount: 1 });
    return [...(rows > 0 ? [chunk] : []), { ...token, sample: DRAWN }];
  });
  return [...ofPlans, ...few];
}

function plansOf({ summaryKinds }: KvPoolSpec): SelectionPlan[] {
  const policies = POLICY_NAMES.map((name) => policyNamed(name)).filter(
    ({ plan }) => plan(BUDGET_TOKENS_MIN).kind === "pages",
  );
  const scoring = summaryKinds.flatMap((kind) => policies.find(({ summary }) => summary === kind) ?? []);
  return [{ kind: "dense" }, ...scoring.map(({ plan }) => plan(BUDGET_TOKENS_MIN))];
}

/** Rows whose context is one block, over and over. */
function stepAt(
  { layerCount }: KvPoolSpec,
  plan: SelectionPlan,
  { position, rowCount }: { position: number; rowCount: number },
): SequenceStep {
  const blockCapacity = Math.floor((position + rowCount) / BLOCK_TOKENS) + 1;
  const slice = {
    ...{ position, rowCount, plan, blockCapacity },
    blockIds: new Int32Array(layerCount * blockCapacity),
    summarySlots: new Int32Array(blockCapacity),
    openSlots: Int32Array.of(0),
    groupStarts: Int32Array.of(0),
  };
  return { slice, tokens: new Uint32Array(rowCount), exact: false };
}

/** With all that sampling can do. */
const DRAWN = {
  ...{ temperature: 1, topK: 8, topP: 0.9, minP: 0, seed: 1, position: 0, topLogprobs: 1 },
  ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
  ...{ seenIds: new Uint32Array(0), seenCounts: new Uint32Array(0) },
  ...{ biasIds: new Uint32Array(0), biasValues: new Float32Array(0) },
};
