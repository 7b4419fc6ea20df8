/** Contexts that the pool cannot hold: what they take of it is bounded, and their text is that of a pool that holds everything. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { StoreError } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  type TestEngineOptions,
  TestSession,
  untilIdle,
} from "./harness.ts";

const LAYERS = 2;
/** Eleven blocks in the end. */
const TURNS = [90, 200, 150, 100] as const;
const REPLY_TOKENS = 36;
const CONTEXT_BLOCKS = 11;

function open(blockCount: number, options: Partial<TestEngineOptions> = {}): Promise<TestEngine> {
  return openForTest({ blockCount, summarySlotCount: 64, ...options }, expectNothingHeld);
}

async function converse(engineOf: (turn: number) => Promise<TestEngine>, session: TestSession) {
  const results = [];
  for (const [turn, tokens] of TURNS.entries()) {
    const engine = await engineOf(turn);
    const { ids, logprobs, usage, spans } = await session.turn(engine, randomIds(turn, tokens), {
      maxTokens: REPLY_TOKENS,
      topLogprobs: 0,
    });
    results.push({ text: [ids, logprobs, spans], usage });
    await untilIdle(engine);
  }
  return results;
}

/** What a step may attend to in one layer and, in both layers, the block that it seals: blocks of a layer. */
const POLICIES = [
  { policy: "streaming", blockCount: 5 },
  { policy: "quest+scope(layer)", blockCount: 9 },
  { policy: "mean-deviation+reuse(4)+scope(layer)", blockCount: 9 },
  // Layer 0: one head of two chooses; layer 1: none.
  { policy: "quest+head-budgets(1,0)", blockCount: 9 },
  // A choice for both layers: what it may take of both.
  { policy: "quest+scope(layer)+share(2)", blockCount: 16 },
  { policy: "quest", blockCount: CONTEXT_BLOCKS + LAYERS },
  { policy: "tokenselect", blockCount: CONTEXT_BLOCKS + LAYERS },
  { policy: "dense", blockCount: CONTEXT_BLOCKS + LAYERS },
] as const;

describe.each(POLICIES)("$policy in a pool of $blockCount blocks of a layer", ({ policy, blockCount }) => {
  const selection: SelectionRequest = { policy, budgetTokens: policy === "dense" ? 0 : 128, exact: true };

  it("answers as in a pool that holds everything, bit for bit, and computes nothing again", async () => {
    const small = await open(blockCount);
    const results = await converse(async () => small, new TestSession("long", selection));
    expect(small.engine.status.leftLayerCount).toBeGreaterThan(20);
    const large = await open(2 * 32);
    const expected = await converse(async () => large, new TestSession("long", selection));
    expect(large.engine.status.leftLayerCount).toBe(0);
    for (const [turn, { text, usage }] of results.entries()) {
      expect(text, `turn ${turn}`).toEqual(expected[turn]?.text);
      expect([usage.recomputedTokens, usage.pagesMissed]).toEqual([0, 0]);
    }
  });
});

