/** The simulation itself: it is a function of its seed, and its parts do what lives rely on. The seeds are a step of `npm test`. */
import { describe, expect, it } from "vitest";
import { MemoryStore } from "../../storage/memory-store.ts";
import { uniform } from "../engine/tiny-model.ts";
import { SimStore } from "./sim-store.ts";
import { VirtualProcess, VirtualTime } from "./virtual-time.ts";
import { simulate } from "./world.ts";

function storeWith(time: VirtualTime, rates: SimStore["rates"]): { store: SimStore; inner: MemoryStore } {
  const inner = new MemoryStore({ now: () => time.nowMs });
  const store = new SimStore({ inner, time, random: uniform(1), rates, onChange: () => undefined });
  return { store, inner };
}

describe("a simulated life", () => {
  it("is a function of its seed", async () => {
    const first = await simulate(7);
    expect(first.faults + first.kills).toBeGreaterThan(0);
    expect(await simulate(7)).toEqual(first);
    expect(await simulate(8)).not.toEqual(first);
  });

  it("without faults reads its text from the store and computes nothing again that was committed", async () => {
    const report = await simulate(3, { rates: {}, rounds: 3 });
    expect(report.faults).toBe(0);
    expect(report.compared).toBeGreaterThan(3);
    expect(report.storeTokens).toBeGreaterThan(0);
  });
});

describe("virtual time", () => {
  it("passes in order of time, then of making, and only as far as it must", async () => {
    const time = new VirtualTime();
    const seen: string[] = [];
    for (const [name, ms] of [
      ["c", 30],
      ["a", 10],
      ["b", 10],
      ["never", 50],
    ] as const)
      time.after(ms, () => seen.push(name));
    await time.run(time.sleep(40), 100);
    expect(seen).toEqual(["a", "b", "c"]);
    expect(time.nowMs).toBe(40);
  });

  it("says so when work can never end", async () => {
    const time = new VirtualTime();
    await expect(time.run(new Promise(() => undefined), 100)).rejects.toThrow("nothing is left");
    const forever = async (): Promise<void> => {
      for (;;) await time.sleep(1);
    };
    await expect(time.run(forever(), 100)).rejects.toThrow("after 100 events");
  });

  it("a killed process hears of nothing more, but what it sent arrives", async () => {
    const time = new VirtualTime();
    const { store, inner } = storeWith(time, {});
    const process = new VirtualProcess(time);
    let heard = false;
    void store
      .line(process)
      .put("kv/aa/x", new Uint8Array([1]))
      .then(() => {
        heard = true;
      });
    process.kill();
    await time.run(time.sleep(100), 100);
    expect(heard).toBe(false);
    expect((await inner.get("kv/aa/x"))?.bytes).toEqual(new Uint8Array([1]));
  });

  it("a stalled call ends with its caller's deadline, and may take effect afterwards", async () => {
    const time = new VirtualTime();
    const { store, inner } = storeWith(time, { stall: 1 });
    const { clock } = new VirtualProcess(time);
    const line = store.line(new VirtualProcess(time));
    let late = 0;
    for (let index = 0; index < 20; index++) {
      const put = line.put(`kv/aa/${index}`, new Uint8Array([1]), { signal: clock.deadline(1000) });
      await expect(time.run(put, 100)).rejects.toThrow("deadline");
      if (await inner.get(`kv/aa/${index}`)) late += 1;
    }
    await time.run(time.sleep(100_000), 1000);
    const { keys } = await inner.list("kv/");
    expect(keys.length).toBeGreaterThan(late);
    expect(keys.length).toBeLessThan(20);
  });
});
