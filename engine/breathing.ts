import type { EngineParts } from "./engine-parts.ts";

/** Share of a step's time that I/O gets behind it, while the store answers calls and otherwise (requests and answers, a store that is stalled). */
const BREATH_SHARE = 0.05;
const SHORT_BREATH_SHARE = 0.01;
/**
 * Requests that are being read get so long between two steps: signature and body take several turns of the event loop, each of which would cost a
 * step. One that has been coming for longer than the second waits for nobody's sake.
 */
const ARRIVAL_MS_MAX = 3;
const ARRIVAL_AGE_MS_MAX = 100;
const ARRIVAL_LOOK_MS = 0.1;

/**
 * Lets I/O run between steps, for a share of the time since the step began: a file or an HTTP answer takes many turns of the event loop, and
 * with one turn per prefill step of 150 ms a put took over 10 s.
 */
export async function breatheAfter(
  startMs: number,
  arriving: ReadonlySet<{ sinceMs: number }>,
  { clock, storeActivity }: Pick<EngineParts, "clock" | "storeActivity">,
): Promise<void> {
  const breathMs = clock.nowMs();
  await clock.breathe((storeActivity.isAnswering(breathMs) ? BREATH_SHARE : SHORT_BREATH_SHARE) * (breathMs - startMs));
  const isArriving = () => [...arriving].some(({ sinceMs }) => clock.nowMs() - sinceMs < ARRIVAL_AGE_MS_MAX);
  while (clock.nowMs() - breathMs < ARRIVAL_MS_MAX && isArriving()) await clock.breathe(ARRIVAL_LOOK_MS);
}
