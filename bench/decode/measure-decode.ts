/** Times greedy decoding of one sequence, token by token. */
import { setImmediate } from "node:timers/promises";
import type { SelectionPlan } from "../../kernels/contract.ts";
import { densePolicy } from "../../models/selection/dense.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { type GpuStepTimes, gpuStepTimes } from "../gpu/step-times.ts";
import { RunChoices } from "../run-choices.ts";
import type { BenchModel } from "./bench-model.ts";

/** What to decode with. */
export interface DecodeCase {
  contextTokens: number;
  policy: SelectionConfiguration;
  /** Undefined for dense. */
  budgetTokens: number | undefined;
}

/**
 * One row of the result: times in milliseconds a token, bytes a token as the device counts them. Where tokens share a choice, a time is the mean
 * over the tokens of a run: one of them pays for all.
 */
export interface DecodeRow extends DecodeCase {
  tokenCount: number;
  msPerToken: { min: number; p50: number; mean: number };
  /** Of the median, all sequences together. */
  tokensPerS: number;
  kvBytesPerToken: number;
  metadataBytesPerToken: number;
  /** Attended pages of those in context, over all heads; 1 where everything was attended. */
  pagesShare: number;
  /** On a GPU that can tell: where a step's time goes. */
  gpu?: GpuStepTimes;
}

/** Tokens that warm caches and the optimizer up before the clock counts. */
const WARM_TOKENS = 3;

/** Every case of some contexts, policies and budgets; dense has no budget. */
export function listCases(
  contexts: readonly number[],
  policies: readonly SelectionConfiguration[],
  budgets: readonly number[],
): DecodeCase[] {
  return contexts.flatMap((contextTokens) =>
    policies.flatMap((policy): DecodeCase[] =>
      policy === densePolicy.name
        ? [{ contextTokens, policy, budgetTokens: undefined }]
        : budgets.map((budgetTokens) => ({ contextTokens, policy, budgetTokens })),
    ),
  );
}

/** The plan and group width of a case. */
export function planOf({ policy, budgetTokens }: Pick<DecodeCase, "policy" | "budgetTokens">): {
  plan: SelectionPlan;
  groupTokens: number;
} {
  const chosen = policyNamed(policy);
  return { plan: chosen.plan(budgetTokens ?? 0), groupTokens: chosen.groupTokens };
}

/**
 * Decodes `tokenCount` tokens of each sequence behind a context that the pool already holds, each from the one before. KV behind the context
 * is overwritten. Stops early when `signal` fires, but not before one token. Bytes are those of one sequence, `tokensPerS` is of all.
 */
export async function measureDecode(
  model: BenchModel,
  item: DecodeCase,
  { tokenCount, signal, batch = 1 }: { tokenCount: number; signal: AbortSignal; batch?: number },
): Promise<DecodeRow> {
  const { plan, groupTokens } = planOf(item);
  const sequences = Array.from({ length: batch }, () => ({ runs: new RunChoices(), tokenId: 3 }));
  const decode = async (position: number) => {
    const startMs = performance.now();
    const results = await model.stepAll(
      sequences.map(({ runs, tokenId }) => ({
        position,
        tokens: Uint32Array.of(tokenId),
        ...{ plan, groupTokens, samples: true, run: runs.fieldsAt(position, plan) },
      })),
    );
    for (const [index, sequence] of sequences.entries()) {
      const result = results[index]!;
      sequence.runs.keep(position, result.choice);
      sequence.tokenId = result.sample!.tokenId;
    }
    return { ms: performance.now() - startMs, traffic: results[0]!.traffic };
  };
  for (let i = 0; i < WARM_TOKENS; i++) await decode(item.contextTokens + i);
  for (const sequence of sequences) {
    sequence.tokenId = 3;
    sequence.runs.clear();
  }
  const steps: Awaited<ReturnType<typeof decode>>[] = [];
  for (let i = 0; i < tokenCount && (i === 0 || !signal.aborted); i++) {
    // Steps leave no turn of the event loop of their own accord, and without one no Ctrl-C is heard.
    await setImmediate();
    steps.push(await decode(item.contextTokens + i));
  }
  const runTokens = plan.kind === "pages" ? (plan.rowsPerChoice ?? 1) : 1;
  const times = runMeans(
    steps.map(({ ms }) => ms),
    runTokens,
  ).sort((a, b) => a - b);
  const p50 = times[Math.floor(times.length / 2)]!;
  const mean = (pick: (step: (typeof steps)[number]) => number) =>
    steps.reduce((sum, step) => sum + pick(step), 0) / steps.length;
  const gpu = await gpuStepTimes(model.device, { wallMs: p50, run: () => decode(item.contextTokens + steps.length) });
  const pagesInContext = mean(({ traffic }) => traffic.pagesInContext);
  return {
    ...item,
    tokenCount: steps.length,
    msPerToken: { min: times[0]!, p50, mean: mean(({ ms }) => ms) },
    tokensPerS: (batch * 1000) / p50,
    kvBytesPerToken: mean(({ traffic }) => traffic.kvBytes),
    metadataBytesPerToken: mean(({ traffic }) => traffic.metadataBytes),
    pagesShare: pagesInContext === 0 ? 1 : mean(({ traffic }) => traffic.pagesSelected) / pagesInContext,
    ...(gpu === undefined ? {} : { gpu }),
  };
}

/** Means over runs of so many values; a last one that is not whole counts only where it is the only one. */
function runMeans(values: readonly number[], length: number): number[] {
  const count = Math.max(1, Math.floor(values.length / length));
  return Array.from({ length: count }, (_, run) => {
    const some = values.slice(run * length, (run + 1) * length);
    return some.reduce((sum, value) => sum + value, 0) / some.length;
  });
}
