/** What waits to be written while the store does not follow: within one bound, and with nothing of the turns that left it. */
import { queryObjects } from "node:v8";
import { expect, it } from "vitest";
import { Sequence } from "../../../engine/sequence/sequence.ts";
import type { PageStore } from "../../../storage/contract.ts";
import { loadManifest } from "../../../storage/manifest.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { NAMESPACE, openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "../harness.ts";

/** A store that takes objects of some kind only once `release` was called. */
function stallingStore(isStalled: (key: string) => boolean): { store: PageStore; release(): void } {
  const store = new MemoryStore();
  const put = store.put.bind(store);
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  store.put = async (key, ...rest) => {
    if (isStalled(key)) await released;
    return put(key, ...rest);
  };
  return { store, release };
}

/** A turn each of so many sessions; `tokenCount` of KV are left by each. */
async function play(engine: TestEngine, count: number, tokenCount: number): Promise<void> {
  for (let seed = 0; seed < count; seed++) {
    const session = new TestSession(`s${seed}`, { policy: "dense", budgetTokens: 0, exact: true });
    await session.turn(engine, randomIds(seed + 1, tokenCount - 2), { maxTokens: 2 });
  }
  await untilIdle(engine);
}

const waitingCount = ({ persister }: TestEngine, count: number) =>
  Array.from({ length: count }, (_, seed) => persister.status(`${NAMESPACE}/s${seed}`)).filter((one) => one?.pending)
    .length;

it("keeps nothing of its sequences, and of each tail one copy", { timeout: 60_000 }, async () => {
  const before = queryObjects(Sequence) as number;
  const { store, release } = stallingStore((key) => !key.includes("/seg/"));
  const engine = await openForTest({ store });
  const buffersBefore = process.memoryUsage().arrayBuffers;
  await play(engine, 40, 63);
  expect(waitingCount(engine, 40)).toBe(40);
  expect((queryObjects(Sequence) as number) - before).toBe(0);
  expect(process.memoryUsage().arrayBuffers - buffersBefore).toBeLessThan(1.3 * engine.persister.pendingBytes);
  release();
  await engine.persister.flush();
  expect(waitingCount(engine, 40)).toBe(0);
  expect(engine.persister.pendingBytes).toBe(0);
});

it("counts commits, too: one more than there is room for is left out", { timeout: 60_000 }, async () => {
  const writeBehindBytesMax = 64 * 1024;
  // Whole segments, which are written; manifests are not.
  const { store, release } = stallingStore((key) => key.includes("/session/"));
  const engine = await openForTest({ store, settings: { writeBehindBytesMax } });
  await play(engine, 30, 64);
  const waiting = waitingCount(engine, 30);
  expect(waiting).toBeGreaterThan(4);
  expect(waiting).toBeLessThanOrEqual(16);
  expect(engine.logged.filter(({ event }) => event === "persist.dropped").length).toBe(30 - waiting);
  release();
  await engine.persister.flush();
  expect(engine.persister.pendingBytes).toBe(0);
  // There is room again.
  await play(engine, 30, 64);
  await engine.persister.flush();
  expect((await store.list("kv/")).keys.filter(({ key }) => key.includes("/session/")).length).toBe(30);
});

it("a turn that is cut short for want of room replaces no manifest that is longer", { timeout: 60_000 }, async () => {
  const key = (await openForTest()).keys.of(NAMESPACE).session("kept");
  let isStalled = false;
  const { store, release } = stallingStore((put) => isStalled && put !== key);
  const engine = await openForTest({ store, settings: { writeBehindBytesMax: 75 * 1024 } });
  const tokensInForce = async () => (await loadManifest(store, key))?.manifest.tokenCount;
  const session = new TestSession("kept", { policy: "dense", budgetTokens: 0, exact: true });
  await session.turn(engine, randomIds(99, 98), { maxTokens: 2 });
  await untilIdle(engine);
  await engine.persister.flush();
  expect(await tokensInForce()).toBe(100);
  isStalled = true;
  await play(engine, 12, 63);
  // There is room for a commit, and not for the tail in it.
  await session.turn(engine, randomIds(98, 18), { maxTokens: 2 });
  await untilIdle(engine);
  await expect.poll(() => engine.persister.status(`${NAMESPACE}/kept`)?.pending).toBe(false);
  expect(engine.logged.filter(({ fields }) => fields.tail === true).length).toBeGreaterThan(0);
  expect(await tokensInForce()).toBe(100);
  isStalled = false;
  release();
  await engine.persister.flush();
  await session.turn(engine, randomIds(97, 8), { maxTokens: 2 });
  await untilIdle(engine);
  await engine.persister.flush();
  expect(await tokensInForce()).toBe(130);
});
