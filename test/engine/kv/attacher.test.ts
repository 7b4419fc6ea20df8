/** What of a stored session a log that was cut, went on, or became another one still finds; answers are held against a cold engine. */
import { describe, expect, it, onTestFinished } from "vitest";
import { BlockFetcher } from "../../../engine/kv/block-fetcher.ts";
import type { SelectionRequest } from "../../../protocol/generate.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import type { PageStore } from "../../../storage/contract.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  type TurnResult,
  untilIdle,
} from "../harness.ts";

const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };

async function open(store: PageStore, segmentTokens = 64): Promise<TestEngine> {
  return openForTest({ store, settings: { segmentTokens } }, expectNothingHeld);
}
function cut(session: TestSession, end: number): void {
  session.ids.length = end;
  const kept = session.spans.filter((_span, index) => index === 0 || session.spans[index - 1]!.end < end);
  session.spans = kept.map((span) => ({ ...span, end: Math.min(span.end, end) }));
}

/** The same turn where nothing can be found. */
async function cold(session: TestSession, prompt: readonly number[]): Promise<TurnResult> {
  return await generate(
    await open(new MemoryStore()),
    request({
      tokens: idsToBytes([...session.ids, ...prompt]),
      turnStart: session.ids.length,
      spans: session.spans,
      selection: session.selection,
      topLogprobs: 0,
    }),
  );
}

async function settled(engine: TestEngine): Promise<void> {
  await untilIdle(engine);
  await engine.persister.flush();
}

/** Tokens 0-299 prompt, 300-315 reply, 316-415 prompt, 416-431 reply. */
async function stored(selection: SelectionRequest, segmentTokens: number) {
  const store = new MemoryStore();
  const engine = await open(store, segmentTokens);
  const session = new TestSession("s", selection);
  await session.turn(engine, randomIds(1, 300));
  await session.turn(engine, randomIds(2, 100));
  await settled(engine);
  return { store, engine, session };
}

describe.each([
  ["dense", DENSE],
  ["quest", QUEST],
] as const)("a log that was cut, %s", (name, selection) => {
  // [segment tokens, cut, tokens found again on a fresh engine: dense, quest]
  it.each([
    [64, 425, 425, 425, "inside the tail, in the reply"],
    [64, 405, 405, 400, "inside the tail, in a query group of the prompt"],
    [64, 384, 384, 384, "where the tail begins"],
    [64, 330, 320, 320, "inside a segment"],
    [256, 430, 430, 430, "inside the open block of a tail with sealed blocks"],
    [256, 350, 320, 320, "inside a sealed block of the tail"],
    [256, 200, 0, 0, "inside the first segment"],
  ])("segments of %i, at %i", async (segmentTokens, end, denseTokens, questTokens) => {
    const { store, session, engine } = await stored(selection, segmentTokens);
    cut(session, end);
    const prompt = randomIds(3, 40);
    const expected = await cold(session, prompt);
    const found = await session.fork("s").turn(await open(store, segmentTokens), prompt, { topLogprobs: 0 });
    expect(found.ids).toEqual(expected.ids);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.logprobs).toHaveLength(16);
    expect(found.usage.cachedTokens).toBe(name === "dense" ? denseTokens : questTokens);
    expect(found.usage.cachedTokens + found.usage.recomputedTokens).toBe(end);
    // The engine that served it finds whole blocks without the store, and gives the same answer.
    const again = await session.fork("s").turn(engine, prompt, { topLogprobs: 0 });
    expect(again.logprobs).toEqual(expected.logprobs);
    expect(again.ids).toEqual(expected.ids);
    expect(again.usage.cachedTokens).toBeGreaterThanOrEqual(Math.floor(end / 64) * 64);
  });
});

describe("a query group that was cut", () => {
  it("is computed again by every engine: its rows chose their pages together", async () => {
    let differing = 0;
    for (let seed = 0; seed < 3; seed++) {
      const store = new MemoryStore();
      const engine = await open(store);
      const session = new TestSession("s", QUEST);
      await session.turn(engine, randomIds(10 + seed, 400));
      const whole = await session.turn(engine, randomIds(20 + seed, 110), { maxTokens: 1 });
      await settled(engine);
      cut(session, 416 + 80 + seed + 1);
      const prompt = randomIds(30 + seed, 20);
      const expected = await cold(session, prompt);
      const found = await session
        .fork("s")
        .turn(seed % 2 === 0 ? engine : await open(store), prompt, { topLogprobs: 0 });
      expect(found.ids).toEqual(expected.ids);
      expect(found.logprobs).toEqual(expected.logprobs);
      expect(found.usage.cachedTokens % 16).toBe(0);
      if (expected.ids[0] !== whole.ids[0]) differing += 1;
    }
    expect(differing).toBeGreaterThan(0);
  });
});

