/** One sequence's trouble stays its own, and every request ends exactly once whatever happens around it. */
import { describe, expect, it } from "vitest";
import type { GenerateRequest, SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { type GetOptions, StoreError } from "../../storage/contract.ts";
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

const plain = (seed: number, fields: Partial<GenerateRequest> = {}) =>
  request({ tokens: idsToBytes(randomIds(seed, 100)), ...fields });

/** A store whose segments can be slow, missing, or silent for ever. */
class Troubled extends MemoryStore {
  readonly #inner: MemoryStore;
  trouble: (key: string, options: GetOptions | undefined) => Promise<void> = async () => {};
  constructor(inner: MemoryStore) {
    super();
    this.#inner = inner;
  }
  override async get(...args: Parameters<MemoryStore["get"]>) {
    await this.trouble(args[0], args[1]);
    return await this.#inner.get(...args);
  }
  override put(...args: Parameters<MemoryStore["put"]>) {
    return this.#inner.put(...args);
  }
}

async function storedSession(): Promise<{ store: MemoryStore; session: TestSession }> {
  const store = new MemoryStore();
  const engine = await openForTest({ store });
  const session = new TestSession("s", QUEST);
  await session.turn(engine, randomIds(1, 500));
  await session.turn(engine, randomIds(2, 60));
  await untilIdle(engine);
  await engine.persister.flush();
  return { store, session };
}

describe("blocks that are lost while their sequence is attached", () => {
  it("are computed again, also when another sequence's steps noticed the loss before", async () => {
    const { store, session } = await storedSession();
    const expected = await session.fork("s").turn(await openForTest({ store }), randomIds(3, 30));
    const troubled = new Troubled(store);
    let reads = 0;
    troubled.trouble = async (key) => {
      if (!key.includes("/seg/")) return;
      if (reads++ === 0) throw new StoreError("unavailable", "gone");
      await new Promise((resolve) => setTimeout(resolve, 60));
    };
    const engine = await openForTest({ store: troubled, settings: { turnMsMax: 25_000 } });
    const busy = generate(engine, plain(5, { maxTokens: 300 }));
    const turn = await session.turn(engine, randomIds(3, 30));
    expect(turn.ids).toEqual(expected.ids);
    expect(turn.usage.recomputedTokens).toBeGreaterThanOrEqual(64);
    expect(turn.usage.cachedTokens + turn.usage.recomputedTokens).toBe(500 + 16 + 60 + 16);
    expect((await busy).ids).toHaveLength(300);
    await expectNothingHeld(engine);
  });
});

describe("a provenance that this engine cannot replay", () => {
  it("is computed as dense, and no other request notices", async () => {
    const engine = await openForTest();
    const tokens = randomIds(1, 400);
    const turn = (how: string) =>
      generate(
        engine,
        request({ tokens: idsToBytes([...tokens, 1]), turnStart: 400, spans: [{ end: 400, how }], selection: QUEST }),
      );
    const other = generate(engine, plain(2, { maxTokens: 60 }));
    const dense = await turn("dense");
    const newer = await turn("quest.9:128@16");
    const known = await turn("quest.1:128@16");
    expect(newer.ids).toEqual(dense.ids);
    expect(newer.usage.cachedTokens, "it is what it is called").toBe(400);
    expect(known.usage.cachedTokens).toBe(128);
    expect((await other).ids).toHaveLength(60);
    await expectNothingHeld(engine);
  });
});

describe("exactly one terminal event", () => {
  /** Collects what a sink is told. */
  function watch(engine: TestEngine, fields: GenerateRequest) {
    const events: string[] = [];
    const ticket = engine.engine.submit(fields, {
      token() {},
      done: (reason) => void events.push(reason),
      failed: (error) => void events.push(String((error as { code?: string }).code ?? error)),
    });
    return { events, ticket };
  }

  async function stalled(settings = {}) {
    const { store, session } = await storedSession();
    const troubled = new Troubled(store);
    let release = () => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    troubled.trouble = () => held;
    const engine = await openForTest({ store: troubled, settings });
    const { events, ticket } = watch(
      engine,
      request({
        session: { id: "s" },
        tokens: idsToBytes([...session.ids, 1]),
        turnStart: session.ids.length,
        spans: session.spans,
        selection: QUEST,
      }),
    );
    await new Promise((resolve) => setTimeout(resolve, 20));
    return { engine, events, ticket, release };
  }

  it("comes at once for a request that is cancelled while the store is silent; its memory follows", async () => {
    const { engine, events, ticket, release } = await stalled();
    ticket.cancel();
    await expect.poll(() => events, { timeout: 20_000 }).toEqual(["cancelled"]);
    expect(engine.engine.status.runningCount).toBe(1);
    release();
    await expectNothingHeld(engine);
    expect(events).toEqual(["cancelled"]);
  });

  it("comes when the turn's time is over, though nothing else happens", async () => {
    const { engine, events, release } = await stalled({ turnMsMax: 300 });
    await expect.poll(() => events, { timeout: 20_000 }).toEqual(["deadline_exceeded"]);
    release();
    await expectNothingHeld(engine);
    expect(events).toEqual(["deadline_exceeded"]);
  });

  it("comes when the engine stops before the store answers", async () => {
    const { engine, events, release } = await stalled();
    const stopped = engine.engine.stop(0);
    await expect.poll(() => events, { timeout: 20_000 }).toEqual(["cancelled"]);
    release();
    await stopped;
    expect(events).toEqual(["cancelled"]);
  });

  it("comes for everyone whose steps fail; the process goes on and holds nothing", async () => {
    const engine = await openForTest();
    const step = engine.runner.step.bind(engine.runner);
    let steps = 0;
    engine.runner.step = async (sequences) => {
      if (++steps >= 4) throw new Error("the device is gone");
      return await step(sequences);
    };
    const watched = [1, 2, 3].map((seed) => watch(engine, plain(seed, { session: { id: `s${seed}` } })));
    await expect.poll(() => watched.map(({ events }) => events.length), { timeout: 20_000 }).toEqual([1, 1, 1]);
    expect(watched.flatMap(({ events }) => events)).toEqual(Array(3).fill("Error: the device is gone"));
    await expectNothingHeld(engine);
    engine.runner.step = step;
    const next = await generate(engine, plain(1, { session: { id: "s1" } }));
    expect(next.ids).toEqual((await generate(await openForTest(), plain(1))).ids);
    await expectNothingHeld(engine);
  });

  it("a listener that throws ends its own request only", async () => {
    const engine = await openForTest();
    const fields = plain(1, { maxTokens: 30, session: { id: "broken" } });
    engine.engine.submit(fields, {
      token: () => {
        throw new Error("nobody listens");
      },
      done: () => {
        throw new Error("nobody listens");
      },
      failed: () => {
        throw new Error("nobody listens");
      },
    });
    const other = await generate(engine, plain(2, { maxTokens: 30 }));
    expect(other.ids).toHaveLength(30);
    await expectNothingHeld(engine);
    expect((await generate(engine, { ...fields, requestId: "again" })).ids).toHaveLength(30);
  });
});

describe("room", () => {
  it("few open slots and few rows make turns slower, not stuck", async () => {
    const engine = await openForTest({ openSlotCount: 6, rowsMax: 48, settings: { runningMax: 32 } });
    const results = await Promise.all([1, 2, 3, 4, 5, 6, 7].map((seed) => generate(engine, plain(seed))));
    expect(results.map(({ ids }) => ids.length)).toEqual(Array(7).fill(16));
    await expectNothingHeld(engine);
  });
});
