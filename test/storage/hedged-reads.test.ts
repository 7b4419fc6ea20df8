import { describe, expect, it } from "vitest";
import type { GetOptions, StoreObject } from "../../storage/contract.ts";
import { StoreError } from "../../storage/contract.ts";
import { HedgedStore } from "../../storage/hedged-reads.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { ReadTimes } from "../../storage/read-times.ts";
import { VirtualProcess, VirtualTime } from "../sim/virtual-time.ts";
import { seededRandom } from "./random.ts";

const CHAIN = "ab".repeat(32);
const SEGMENT = `kv/0123456789abcdef/f.n.2-x/seg/${CHAIN}`;
const MANIFEST = `kv/0123456789abcdef/f.n.2-x/session/${CHAIN}`;
const RANGE = { offset: 0, bytes: 8 };

/** A store whose n-th read takes as long as a script says; a read that fails does so after its time. */
class Scripted extends MemoryStore {
  readonly reads: { atMs: number; aborted: boolean }[] = [];
  readonly #time: VirtualTime;
  readonly #script: (read: number) => { ms: number; fails?: boolean };

  constructor(time: VirtualTime, script: (read: number) => { ms: number; fails?: boolean }) {
    super();
    this.#time = time;
    this.#script = script;
  }

  override async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    const { ms, fails } = this.#script(this.reads.length);
    const read = { atMs: this.#time.nowMs, aborted: false };
    this.reads.push(read);
    await new Promise<void>((resolve, reject) => {
      options.signal?.addEventListener("abort", () => {
        read.aborted = true;
        reject(new StoreError("aborted", "given up"));
      });
      this.#time.after(ms, resolve);
    });
    if (fails) throw new StoreError("unavailable", `read took ${ms} ms and failed`);
    return super.get(key, { ...options, signal: undefined });
  }
}

async function open(script: (read: number) => { ms: number; fails?: boolean }, hedgeShareMax = 0.5) {
  const time = new VirtualTime();
  const inner = new Scripted(time, script);
  await inner.put(SEGMENT, new Uint8Array(64).fill(7));
  const { clock } = new VirtualProcess(time);
  const store = new HedgedStore(inner, { clock, hedgeShareMax, absentMs: 2_000 });
  const read = () => store.get(SEGMENT, { range: RANGE });
  const readMany = async (count: number) => {
    for (let index = 0; index < count; index++) await read();
  };
  return { time, inner, store, read, readMany, run: <T>(work: Promise<T>) => time.run(work, 100_000) };
}

