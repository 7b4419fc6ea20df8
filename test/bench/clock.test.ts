import { describe, expect, it } from "vitest";
import { systemClock } from "../../bench/clock.ts";

describe("the system's clock", () => {
  it("never wakes anybody early, so that no latency is negative", async () => {
    const startMs = systemClock.nowMs();
    const never = new AbortController().signal;
    const wakes = Array.from({ length: 300 }, async (_, index) => {
      const atMs = startMs + index * 0.73;
      await systemClock.sleepUntil(atMs, never);
      return systemClock.nowMs() - atMs;
    });
    expect(Math.min(...(await Promise.all(wakes)))).toBeGreaterThanOrEqual(0);
  });

  it("wakes at once for what has passed, and when it is told to", async () => {
    const stop = new AbortController();
    await systemClock.sleepUntil(systemClock.nowMs() - 1, stop.signal);
    const sleep = systemClock.sleepUntil(systemClock.nowMs() + 60_000, stop.signal);
    stop.abort();
    await sleep;
    await systemClock.sleepUntil(systemClock.nowMs() + 60_000, stop.signal);
  });
});
