/** What an engine holds in memory and believes to be stored may have been collected as garbage: what names it next puts it again. */
import { expect, it } from "vitest";
import { type Clock, systemClock } from "../../../engine/settings.ts";
import type { SelectionRequest } from "../../../protocol/generate.ts";
import { LIMITS } from "../../../protocol/limits.ts";
import type { PageStore } from "../../../storage/contract.ts";
import { StoreError } from "../../../storage/contract.ts";
import { EncryptedStore } from "../../../storage/encrypted-store.ts";
import { collectGarbage, deleteSession } from "../../../storage/gc.ts";
import { parseKeyRing } from "../../../storage/key-ring.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { cacheOver, MemoryFiles } from "../../storage/cache-world.ts";
import { NAMESPACE, openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "../harness.ts";
import { CommitWorld } from "./commit-world.ts";

/** Time of which much passes at once: nobody waits for a collection. */
class LeapingClock implements Clock {
  #leaptMs = 0;
  nowMs = () => systemClock.nowMs() + this.#leaptMs;
  wallMs = systemClock.wallMs;
  sleep = systemClock.sleep;
  breathe = systemClock.breathe;
  deadline = systemClock.deadline;
  leap(ms: number): void {
    this.#leaptMs += ms;
  }
}

const DAY_MS = 86_400_000;
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };
const SHARED = randomIds(1, 400);

async function turn(engine: TestEngine, session: TestSession, prompt: readonly number[]): Promise<number> {
  const { usage } = await session.turn(engine, prompt);
  await untilIdle(engine);
  await engine.persister.flush();
  return usage.recomputedTokens;
}

async function collect(store: PageStore, sessionAgeMsMax?: number): Promise<number> {
  const age = sessionAgeMsMax === undefined ? {} : { sessionAgeMsMax };
  const { deletedKeys } = await collectGarbage(store, "kv/", { graceMs: 0, nowMs: Date.now() + 10, ...age });
  return deletedKeys.length;
}

const WAYS: Record<string, (store: MemoryStore) => PageStore> = {
  "read as it is": (store) => store,
  "behind a disk cache that has every object still": (store) => cacheOver({ files: new MemoryFiles(), store }),
  encrypted: (store) => new EncryptedStore(store, parseKeyRing("11".repeat(32))),
};

it.each(Object.entries(WAYS))(
  "a prefix whose sessions are deleted and collected is whole again in the next session that begins with it: %s",
  async (name, behind) => {
    const inner = new MemoryStore();
    const clock = new LeapingClock();
    const engine = await openForTest({ store: behind(inner), clock });
    // Who deletes and collects does so elsewhere.
    const store = name === "encrypted" ? behind(inner) : inner;
    await turn(engine, new TestSession("gone", DENSE), [...SHARED, 1]);
    await deleteSession(store, engine.keys.of(NAMESPACE), "gone");
    expect(await collect(store)).toBeGreaterThan(0);
    clock.leap(DAY_MS);
    const session = new TestSession("next", DENSE);
    for (const prompt of [[...SHARED, 2], [3]]) await turn(engine, session, prompt);
    const cold = await openForTest({ store });
    expect(await turn(cold, session, [4])).toBe(0);
  },
);

it("a session that comes back after it was collected is whole again after its second turn", async () => {
  const store = new MemoryStore();
  const clock = new LeapingClock();
  const engine = await openForTest({ store, clock });
  const session = new TestSession("s", DENSE);
  await turn(engine, session, SHARED);
  expect(await collect(store, 1)).toBeGreaterThan(0);
  clock.leap(DAY_MS);
  for (const prompt of [[2], [3]]) await turn(engine, session, prompt);
  const cold = await openForTest({ store });
  expect(await turn(cold, session, [4])).toBe(0);
});

it("what is asked for is what was not seen for long, and a store that fails says nothing of it", async () => {
  const store = new MemoryStore();
  const world = new CommitWorld(store);
  const first = await world.turn("a", 200);
  await world.push(first);
  const segments = first.segments;
  const other = (tokenCount: number, sessionId: string) => world.turn("a", tokenCount, { sessionId, known: segments });
  const reads: string[] = [];
  const get = store.get.bind(store);
  store.get = (key, options) => {
    if (options?.fresh === true) reads.push(key);
    return get(key, options);
  };
  await world.push(await other(195, "soon"));
  expect(reads).toEqual([]);
  world.clock.ms += LIMITS.turnMsMax + 1;
  store.get = async (key, options) => {
    if (options?.fresh === true) throw new StoreError("unavailable", "down");
    return get(key, options);
  };
  await world.push(await other(195, "while it is down"));
  expect(segments.map(({ damaged }) => damaged)).toEqual([false, false, false]);
  store.get = get;
  const [ref] = (await world.manifest("soon"))!.manifest.summaries;
  await store.delete([ref!.objectKey]);
  await world.push(await other(196, "late"));
  expect(world.logged).toEqual(["persist.vanished"]);
  expect(segments.map(({ damaged, isWritten }) => [damaged, isWritten])).toEqual([
    [true, true],
    [true, true],
    [true, true],
  ]);
});
