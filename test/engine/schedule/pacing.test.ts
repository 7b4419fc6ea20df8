/** Streams far ahead of their readers give way to prompts that wait; no reader ever waits for them. */
import { describe, expect, it } from "vitest";
import type { EngineSettings } from "../../../engine/settings.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds } from "../harness.ts";
import { gaps, percentile, SIMULATION_TIMEOUT, simulateEngine, simulateTurn } from "./simulation.ts";

const PACE = 10;
const REPLY_TOKENS = 1_500;

/** Streams under way for five seconds when prompts come at once. */
async function promptsBesideStreams(settings: Partial<EngineSettings>) {
  const simulated = simulateEngine({ cost: { fixedMs: 2, rowMs: 0.8, attendedMsPer1024: 0 }, settings });
  const { clock } = simulated;
  const turn = (seed: number, count: number, maxTokens: number) =>
    simulateTurn(simulated, { tokens: idsToBytes(randomIds(seed, count)), maxTokens });
  const scenario = async () => {
    const streams = Array.from({ length: 16 }, (_, seed) => turn(seed, 50, REPLY_TOKENS));
    await clock.sleep(6_000);
    const prompts = Array.from({ length: 12 }, (_, seed) => turn(100 + seed, 1_000, 1));
    return { streams: await Promise.all(streams), prompts: await Promise.all(prompts) };
  };
  const played = scenario();
  await simulated.run(played);
  const { streams, prompts } = await played;
  return {
    streams,
    firstTokenMs: percentile(
      prompts.map(({ tokensMs, submittedMs }) => tokensMs[0]! - submittedMs),
      50,
    ),
  };
}

/** Milliseconds that somebody who reads so many tokens a second from the first on waits for one that has not come. */
function stalledMs(tokensMs: readonly number[], tokensPerS: number): number {
  let readMs = tokensMs[0]!;
  let stalled = 0;
  for (const atMs of tokensMs) {
    stalled += Math.max(0, atMs - readMs);
    readMs = Math.max(readMs, atMs) + 1000 / tokensPerS;
  }
  return stalled;
}

describe("pacing", SIMULATION_TIMEOUT, () => {
  it("lets prompts in sooner, and nobody who reads at that speed waits", async () => {
    const plain = await promptsBesideStreams({});
    const paced = await promptsBesideStreams({ paceTokensPerS: PACE });
    expect(paced.firstTokenMs).toBeLessThan(0.5 * plain.firstTokenMs);
    for (const { tokensMs } of paced.streams) {
      expect(tokensMs).toHaveLength(REPLY_TOKENS);
      expect(stalledMs(tokensMs, PACE)).toBe(0);
    }
    // They did give way: without prompts, and without a pace, tokens come every 15 to 30 ms.
    expect(Math.max(...paced.streams.flatMap(({ tokensMs }) => gaps(tokensMs)))).toBeGreaterThan(500);
    expect(Math.max(...plain.streams.flatMap(({ tokensMs }) => gaps(tokensMs)))).toBeLessThan(100);
  });

  it("leaves streams alone that are not ahead of their readers", async () => {
    const plain = await promptsBesideStreams({});
    const fast = await promptsBesideStreams({ paceTokensPerS: 1_000 });
    expect(fast.firstTokenMs).toBe(plain.firstTokenMs);
  });
});
