/** Times greedy decoding of one sequence, token by token. */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { densePolicy } from "../../models/selection/dense.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import type { BenchModel } from "./bench-model.ts";

/** What to decode with. */
export interface DecodeCase {
  contextTokens: number;
  policy: SelectionConfiguration;
  /** Undefined for dense. */
  budgetTokens: number | undefined;
}

/** One row of the result: times in milliseconds a token, bytes a token as the device counts them. */
export interface DecodeRow extends DecodeCase {
  tokenCount: number;
  msPerToken: { min: number; p50: number; mean: number };
  /** Of the median. */
  tokensPerS: number;
  kvBytesPerToken: number;
  metadataBytesPerToken: number;
  /** Attended pages of those in context, over all heads; 1 where everything was attended. */
  pagesShare: number;
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
 * Decodes `tokenCount` tokens behind a context that the pool already holds, each from the one before. KV behind the context is overwritten.
 * Stops early when `signal` fires, but not before one token.
 */
export async function measureDecode(
  model: BenchModel,
  item: DecodeCase,
  { tokenCount, signal }: { tokenCount: number; signal: AbortSignal },
): Promise<DecodeRow> {
  const { plan, groupTokens } = planOf(item);
  let tokenId = 3;
  const decode = async (position: number) => {
    const startMs = performance.now();
    const result = await model.step({
      position,
      tokens: Uint32Array.of(tokenId),
      ...{ plan, groupTokens, samples: true },
    });
    tokenId = result.sample!.tokenId;
    return { ms: performance.now() - startMs, traffic: result.traffic };
  };
  for (let i = 0; i < WARM_TOKENS; i++) await decode(item.contextTokens + i);
  tokenId = 3;
  const steps: Awaited<ReturnType<typeof decode>>[] = [];
  for (let i = 0; i < tokenCount && (i === 0 || !signal.aborted); i++) {
    steps.push(await decode(item.contextTokens + i));
  }
  const times = steps.map(({ ms }) => ms).sort((a, b) => a - b);
  const p50 = times[Math.floor(times.length / 2)]!;
  const mean = (pick: (step: (typeof steps)[number]) => number) =>
    steps.reduce((sum, step) => sum + pick(step), 0) / steps.length;
  const pagesInContext = mean(({ traffic }) => traffic.pagesInContext);
  return {
    ...item,
    tokenCount: steps.length,
    msPerToken: { min: times[0]!, p50, mean: mean(({ ms }) => ms) },
    tokensPerS: 1000 / p50,
    kvBytesPerToken: mean(({ traffic }) => traffic.kvBytes),
    metadataBytesPerToken: mean(({ traffic }) => traffic.metadataBytes),
    pagesShare: pagesInContext === 0 ? 1 : mean(({ traffic }) => traffic.pagesSelected) / pagesInContext,
  };
}