describe("manifest and log", () => {
  it("a log that is ahead of the manifest finds what is there and recomputes the rest", async () => {
    const store = new MemoryStore();
    const engine = await open(store);
    const session = new TestSession("s", QUEST);
    await session.turn(engine, randomIds(1, 200));
    await settled(engine);
    const elsewhere = await open(new MemoryStore());
    await session.turn(elsewhere, randomIds(2, 90));
    const prompt = randomIds(3, 10);
    const expected = await cold(session, prompt);
    const found = await session.turn(await open(store), prompt);
    expect(found.ids).toEqual(expected.ids);
    expect(found.usage).toMatchObject({ cachedTokens: 216, recomputedTokens: 106, source: { device: 0, store: 216 } });
  });

  it("another log under the same name finds nothing, and replaces it", async () => {
    const { store } = await stored(DENSE, 64);
    const other = new TestSession("s", DENSE);
    other.ids = randomIds(9, 300);
    other.spans = [{ end: 300, how: "dense" }];
    const fresh = await open(store);
    const found = await other.turn(fresh, [1, 2, 3]);
    expect(found.usage).toMatchObject({ cachedTokens: 0, recomputedTokens: 300 });
    await settled(fresh);
    const next = await other.turn(await open(store), [4]);
    expect(next.usage).toMatchObject({ recomputedTokens: 0, cachedTokens: 319 });
  });

  it("the same tokens attended in another way are not the same", async () => {
    const { store, session } = await stored(QUEST, 64);
    session.spans = [{ end: session.ids.length, how: "dense" }];
    const found = await session.turn(await open(store), [1, 2, 3]);
    // 300 tokens of the first prompt were dense: four blocks, and what the first 128 tokens of any policy are.
    expect(found.usage.cachedTokens).toBe(256);
  });
});

describe("a session that comes back from another engine", () => {
  it("takes sealed blocks and longer tails from the store in place of an old tail of its own, and counts no token twice", async () => {
    for (const length of [10, 60]) {
      const store = new MemoryStore();
      const [here, there] = [await open(store), await open(store)];
      const session = new TestSession("s", DENSE);
      await session.turn(here, randomIds(1, 80));
      await settled(here);
      await session.turn(there, randomIds(2, length));
      await settled(there);
      const back = await session.turn(here, randomIds(3, 9));
      expect(back.usage.cachedTokens).toBe(80 + 16 + length + 16);
      expect(back.usage.recomputedTokens).toBe(0);
      expect(back.usage.source.device + back.usage.source.store).toBe(back.usage.cachedTokens);
      expect(back.usage.bytesFetched).toBeGreaterThan(0);
    }
  });
});

describe("another tenant", () => {
  it("finds neither the session's objects in the store nor its tail on the device, under the same names and tokens", async () => {
    const namespace = "fedcba9876543210";
    const store = new MemoryStore();
    const engine = await open(store);
    const long = new TestSession("s", DENSE);
    await long.turn(engine, randomIds(1, 150));
    const short = new TestSession("t", DENSE);
    await short.turn(engine, randomIds(2, 20));
    await settled(engine);
    const fresh = await open(store);
    for (const [session, own] of [
      [long, fresh],
      [short, engine],
    ] as const) {
      const stranger = await session.fork(session.id).turn(own, [1, 2, 3], { namespace });
      expect(stranger.usage).toMatchObject({ cachedTokens: 0, bytesFetched: 0, recomputedTokens: session.ids.length });
      const owner = await session.fork(session.id).turn(own, [1, 2, 3]);
      expect(owner.usage.cachedTokens).toBe(session.ids.length);
      expect(owner.ids).toEqual(stranger.ids);
    }
  });
});

describe("a first burst of which more than one read fails", () => {
  it("is written down, and the turn reads what its queries choose: no failure is left for nobody, which would end the process", async () => {
    const { store, session } = await stored(QUEST, 64);
    const prompt = randomIds(3, 40);
    const expected = await cold(session, prompt);
    const engine = await open(store);
    const { fetch } = BlockFetcher.prototype;
    const kinds: string[] = [];
    // Not by a spy: that would hear the rejections.
    BlockFetcher.prototype.fetch = async function (...asked) {
      const at = kinds.push(asked[1]);
      if (at !== 2 && at !== 3) return await fetch.apply(this, asked);
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error(`a mistake in read ${at}`);
    };
    onTestFinished(() => {
      BlockFetcher.prototype.fetch = fetch;
    });
    const found = await session.fork("s").turn(engine, prompt, { topLogprobs: 0 });
    expect(kinds.slice(0, 3)).toEqual(["demand", "demand", "fill"]);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(engine.logged).toContainEqual({
      event: "attach.burst-failed",
      fields: { requestId: expect.any(String), error: "Error: a mistake in read 2" },
    });
  });
});