describe("a context larger than the pool", () => {
  const selection: SelectionRequest = { policy: "quest+scope(layer)", budgetTokens: 128, exact: true };
  const long = (number: number, fields = {}) =>
    request({
      tokens: idsToBytes(randomIds(number, 90)),
      maxTokens: 420,
      selection,
      session: { id: `s${number}` },
      topLogprobs: 0,
      ...fields,
    });

  it("is read from the store by an engine that has just started, with little host memory", async () => {
    const store = new MemoryStore();
    const hostPoolBytes = 10_000;
    let engine: TestEngine | undefined;
    const fresh = async (turn: number): Promise<TestEngine> => {
      await engine?.persister.flush();
      // The first turn computes most of what it holds: that needs room. Later ones find theirs in the store.
      engine = await open(9, turn === 0 ? { store } : { store, settings: { hostPoolBytes: 4 * hostPoolBytes } });
      return engine;
    };
    const results = await converse(fresh, new TestSession("long", selection));
    const large = await open(2 * 32);
    const expected = await converse(async () => large, new TestSession("long", selection));
    for (const [turn, { text, usage }] of results.entries()) {
      expect(text, `turn ${turn}`).toEqual(expected[turn]?.text);
      expect(usage.recomputedTokens).toBe(0);
      if (turn > 0) expect(usage.source.store).toBe(usage.cachedTokens);
    }
  });

  it("shares the pool with another such, and with those that fit; all end, with their own text", async () => {
    const engine = await open(2 * 9 + LAYERS);
    const requests = [1, 2, 3, 4].map((number) => long(number, number > 2 ? { maxTokens: 60 } : { maxTokens: 560 }));
    const results = await Promise.all(requests.map((each) => generate(engine, each)));
    expect(engine.engine.status.leftLayerCount).toBeGreaterThan(0);
    const large = await open(2 * 64);
    for (const [at, { ids, logprobs }] of results.entries()) {
      const expected = await generate(large, requests[at] as (typeof requests)[number]);
      expect([ids, logprobs], `request ${at}`).toEqual([expected.ids, expected.logprobs]);
    }
  });

  it("is given up where it goes in circles: nothing is stored, and host memory is too small for what was lost", async () => {
    const store = new MemoryStore();
    store.put = async () => {
      throw new StoreError("unavailable", "read only");
    };
    const large = await open(2 * 32, { store });
    const session = new TestSession("long", selection);
    await converse(async () => large, session);
    const small = await open(9, { store, settings: { hostPoolBytes: 20_000 } });
    const turn = session.turn(small, randomIds(9, 40), { maxTokens: 4 });
    await expect(turn).rejects.toMatchObject({ code: "deadline_exceeded", message: /again 8 times over/ });
  });

  it("goes on around what is missing in default mode, and counts it", async () => {
    const engine = await open(9, { settings: { missWaitMs: 0 } });
    const session = new TestSession("default", { ...selection, exact: false });
    const results = await converse(async () => engine, session);
    const missed = results.map(({ usage }) => usage.pagesMissed);
    expect(Math.max(...missed)).toBeGreaterThan(0);
    for (const [turn, { text, usage }] of results.entries()) {
      const isApproximate = JSON.stringify(text[2]).includes("~");
      expect([turn, usage.pagesMissed > 0]).toEqual([turn, isApproximate]);
    }
  });

  it("is refused where a step would need more, or host memory is short, with one line", async () => {
    const uneven = (policy: SelectionRequest["policy"]) => ({
      selection: { policy, budgetTokens: 128, exact: true },
      maxTokens: 2_000,
    });
    const refusals: [number, Partial<TestEngineOptions>, object, RegExp][] = [
      [8, {}, {}, /may need 9 blocks of a layer on the device; the KV pool holds 8/],
      // Layer 1: twice five pages for each of two heads, in a block of their own each; two forced ones; one to be sealed in each layer.
      [23, {}, uneven("quest+head-budgets(0,0,2,2)"), /may need 24 blocks of a layer/],
      // What a choice takes of both layers that share it, and one to be sealed in each.
      [
        15,
        {},
        uneven("quest+scope(layer)+share(2)"),
        /may need 16 blocks of a layer on the device; the KV pool holds 15/,
      ],
      [8, {}, { selection: { policy: "dense", budgetTokens: 0, exact: true } }, /may need 10 blocks of a layer/],
      [10, { settings: { hostPoolBytes: 10_000 } }, {}, /needs 0\.\d MiB of host memory, and there are 0\.0 MiB/],
      [10, { summarySlotCount: 7 }, {}, /may grow to 512 tokens; the KV pool holds summaries of 448/],
    ];
    for (const [blockCount, options, fields, message] of refusals) {
      const engine = await open(blockCount, options);
      expect(() => engine.engine.submit(long(1, fields), { token() {}, done() {}, failed() {} })).toThrow(message);
    }
  });

  it("has host memory set aside for all of it that no segment of the store holds", async () => {
    const spec = { turnStart: 64, spans: [{ end: 64, how: "dense" }] };
    const { blockBytes } = (await open(10)).runner.pool;
    // Of eight blocks, for seven.
    const settings = { hostPoolBytes: 7 * LAYERS * blockBytes };
    const submitted = (engine: TestEngine, fields: object) => () =>
      engine.engine.submit(long(1, { ...spec, ...fields }), { token() {}, done() {}, failed() {} }).cancel();
    const small = await open(10, { settings });
    expect(submitted(small, {})).not.toThrow();
    expect(submitted(small, { session: undefined }), "nothing of it is ever stored").toThrow(/of host memory/);
    const wide = await open(10, { settings: { ...settings, segmentTokens: 256 } });
    expect(submitted(wide, {}), "its first block is in the tail").toThrow(/of host memory/);
  });
});
