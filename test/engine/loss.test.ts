/** What is missing or damaged in the store is computed again from the log: the answer stays the same and usage says what happened. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, openTestEngine, randomIds, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const PROMPTS = [randomIds(1, 700), randomIds(2, 60), randomIds(3, 50)];
const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };

async function open(store: PageStore): Promise<TestEngine> {
  return openForTest({ store });
}
async function keysOf(store: PageStore, kind: string): Promise<string[]> {
  const { keys } = await store.list("kv/");
  return keys.map(({ key }) => key).filter((key) => new RegExp(`/${kind}/`).test(key));
}

async function flip(store: PageStore, key: string, at: number): Promise<void> {
  const object = await store.get(key);
  const bytes = object!.bytes;
  const index = Math.floor(bytes.length * at);
  bytes[index] = bytes[index]! ^ 0x10;
  await store.put(key, bytes);
}

const DAMAGES: Record<string, { damage: (store: PageStore) => Promise<void>; recomputes: boolean }> = {
  "one segment deleted": {
    damage: async (store) => store.delete([(await keysOf(store, "seg"))[4]!]),
    recomputes: true,
  },
  "every segment deleted": { damage: async (store) => store.delete(await keysOf(store, "seg")), recomputes: true },
  "one byte of every segment flipped": {
    damage: async (store) => {
      for (const key of await keysOf(store, "seg")) await flip(store, key, 0.6);
    },
    recomputes: true,
  },
  // Checksums come from the other kind's object, summaries from the blocks.
  "one byte of every summary object of one kind flipped": {
    damage: async (store) => {
      for (const key of await keysOf(store, "sum-min-max")) await flip(store, key, 0.5);
    },
    recomputes: false,
  },
  "every summary object of one kind deleted": {
    damage: async (store) => store.delete(await keysOf(store, "sum-min-max")),
    recomputes: false,
  },
  "every summary object of one kind deleted, and every segment flipped": {
    damage: async (store) => {
      await store.delete(await keysOf(store, "sum-min-max"));
      for (const key of await keysOf(store, "seg")) await flip(store, key, 0.6);
    },
    recomputes: true,
  },
  "every summary object deleted": {
    damage: async (store) => store.delete(await keysOf(store, "sum-[a-z-]+")),
    recomputes: true,
  },
  "the tail deleted": { damage: async (store) => store.delete(await keysOf(store, "tail")), recomputes: true },
  "one byte of the tail flipped": {
    damage: async (store) => flip(store, (await keysOf(store, "tail"))[0]!, 0.9),
    recomputes: true,
  },
  "one byte of the manifest flipped": {
    damage: async (store) => flip(store, (await keysOf(store, "session"))[0]!, 0.5),
    recomputes: true,
  },
  "the manifest deleted": { damage: async (store) => store.delete(await keysOf(store, "session")), recomputes: true },
  "nothing damaged": { damage: async () => {}, recomputes: false },
};

describe.each([
  ["quest", QUEST],
  ["dense", DENSE],
] as const)("lost bytes, %s", (name, selection) => {
  const replies = (async () => {
    const engine = await openTestEngine({ store: new MemoryStore() });
    const session = new TestSession("s", selection);
    const result: number[][] = [];
    for (const prompt of PROMPTS) result.push((await session.turn(engine, prompt)).ids);
    await untilIdle(engine);
    await engine.kill();
    return result;
  })();

  it.each(Object.entries(DAMAGES))("%s", async (_name, { damage, recomputes }) => {
    const expected = await replies;
    const store = new MemoryStore();
    const first = await open(store);
    const session = new TestSession("s", selection);
    await session.turn(first, PROMPTS[0]!);
    await session.turn(first, PROMPTS[1]!);
    await untilIdle(first);
    await first.persister.flush();
    await damage(store);

    const fresh = await open(store);
    const before = session.ids.length;
    const third = await session.turn(fresh, PROMPTS[2]!);
    expect(third.ids).toEqual(expected[2]);
    if (recomputes) expect(third.usage.recomputedTokens).toBeGreaterThan(0);
    else expect(third.usage.recomputedTokens).toBe(0);
    expect(third.usage.cachedTokens + third.usage.recomputedTokens).toBe(before);

    // The turn's commit repaired the store: another engine finds everything again.
    await untilIdle(fresh);
    await fresh.persister.flush();
    const repaired = await open(store);
    const copy = session.fork("s");
    const fourth = await copy.turn(repaired, PROMPTS[1]!);
    if (name === "dense") expect(fourth.usage.recomputedTokens).toBe(0);
    expect(fourth.usage.cachedTokens + fourth.usage.recomputedTokens).toBe(session.ids.length);
    for (const engine of [fresh, repaired]) {
      await untilIdle(engine);
      engine.evictIdle();
      expect(engine.engine.status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0 });
    }
  });
});
