import { describe, expect, it } from "vitest";
import type { ResumeMode, SelectionRequest } from "../../protocol/generate.ts";
import type { GetOptions, StoreObject } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const PROMPTS = [randomIds(1, 700), randomIds(2, 60)];
const SELECTION: SelectionRequest = { policy: "streaming", budgetTokens: 128, exact: true };

/** Every read takes so long. */
class SlowStore extends MemoryStore {
  readMs = 0;
  override async get(key: string, options?: GetOptions): Promise<StoreObject | undefined> {
    if (this.readMs > 0) await new Promise((resolve) => setTimeout(resolve, this.readMs));
    return await super.get(key, options);
  }
}

async function open(store: MemoryStore, resume?: ResumeMode): Promise<TestEngine> {
  return openForTest({ store, ...(resume ? { settings: { resume } } : {}) });
}

/** A session after one turn, in a store, and what its second turn says on the engine that had the first. */
async function stored(): Promise<{ store: SlowStore; session: TestSession; expected: number[] }> {
  const store = new SlowStore();
  const first = await open(store);
  const session = new TestSession("s", SELECTION);
  await session.turn(first, PROMPTS[0]!);
  await untilIdle(first);
  await first.persister.flush();
  const calm = await open(new MemoryStore());
  const twin = new TestSession("s", SELECTION);
  await twin.turn(calm, PROMPTS[0]!);
  return { store, session, expected: (await twin.turn(calm, PROMPTS[1]!)).ids };
}

describe("a session comes back", () => {
  it.each(["lazy", "full", "recompute"] as const)(
    "%s: as asked, with the same reply, and can go on",
    async (resume) => {
      const { store, session, expected } = await stored();
      const cached = session.ids.length;
      const engine = await open(store);
      const { ids, usage } = await session.turn(engine, PROMPTS[1]!, { resume });
      expect(ids).toEqual(expected);
      expect(usage.resume).toEqual({ mode: resume, asked: resume });
      const whole = Math.floor(cached / 64) * 4 * engine.runner.config.layerCount;
      if (resume === "recompute") {
        expect(usage).toMatchObject({ cachedTokens: 0, recomputedTokens: cached, pagesFetched: 0 });
      } else {
        expect(usage).toMatchObject({ cachedTokens: cached, recomputedTokens: 0 });
      }
      if (resume === "full") expect(usage.pagesBeforeFirstToken).toBe(whole);
      if (resume === "lazy") {
        expect(usage.pagesBeforeFirstToken).toBeGreaterThan(0);
        expect(usage.pagesBeforeFirstToken).toBeLessThan(whole);
      }
      // The manifest that was read is replaced, whatever became of the pages it names.
      await untilIdle(engine);
      await engine.persister.flush();
      const next = await session.turn(await open(store), randomIds(3, 20));
      expect(next.usage).toMatchObject({
        recomputedTokens: 0,
        cachedTokens: session.ids.length - 20 - next.ids.length,
      });
    },
  );

  it("lazily, also where the store takes one call at a time", async () => {
    const { store, session, expected } = await stored();
    const engine = await openForTest({ store, settings: { storeConcurrency: 1 } });
    // Slow enough that what was begun ahead still waits for its place when it is asked for.
    store.readMs = 4;
    const { ids, usage } = await session.turn(engine, PROMPTS[1]!, { selection: { ...SELECTION, policy: "quest" } });
    expect(ids).toHaveLength(expected.length);
    expect(usage).toMatchObject({ recomputedTokens: 0, resume: { mode: "lazy" } });
  });

  it("the engine's setting holds where the request says nothing, and is overruled where it does", async () => {
    const { store, session } = await stored();
    const { usage } = await session.turn(await open(store, "recompute"), PROMPTS[1]!);
    expect(usage.resume).toEqual({ mode: "recompute", asked: "recompute" });
    const again = await stored();
    const overruled = await again.session.turn(await open(again.store, "recompute"), PROMPTS[1]!, { resume: "full" });
    expect(overruled.usage.resume).toMatchObject({ mode: "full", asked: "full" });
  });

  it("auto: lazily on an engine that knows nothing, from the log where the store turned out slow", async () => {
    const { store, session, expected } = await stored();
    const fresh = await session.turn(await open(store), PROMPTS[1]!, { resume: "auto" });
    expect(fresh.ids).toEqual(expected);
    expect(fresh.usage.resume).toMatchObject({ mode: "lazy", asked: "auto" });

    const slow = await stored();
    slow.store.readMs = 120;
    const engine = await open(slow.store);
    // It learns what rows cost and reads take from a session of its own.
    const other = new TestSession("other", SELECTION);
    await other.turn(engine, randomIds(9, 700));
    await untilIdle(engine);
    await engine.persister.flush();
    engine.evictIdle();
    await other.turn(engine, randomIds(10, 20), { resume: "full" });
    const { ids, usage } = await slow.session.turn(engine, PROMPTS[1]!, { resume: "auto" });
    expect(ids).toEqual(slow.expected);
    const { mode, predictedMs } = usage.resume ?? {};
    const best = Object.entries(predictedMs ?? {}).sort(([, a], [, b]) => a - b)[0]?.[0];
    expect(Object.keys(predictedMs ?? {}).sort()).toEqual(["full", "lazy", "recompute"]);
    expect(mode).toBe(best);
    expect(predictedMs?.full).toBeGreaterThan(120);
  });
});
