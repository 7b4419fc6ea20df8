import { describe, expect, it } from "vitest";
import { MemoryStore } from "../../storage/memory-store.ts";
import { describeStore } from "./conformance.ts";
import { type FaultRates, faultyStore } from "./faulty-store.ts";

describeStore("faulty wrapper without faults, over memory", {
  open: async () => faultyStore(new MemoryStore(), { seed: 1, rates: {} }),
  rounds: 4,
  interruptible: false,
});

describe("faulty store", () => {
  const unavailable = { name: "StoreError", code: "unavailable" };
  const withRates = (rates: Partial<FaultRates>) => {
    const inner = new MemoryStore();
    return { inner, store: faultyStore(inner, { seed: 7, rates, delayMsMax: 5 }) };
  };
  const text = async (store: MemoryStore, key: string) => Buffer.from((await store.get(key))?.bytes ?? []).toString();

  it("makes each fault happen", async () => {
    const error = withRates({ error: 1 });
    await expect(error.store.put("a", Buffer.from("x"))).rejects.toMatchObject(unavailable);
    await expect(error.store.list("")).rejects.toMatchObject(unavailable);
    expect(await error.inner.get("a")).toBeUndefined();

    const lost = withRates({ lostAnswer: 1 });
    await expect(lost.store.put("a", Buffer.from("x"))).rejects.toMatchObject(unavailable);
    expect(await text(lost.inner, "a")).toBe("x");

    const torn = withRates({ tornWrite: 1 });
    expect((await torn.store.put("a", Buffer.from("0123456789"))).outcome).toBe("stored");
    expect((await text(torn.inner, "a")).length).toBeLessThan(10);

    const cut = withRates({ truncate: 1 });
    await cut.inner.put("a", Buffer.from("0123456789"));
    expect((await cut.store.get("a"))?.bytes.byteLength).toBeLessThan(10);
    expect((await cut.store.get("a"))?.objectBytes).toBe(10);

    const flip = withRates({ bitFlip: 1 });
    await flip.inner.put("a", new Uint8Array(10));
    const flipped = (await flip.store.get("a"))?.bytes ?? new Uint8Array(0);
    expect([...flipped].reduce((bits, byte) => bits + byte.toString(2).replaceAll("0", "").length, 0)).toBe(1);
    expect((await flip.inner.get("a"))?.bytes).toEqual(new Uint8Array(10));

    const delay = withRates({ delay: 1 });
    await delay.store.put("a", Buffer.from("x"));
    expect(delay.store.faults.delay).toBe(1);
  });

  it("reads what was there before, ranges too", async () => {
    const { store } = withRates({ staleRead: 1 });
    await store.put("a", Buffer.from("first"));
    expect(await store.get("a")).toBeUndefined();
    await store.put("a", Buffer.from("second"));
    expect(Buffer.from((await store.get("a"))?.bytes ?? []).toString()).toBe("first");
    const part = await store.get("a", { range: { offset: 1, bytes: 2 } });
    expect(Buffer.from(part?.bytes ?? []).toString()).toBe("ir");
    store.rates = {};
    expect(Buffer.from((await store.get("a"))?.bytes ?? []).toString()).toBe("second");
  });

  it("repeats its faults from the seed, and keeps to the keys it may touch", async () => {
    const run = async (seed: number): Promise<string> => {
      const store = faultyStore(new MemoryStore(), { seed, rates: { error: 0.5 }, only: (key) => key !== "safe" });
      let outcomes = "";
      for (let i = 0; i < 64; i++) {
        outcomes += await store.get("a").then(
          () => ".",
          () => "x",
        );
        await store.get("safe");
      }
      return outcomes;
    };
    expect(await run(3)).toBe(await run(3));
    expect(await run(3)).not.toBe(await run(4));
    expect(await run(3)).toMatch(/x/);
  });
});
