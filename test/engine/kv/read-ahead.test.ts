import { describe, expect, it } from "vitest";
import { Gate } from "../../../engine/kv/gate.ts";
import { ReadAhead } from "../../../engine/kv/read-ahead.ts";
import { systemClock } from "../../../engine/settings.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { noise } from "../../storage/random.ts";
import { openForTest, randomIds, TestSession, untilIdle } from "../harness.ts";

describe("read-ahead", () => {
  const ranges = [
    { objectKey: "a", offset: 0, bytes: 10 },
    { objectKey: "a", offset: 10, bytes: 20 },
    { objectKey: "none", offset: 0, bytes: 5 },
  ];

  it("gives a range that was begun once, reads others anew, and tells what nobody took", async () => {
    const store = new MemoryStore();
    await store.put("a", noise(1, 100));
    let gets = 0;
    const get = store.get.bind(store);
    store.get = (...args) => {
      gets += 1;
      return get(...args);
    };
    const ahead = new ReadAhead({ store, gate: new Gate(4), clock: systemClock, getMsMax: 1000 });
    const forget = ahead.begin(ranges);
    // Begun already: not again, and not its to forget.
    expect(ahead.begin(ranges.slice(0, 1))()).toBe(0);
    expect(gets).toBe(3);
    const taken = await ahead.get("a", { range: { offset: 10, bytes: 20 } });
    expect(taken?.bytes).toEqual(noise(1, 100).slice(10, 30));
    expect(await ahead.get("none", { range: { offset: 0, bytes: 5 } })).toBeUndefined();
    expect(gets).toBe(3);
    await ahead.get("a", { range: { offset: 10, bytes: 20 } });
    await ahead.get("a", { range: { offset: 0, bytes: 11 } });
    await ahead.get("a");
    expect(gets).toBe(6);
    expect(forget()).toBe(10);
    expect([forget(), ahead.pendingCount]).toEqual([0, 0]);
  });

  it("tells a failure to who asks, and to nobody else", async () => {
    const store = new MemoryStore();
    store.get = async () => {
      throw new Error("down");
    };
    const ahead = new ReadAhead({ store, gate: new Gate(4), clock: systemClock, getMsMax: 1000 });
    const forget = ahead.begin(ranges);
    await expect(ahead.get("a", { range: { offset: 0, bytes: 10 } })).rejects.toThrow("down");
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(forget()).toBe(25);
  });
});

describe("heads of objects that are read ahead", () => {
  const open = async (answers: Record<string, Uint8Array | Error | undefined>) => {
    const store = new MemoryStore();
    let gets = 0;
    store.get = async (key, options) => {
      gets += 1;
      const answer = answers[key];
      if (answer instanceof Error) throw answer;
      const { offset, bytes } = options!.range!;
      return answer && { bytes: answer.slice(offset, offset + bytes), etag: "e", objectBytes: answer.byteLength };
    };
    const ahead = new ReadAhead({ store, gate: new Gate(4), clock: systemClock, getMsMax: 1000 });
    return { ahead, gets: () => gets };
  };
  const head = (objectKey: string, bytes = 50) => ({ objectKey, offset: 0, bytes });

  it("are given once; one that is absent or failed is as if it had not been begun", async () => {
    const { ahead, gets } = await open({ here: noise(1, 100), fails: new Error("down") });
    const forget = ahead.beginHeads([head("here"), head("absent"), head("fails")]);
    expect(ahead.beginHeads([head("here")])()).toBe(0);
    expect(gets()).toBe(3);
    expect(await ahead.takeHead(head("here", 60))).toBeUndefined();
    expect((await ahead.takeHead(head("here")))?.bytes).toEqual(noise(1, 100).slice(0, 50));
    for (const key of ["here", "absent", "fails", "never"]) expect(await ahead.takeHead(head(key))).toBeUndefined();
    expect([gets(), forget(), ahead.pendingCount]).toEqual([3, 0, 0]);
  });

  it("are forgotten with the bytes that came in vain", async () => {
    const { ahead } = await open({ a: noise(1, 100), b: noise(2, 30), fails: new Error("down") });
    const forget = ahead.beginHeads([head("a"), head("b"), head("absent"), head("fails")]);
    await ahead.takeHead(head("b"));
    await new Promise((resolve) => setImmediate(resolve));
    expect([forget(), forget(), ahead.pendingCount]).toEqual([50, 0, 0]);
  });
});

