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
      if (asked.length >= 4) burst.resolve();
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