describe("a hedged store", () => {
  it("asks again for a read that is late, takes the first answer and aborts the other", async () => {
    const { time, inner, store, read, readMany, run } = await open((index) => ({ ms: index === 20 ? 900 : 30 }));
    await run(readMany(20));
    const startMs = time.nowMs;
    const object = await run(read());
    expect(object?.bytes).toEqual(new Uint8Array(8).fill(7));
    // Late after 30 ms, as 95 of 100 reads were over by then; the second request takes 30 ms itself.
    expect(time.nowMs - startMs).toBe(60);
    expect(inner.reads.slice(20)).toEqual([
      { atMs: startMs, aborted: true },
      { atMs: startMs + 30, aborted: false },
    ]);
    expect(store.counts).toMatchObject({ reads: 21, hedges: 1, hedgesWon: 1 });
  });

  it("keeps the first answer when the second request is the slower one", async () => {
    const { time, inner, store, read, readMany, run } = await open((index) => ({ ms: [45, 500][index - 20] ?? 30 }));
    await run(readMany(20));
    const startMs = time.nowMs;
    await run(read());
    expect(time.nowMs - startMs).toBe(45);
    expect(inner.reads.map(({ aborted }) => aborted).slice(20)).toEqual([false, true]);
    expect(store.counts).toMatchObject({ hedges: 1, hedgesWon: 0 });
  });

  it("fails only when both requests have failed, and at once where there is one", async () => {
    const { time, read, readMany, run } = await open((index) =>
      index < 20
        ? { ms: 30 }
        : (([{ ms: 50, fails: true }, { ms: 40 }, { ms: 20, fails: true }] as const)[index - 20] ?? { ms: 1 }),
    );
    await run(readMany(20));
    const startMs = time.nowMs;
    expect((await run(read()))?.bytes).toHaveLength(8);
    expect(time.nowMs - startMs).toBe(70);
    await expect(run(read())).rejects.toThrow("read took 20 ms and failed");
  });

  it("never asks again more often than its share, however slow the store becomes", async () => {
    const { inner, store, readMany, run } = await open((index) => ({ ms: index < 40 ? 30 : 30 + index }), 0.1);
    await run(readMany(240));
    expect(store.counts.reads).toBe(240);
    expect(store.counts.hedges).toBeGreaterThan(0);
    expect(store.counts.hedges).toBeLessThanOrEqual(24);
    expect(inner.reads).toHaveLength(240 + store.counts.hedges);
  });

  it("hedges nothing while it knows too few reads, and nothing with a share of 0", async () => {
    const few = await open(() => ({ ms: 500 }));
    await few.run(few.readMany(19));
    expect(few.store.counts.hedges).toBe(0);
    const never = await open((index) => ({ ms: index === 30 ? 900 : 30 }), 0);
    await never.run(never.readMany(40));
    expect(never.inner.reads).toHaveLength(40);
  });

  it("remembers what was absent for a while, until it is put; manifests are asked for each time", async () => {
    const { time, inner, store, run } = await open(() => ({ ms: 30 }));
    const absent = SEGMENT.replace("ab", "cd");
    expect(await run(store.get(absent))).toBeUndefined();
    expect(await run(store.get(absent))).toBeUndefined();
    expect(inner.reads).toHaveLength(1);
    expect(store.counts.knownAbsent).toBe(1);
    await run(time.sleep(2_000));
    await run(store.get(absent));
    expect(inner.reads).toHaveLength(2);
    await store.put(absent, new Uint8Array(3));
    expect((await run(store.get(absent)))?.bytes).toHaveLength(3);
    for (let read = 0; read < 2; read++) await run(store.get(MANIFEST));
    expect(inner.reads).toHaveLength(5);
  });

  it("asks its clock for whole milliseconds, on a machine whose times are no whole numbers", async () => {
    const inner = new MemoryStore();
    await inner.put(SEGMENT, new Uint8Array(64));
    let nowMs = 0.3;
    let answer: (() => void) | undefined;
    let isHeld = false;
    const slow = Object.assign(Object.create(inner) as MemoryStore, {
      async get() {
        nowMs += 12.345;
        if (isHeld) await new Promise<void>((resolve) => (answer = resolve));
        return await inner.get(SEGMENT);
      },
    });
    const deadlines: { ms: number; fire: () => void }[] = [];
    const clock = {
      nowMs: () => nowMs,
      deadline(ms: number) {
        // What `systemClock` is made of refuses fractions.
        AbortSignal.timeout(ms);
        const controller = new AbortController();
        deadlines.push({ ms, fire: () => controller.abort() });
        return controller.signal;
      },
    };
    const store = new HedgedStore(slow, { clock, hedgeShareMax: 0.5, absentMs: 0 });
    for (let read = 0; read < 20; read++) await store.get(SEGMENT);
    isHeld = true;
    const late = store.get(SEGMENT);
    isHeld = false;
    expect(deadlines.map(({ ms }) => ms)).toEqual([13]);
    deadlines[0]?.fire();
    expect((await late)?.bytes).toHaveLength(64);
    expect(store.counts).toMatchObject({ hedges: 1, hedgesWon: 1 });
    answer?.();
  });

  it("passes the caller's own abort on", async () => {
    const { inner, store } = await open(() => ({ ms: 500 }));
    const controller = new AbortController();
    const reading = store.get(SEGMENT, { signal: controller.signal });
    controller.abort();
    await expect(reading).rejects.toMatchObject({ code: "aborted" });
    expect(inner.reads[0]?.aborted).toBe(true);
  });
});

describe("read times", () => {
  /** Batches of reads over a link: each batch waits the latency, its bytes share one bandwidth. */
  function replay(link: { latencyMs: number; bytesPerMs: number }, batches: number[][]): ReadTimes {
    const times = new ReadTimes();
    let nowMs = 0;
    for (const batch of batches) {
      const ends = batch.map((bytes) => times.begin(nowMs, bytes));
      let freeMs = nowMs + link.latencyMs;
      for (const [index, bytes] of batch.entries()) {
        freeMs += bytes / link.bytesPerMs;
        ends[index]?.(freeMs, bytes);
      }
      nowMs = freeMs;
    }
    return times;
  }

  it("knows after how long 95 of 100 of the latest reads had ended", () => {
    const random = seededRandom(5);
    const times = new ReadTimes();
    const all: number[] = [];
    for (let read = 0; read < 1_000; read++) {
      // Few values, so that many are equal.
      const ms = Math.floor(random() * 40);
      times.begin(7, 4_096)(7 + ms, 4_096);
      all.push(ms);
      const latest = all.slice(-128).toSorted((a, b) => a - b);
      const expected = all.length < 20 ? undefined : latest[Math.ceil(latest.length * 0.95) - 1];
      expect(times.lateMs("small"), `after ${all.length} reads`).toBe(expected);
      expect(times.lateMs("large")).toBeUndefined();
    }
  });

  const small = Array.from({ length: 20 }, () => [4_096]);

  it.each([
    { latencyMs: 30, bytesPerMs: 200_000 },
    { latencyMs: 5, bytesPerMs: 25_000 },
    { latencyMs: 0.2, bytesPerMs: 2_000_000 },
  ])("finds latency and bandwidth of a link of %j", (link) => {
    expect(replay(link, small.slice(0, 2)).speed, "two small reads tell too little").toBeUndefined();
    for (const parallel of [1, 16]) {
      const large = Array.from({ length: 200 / parallel }, () => Array<number>(parallel).fill(300_000));
      const { speed } = replay(link, [...small, ...large]);
      expect(speed, `${parallel} at a time`).toBeDefined();
      expect(Math.abs((speed?.latencyMs ?? 0) / link.latencyMs - 1)).toBeLessThan(0.2);
      expect(Math.abs((speed?.bytesPerMs ?? 0) / link.bytesPerMs - 1)).toBeLessThan(0.2);
    }
  });
});
