import { describe, expect, it } from "vitest";
import type { Ticket } from "../../engine/engine.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { commitManifest, loadManifest } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  untilIdle,
} from "./harness.ts";

const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };

describe("sharing", () => {
  it("serves a repeated prompt from the device, also to another session of the tenant, never to another tenant", async () => {
    const engine = await openForTest();
    const tokens = idsToBytes(randomIds(1, 200));
    const first = await generate(engine, request({ tokens }));
    const again = await generate(engine, request({ tokens, session: { id: "other" } }));
    const stranger = await generate(engine, request({ tokens, namespace: "fedcba9876543210" }));
    expect(first.usage.cachedTokens).toBe(0);
    expect(again.usage.cachedTokens).toBe(199);
    expect(stranger.usage.cachedTokens).toBe(0);
    expect([again.ids, stranger.ids]).toEqual([first.ids, first.ids]);
    await expectNothingHeld(engine);
  });

  it("does not share what a policy computed with a dense request, and does share what lies below its budget", async () => {
    const engine = await openForTest();
    const session = new TestSession("s", QUEST);
    await session.turn(engine, randomIds(1, 300));
    await session.turn(engine, randomIds(2, 100));
    const dense = await generate(engine, request({ tokens: idsToBytes([...session.ids, 1]) }));
    // 300 tokens of a dense first turn; the block that the second turn completed was attended with selection.
    expect(dense.usage.cachedTokens).toBe(256);
    const below = new TestSession("b", QUEST);
    await below.turn(engine, randomIds(5, 40));
    await below.turn(engine, randomIds(6, 30));
    await untilIdle(engine);
    const shared = await generate(engine, request({ tokens: idsToBytes([...below.ids, 1]) }));
    expect(shared.usage.cachedTokens).toBe(below.ids.length);
    await expectNothingHeld(engine);
  });

  it("forks read their parent's pages from the store", async () => {
    const store = new MemoryStore();
    const engine = await openForTest({ store });
    const parent = new TestSession("parent", QUEST);
    await parent.turn(engine, randomIds(1, 400));
    await untilIdle(engine);
    await engine.persister.flush();
    const expected = await parent.fork("x").turn(engine, randomIds(2, 40));
    const fresh = await openForTest({ store });
    const child = await parent
      .fork("child")
      .turn(fresh, randomIds(2, 40), { session: { id: "child", parentId: "parent" } });
    expect(child.ids).toEqual(expected.ids);
    expect(child.usage.cachedTokens).toBe(parent.ids.length);
    expect(child.usage.source.store).toBe(parent.ids.length);
    await expectNothingHeld(fresh);
  });

  it("goes on after a log that was cut, with what still agrees", async () => {
    const engine = await openForTest();
    const session = new TestSession("s", DENSE);
    await session.turn(engine, randomIds(1, 150));
    session.ids.length = 140;
    session.spans = [{ end: 140, how: "dense" }];
    const result = await session.turn(engine, randomIds(3, 20));
    expect(result.usage.cachedTokens).toBe(140);
    const oracle = await generate(await openForTest(), request({ tokens: idsToBytes([...session.ids.slice(0, 160)]) }));
    expect(result.ids).toEqual(oracle.ids);
    await expectNothingHeld(engine);
  });
});

describe("numerics do not depend on company or on chunks", () => {
  it("gives every sequence of a mixed batch what it gets alone", async () => {
    const selections: SelectionRequest[] = [
      DENSE,
      QUEST,
      { policy: "mean-deviation", budgetTokens: 128, exact: true },
      { policy: "streaming", budgetTokens: 128, exact: true },
      { policy: "tokenselect", budgetTokens: 160, exact: true },
    ];
    const run = async (engine: TestEngine, index: number) => {
      const session = new TestSession(`s${index}`, selections[index]!);
      const first = await session.turn(engine, randomIds(10 + index, 150 + 40 * index));
      const second = await session.turn(engine, randomIds(20 + index, 90));
      return [first.ids, second.ids];
    };
    const together = await openForTest({ blockCount: 2 * 80, openSlotCount: 40 });
    const inCompany = await Promise.all(selections.map((_, index) => run(together, index)));
    for (const index of selections.keys()) {
      const alone = await openForTest({ rowsMax: 32 });
      expect(await run(alone, index)).toEqual(inCompany[index]);
    }
    await expectNothingHeld(together);
  });
});

