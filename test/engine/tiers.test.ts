/** Conversations that do not all fit into the page pool: where their KV is found again, and that it is the same. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const SELECTIONS: Record<string, SelectionRequest> = {
  dense: { policy: "dense", budgetTokens: 0, exact: true },
  "quest, default mode": { policy: "quest", budgetTokens: 128, exact: false },
};
/** One of the conversations below fits, and little of another. */
const SMALL_POOL = 2 * 8;

class CountingStore extends MemoryStore {
  blockReads = 0;
  override async get(...args: Parameters<MemoryStore["get"]>) {
    if (args[1]?.range) this.blockReads += 1;
    return await super.get(...args);
  }
}

/** Three conversations take turns, so that each has left the pool when it is its turn again. */
async function takeTurns(engine: TestEngine, selection: SelectionRequest) {
  const sessions = [1, 2, 3].map((number) => new TestSession(`s${number}`, selection));
  const results = [];
  for (let round = 0; round < 2; round++) {
    for (const [at, session] of sessions.entries()) {
      const prompt = randomIds(10 * round + at, round === 0 ? 320 : 30);
      const { ids, logprobs, usage } = await session.turn(engine, prompt, { topLogprobs: 0 });
      results.push({ ids, logprobs, usage });
      await untilIdle(engine);
    }
  }
  return results;
}

describe.each(Object.entries(SELECTIONS))("conversations that take turns in a small pool: %s", (_name, selection) => {
  it("are found in host memory, without a read of blocks from the store, and go on bit for bit", async () => {
    const store = new CountingStore();
    const small = await openForTest({ store, blockCount: SMALL_POOL });
    const results = await takeTurns(small, selection);
    const expected = await takeTurns(await openForTest(), selection);
    for (const [at, { ids, logprobs, usage }] of results.entries()) {
      expect([ids, logprobs]).toEqual([expected[at]!.ids, expected[at]!.logprobs]);
      const { device, host, store: fromStore } = usage.source;
      expect(device + host + fromStore).toBe(usage.cachedTokens);
      if (at >= 3) expect(host, `turn ${at}`).toBeGreaterThanOrEqual(128);
      expect([usage.recomputedTokens, usage.pagesMissed]).toEqual([0, 0]);
    }
    expect(store.blockReads).toBe(0);
    const { hostPool } = small.engine.status;
    expect(hostPool.counts.hits).toBeGreaterThan(6);
    expect(hostPool.bytes).toBeLessThanOrEqual(hostPool.bytesMax);
    expect(small.engine.metrics.expose()).toContain(
      `quire_host_pool_blocks_total{event="hit"} ${hostPool.counts.hits}`,
    );
    small.evictIdle();
    expect(small.engine.status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0, hostPool: { bytes: 0 } });
  });

  it("are read from the store where there is no host memory", async () => {
    const store = new CountingStore();
    const small = await openForTest({ store, blockCount: SMALL_POOL, settings: { hostPoolBytes: 0 } });
    const results = await takeTurns(small, selection);
    expect(results.slice(3).every(({ usage }) => usage.source.host === 0)).toBe(true);
    expect(store.blockReads).toBeGreaterThan(0);
  });
});
