/**
 * How a session's KV comes back, and what each way is expected to take, by what store and model have been measured to do:
 *
 *   lazy      = (ROUND_TRIPS + layers / 2) * latency + (summaries / layers + share * blocks) / bandwidth,  share = min(1, SPREAD * budget / context)
 *   full      = ROUND_TRIPS * latency + (summaries + blocks) / bandwidth
 *   recompute = tokens * milliseconds of a prompt row
 *
 * Lazy waits for selected blocks layer by layer, about every second one finds all it wants; of summaries it waits for the first layer's; the queries of a prompt choose apart, so they read
 * more than one budget. Without a measurement a way is not predicted, and not chosen.
 */
import type { ResumeMode, ResumeUsage } from "../../protocol/generate.ts";
import type { StoreSpeed } from "../../storage/read-times.ts";

/** Manifest, summaries and what the first burst reads. */
const ROUND_TRIPS = 3;
/** What the prompt of a resumed turn reads, in budgets: 5-6 on book text with the house model (docs/reliability.md). */
const SPREAD = 5;

/** A way that is really gone. */
export type ChosenResume = Exclude<ResumeMode, "auto">;

/** What would have to come back. */
export interface ResumeCost {
  /** Of earlier turns, without KV on the device or in host memory. */
  tokenCount: number;
  layerCount: number;
  /** Bytes of these tokens' blocks, all layers, and of their summaries of one kind. */
  blockBytes: number;
  summaryBytes: number;
  /** Tokens that a step attends to; undefined: all. */
  budgetTokens: number | undefined;
  contextTokens: number;
}

/** What is known of this store and this model on this machine. */
export interface ResumeSpeeds {
  store: StoreSpeed | undefined;
  /** One row of a prompt in the middle of such a context. */
  rowMs: number | undefined;
}

/** Expected milliseconds of each way that can be predicted. */
export function predictResume(cost: ResumeCost, { store, rowMs }: ResumeSpeeds): Partial<Record<ChosenResume, number>> {
  const predicted: Partial<Record<ChosenResume, number>> = {};
  if (rowMs !== undefined) predicted.recompute = cost.tokenCount * rowMs;
  if (store === undefined) return predicted;
  const { layerCount, blockBytes, summaryBytes, budgetTokens = cost.contextTokens, contextTokens } = cost;
  const share = Math.min(1, (SPREAD * budgetTokens) / contextTokens);
  predicted.full = ROUND_TRIPS * store.latencyMs + (summaryBytes + blockBytes) / store.bytesPerMs;
  predicted.lazy =
    (ROUND_TRIPS + layerCount / 2) * store.latencyMs +
    (summaryBytes / layerCount + share * blockBytes) / store.bytesPerMs;
  return predicted;
}

/**
 * The way that is gone: what was asked for, or for `auto` the quickest of those that can be predicted, lazy where the store has not been
 * measured.
 */
export function chooseResume(asked: ResumeMode, cost: ResumeCost, speeds: ResumeSpeeds): ResumeUsage {
  if (asked !== "auto") return { mode: asked, asked };
  const predictedMs = predictResume(cost, speeds);
  const known = (["lazy", "full", "recompute"] as const).filter((mode) => predictedMs[mode] !== undefined);
  const best = known.reduce<ChosenResume>(
    (a, b) => ((predictedMs[b] as number) < (predictedMs[a] ?? Number.POSITIVE_INFINITY) ? b : a),
    "lazy",
  );
  return { mode: predictedMs.lazy === undefined ? "lazy" : best, asked, predictedMs };
}