describe("limits", () => {
  it("refuses one request more than the queue holds, with a time to come back", async () => {
    const engine = await openForTest({ settings: { runningMax: 1, queueMax: 2 } });
    const running = [1, 2].map((seed) => generate(engine, request({ tokens: idsToBytes(randomIds(seed, 80)) })));
    expect(() =>
      engine.engine.submit(request({ tokens: idsToBytes([1]) }), { token() {}, done() {}, failed() {} }),
    ).toThrow(expect.objectContaining({ code: "queue_full", retryAfterMs: expect.any(Number) }));
    await Promise.all(running);
    await expectNothingHeld(engine);
  });

  it("refuses what the pool can never hold and queues what it cannot hold now", async () => {
    const engine = await openForTest({ blockCount: 2 * 6 });
    expect(() =>
      engine.engine.submit(request({ tokens: idsToBytes(randomIds(1, 1_000)) }), {
        token() {},
        done() {},
        failed() {},
      }),
    ).toThrow(expect.objectContaining({ code: "context_length_exceeded", message: expect.stringContaining("pool") }));
    const results = await Promise.all(
      [1, 2, 3, 4].map((seed) => generate(engine, request({ tokens: idsToBytes(randomIds(seed, 300)) }))),
    );
    expect(results.map((result) => result.reason)).toEqual(["length", "length", "length", "length"]);
    await expectNothingHeld(engine);
  });

  it("evicts idle conversations and finds them again in the store", async () => {
    const store = new MemoryStore();
    const small = await openForTest({ store, blockCount: 2 * 10 });
    const roomy = await openForTest({ blockCount: 2 * 64 });
    const sessions = [0, 1, 2].map((index) => new TestSession(`s${index}`, QUEST));
    const expected = sessions.map((session) => new TestSession(session.id, QUEST));
    for (let turn = 0; turn < 3; turn++) {
      for (const [index, session] of sessions.entries()) {
        const prompt = randomIds(100 * turn + index, 100);
        const result = await session.turn(small, prompt);
        expect(result.ids).toEqual((await expected[index]!.turn(roomy, prompt)).ids);
        if (turn > 0) expect(result.usage.recomputedTokens).toBe(0);
        await untilIdle(small);
        await small.persister.flush();
      }
    }
    await expectNothingHeld(small);
  });
});

describe("aborts", () => {
  it("frees everything whenever it comes", async () => {
    const store = new MemoryStore();
    const writer = await openForTest({ store });
    const session = new TestSession("s", QUEST);
    await session.turn(writer, randomIds(1, 600));
    await untilIdle(writer);
    await writer.persister.flush();
    for (let delay = 0; delay < 24; delay++) {
      const engine = await openForTest({ store, rowsMax: 32 });
      const copy = session.fork("s");
      const turn = copy.turn(engine, randomIds(2, 120), {
        session: { id: `s` },
      });
      const cancelled = generate(
        engine,
        request({ tokens: idsToBytes(randomIds(9, 200)), maxTokens: 64 }),
        (ticket: Ticket) => {
          let ticks = delay * 2;
          const tick = () => {
            if (ticks === 0) ticket.cancel();
            else {
              ticks -= 1;
              setImmediate(tick);
            }
          };
          tick();
        },
      );
      const [kept, gone] = await Promise.all([turn, cancelled]);
      expect(kept.reason).toBe("length");
      expect(["cancelled", "length"]).toContain(gone.reason);
      await expectNothingHeld(engine);
    }
  });

  it("keeps what an aborted turn computed for the next one", async () => {
    const store = new MemoryStore();
    const engine = await openForTest({ store });
    const session = new TestSession("s", DENSE);
    await session.turn(engine, randomIds(1, 100));
    const before = session.ids.length;
    const aborted = await generate(
      engine,
      request({
        session: { id: "s" },
        tokens: idsToBytes([...session.ids, ...randomIds(2, 80)]),
        turnStart: before,
        spans: session.spans,
        maxTokens: 200,
        selection: DENSE,
      }),
      (ticket, ids) => {
        const leave = (): unknown => (ids.length >= 3 ? ticket.cancel() : setImmediate(leave));
        leave();
      },
    );
    expect(aborted.reason).toBe("cancelled");
    session.ids.push(...randomIds(2, 80), ...aborted.ids);
    session.spans = aborted.spans;
    const next = await session.turn(engine, [1, 2, 3]);
    expect(next.usage.cachedTokens).toBeGreaterThanOrEqual(before + 79);
    const oracle = await generate(
      await openForTest(),
      request({ tokens: idsToBytes(session.ids.slice(0, -next.ids.length)) }),
    );
    expect(next.ids).toEqual(oracle.ids);
    await expectNothingHeld(engine);
  });
});