describe("summaries of whole runs", () => {
  const RUN_TOKENS = 128;
  const settings = { summaryRunTokens: RUN_TOKENS };

  /** A session of 900 tokens in a store, and a fresh engine over it. */
  async function stored() {
    const store = new MemoryStore();
    const session = new TestSession("s", { policy: "quest", budgetTokens: 128, exact: true });
    const writer = await openForTest({ store, settings }, untilIdle);
    await session.turn(writer, randomIds(1, 900));
    await untilIdle(writer);
    await writer.persister.flush();
    const expected = await session.fork("resident").turn(writer, randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });
    return { store, session, expected };
  }

  it("are asked for behind the manifest, before it has come, and once", async () => {
    const { store, session, expected } = await stored();
    const asked: string[] = [];
    const askedFirst: string[] = [];
    const enough = Promise.withResolvers<void>();
    const get = store.get.bind(store);
    store.get = async (key, options) => {
      // Of summaries the heads: what is behind them is asked for later.
      if (!options?.range || (key.includes("/sum-") && options.range.offset === 0)) asked.push(key);
      else if (key.includes("/seg/") && askedFirst.length === 0) askedFirst.push(...asked);
      if (asked.filter((name) => name.includes("/sum-min-max/")).length === 6) enough.resolve();
      // The manifest comes only once six of the seven whole runs have been asked for.
      if (key.includes("/session/")) await enough.promise;
      return await get(key, options);
    };
    const fresh = await openForTest({ store, settings }, untilIdle);
    const found = await session.turn(fresh, randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.recomputedTokens).toBe(0);
    expect(asked[0]).toContain("/session/");
    expect(new Set(asked).size).toBe(asked.length);
    // All of them before the first block.
    expect(askedFirst.filter((name) => name.includes("/sum-"))).toEqual(asked.filter((name) => name.includes("/sum-")));
    // Of the other kind, which nobody scores, none.
    expect(asked.filter((name) => name.includes("/sum-mean"))).toEqual([]);
  });

  it("are read again where they were not there yet, and looked for in vain where the log was never stored", async () => {
    const { store, session, expected } = await stored();
    const get = store.get.bind(store);
    let hasManifest = false;
    store.get = async (key, options) => {
      if (key.includes("/sum-") && !hasManifest) return undefined;
      // What was asked for behind the manifest is answered before it.
      if (key.includes("/session/")) await new Promise<void>((resolve) => setImmediate(resolve));
      hasManifest ||= key.includes("/session/");
      return await get(key, options);
    };
    const fresh = await openForTest({ store, settings: { ...settings, absentMs: 0 } }, untilIdle);
    const found = await session.turn(fresh, randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });
    expect(found.logprobs).toEqual(expected.logprobs);
    expect([hasManifest, found.usage.recomputedTokens]).toEqual([true, 0]);
    store.get = async () => undefined;
    const alone = await openForTest({ store, settings }, untilIdle);
    const other = session.fork("never stored");
    other.ids.length -= 41;
    other.spans = other.spans.slice(0, -1);
    const computed = await other.turn(alone, randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });
    expect(computed.usage.cachedTokens).toBe(0);
  });
});

describe("the first burst", () => {
  it("is under way before the summaries have come, and nothing of it is read twice", async () => {
    const store = new MemoryStore();
    const open = async () => {
      return openForTest({ store, settings: { segmentTokens: 256 } }, untilIdle);
    };
    const session = new TestSession("s", { policy: "quest", budgetTokens: 128, exact: true });
    const writer = await open();
    await session.turn(writer, randomIds(1, 900));
    await untilIdle(writer);
    await writer.persister.flush();
    const expected = await session.fork("resident").turn(writer, randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });

    const asked: string[] = [];
    const burst = Promise.withResolvers<void>();
    const get = store.get.bind(store);
    store.get = async (key, options) => {
      if (options?.range) asked.push(`${key}@${options.range.offset}+${options.range.bytes}`);
      if (asked.filter((name) => name.includes("/seg/")).length >= 4) burst.resolve();
      // Summaries come only once the burst has been asked for.
      if (key.includes("/sum-")) await burst.promise;
      return await get(key, options);
    };
    const found = await session.turn(await open(), randomIds(2, 40), { topLogprobs: 0, maxTokens: 1 });
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.recomputedTokens).toBe(0);
    expect(new Set(asked).size).toBe(asked.length);
  });
});