describe("default mode", () => {
  it("answers without waiting, counts what it missed, and keeps approximate KV to its session", async () => {
    const store = new MemoryStore();
    const writer = await openForTest({ store });
    const selection: SelectionRequest = { ...QUEST, exact: false };
    const session = new TestSession("s", selection);
    const first = await session.turn(writer, randomIds(1, 900));
    expect(first.usage.pagesMissed).toBe(0);
    await untilIdle(writer);
    await writer.persister.flush();

    const slow = new SlowRanges(store, 30);
    // With them, the first burst brings everything that this turn chooses.
    await withoutHotBlocks(store);
    const fresh = await openForTest({ store: slow, settings: { missWaitMs: 0 } });
    const second = await session.turn(fresh, randomIds(2, 100));
    expect(second.usage.pagesMissed).toBeGreaterThan(0);
    expect(second.spans.some((span) => span.how.includes("~"))).toBe(true);
    await expectNothingHeld(fresh);

    const patient = await openForTest({ store: slow, settings: { missWaitMs: 60_000 } });
    const copy = session.fork("s");
    copy.ids.length = 916;
    copy.spans = first.spans;
    const waited = await copy.turn(patient, randomIds(2, 100));
    const resident = new TestSession("s", selection);
    await resident.turn(writer, randomIds(1, 900));
    const expected = await resident.turn(writer, randomIds(2, 100));
    expect(waited.ids[0]).toBe(expected.ids[0]);
    await expectNothingHeld(patient);
  });

  it("ends a wait whose blocks do not come, long before the store's deadline", async () => {
    const store = new StallingBlocks();
    const writer = await openForTest({ store });
    const session = new TestSession("s", { ...QUEST, exact: false });
    await session.turn(writer, randomIds(1, 900));
    await untilIdle(writer);
    await writer.persister.flush();
    await withoutHotBlocks(store);
    const fresh = await openForTest({ store, settings: { missWaitMs: 200 } });
    const { runner } = fresh;
    const step = runner.step.bind(runner);
    // The store is well until the turn has begun to compute, and answers nothing for its blocks from then on.
    runner.step = (sequences) => {
      store.isStalled = true;
      return step(sequences);
    };
    const { usage, spans } = await session.turn(fresh, randomIds(2, 30), { maxTokens: 1 });
    expect(usage.firstTokenMs).toBeGreaterThanOrEqual(199);
    expect(usage.firstTokenMs).toBeLessThan(2_500);
    expect(usage.pagesMissed).toBeGreaterThan(0);
    expect(spans.some((span) => span.how.includes("~"))).toBe(true);
    store.release();
    await expectNothingHeld(fresh);
  });
});

/** Ranges of segments are answered when it is released, once it is stalled. */
class StallingBlocks extends MemoryStore {
  isStalled = false;
  readonly #released = Promise.withResolvers<void>();
  release(): void {
    this.#released.resolve();
  }
  override async get(...args: Parameters<MemoryStore["get"]>) {
    if (this.isStalled && args[1]?.range && args[0].includes("/seg/")) await this.#released.promise;
    return await super.get(...args);
  }
}

async function withoutHotBlocks(store: MemoryStore): Promise<void> {
  const { keys } = await store.list("kv/");
  const { key } = keys.find((item) => item.key.includes("/session/"))!;
  const { manifest, etag } = (await loadManifest(store, key))!;
  expect(manifest.hotBlocks.flat().length).toBeGreaterThan(0);
  await commitManifest(store, key, { ...manifest, hotBlocks: [] }, etag);
}

/** A store whose range reads take their time. */
class SlowRanges extends MemoryStore {
  readonly #inner: MemoryStore;
  readonly #delayMs: number;
  constructor(inner: MemoryStore, delayMs: number) {
    super();
    this.#inner = inner;
    this.#delayMs = delayMs;
  }
  override async get(...args: Parameters<MemoryStore["get"]>) {
    if (args[1]?.range) await new Promise((resolve) => setTimeout(resolve, this.#delayMs));
    return await this.#inner.get(...args);
  }
  override put(...args: Parameters<MemoryStore["put"]>) {
    return this.#inner.put(...args);
  }
  override delete(...args: Parameters<MemoryStore["delete"]>) {
    return this.#inner.delete(...args);
  }
  override list(...args: Parameters<MemoryStore["list"]>) {
    return this.#inner.list(...args);
  }
}

describe("stopping", () => {
  it("ends an idle engine whichever moment of its loop it comes in", async () => {
    for (let ticks = 0; ticks < 16; ticks++) {
      const engine = await openForTest();
      for (let tick = 0; tick < ticks; tick++) await Promise.resolve();
      await engine.engine.stop(1000);
    }
  });
});
