/** A session that is deleted through one engine, beside others that know it: it is found nowhere, and nobody stores anything of it again. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { sessionCalls } from "../../engine/http/session-calls.ts";
import { systemClock } from "../../engine/settings.ts";
import { openCacheFolder } from "../../storage/cache-files.ts";
import { sha256Hex } from "../../storage/checksum.ts";
import type { PageStore } from "../../storage/contract.ts";
import { DiskCache } from "../../storage/disk-cache.ts";
import { collectGarbage, deleteManifestAndTail } from "../../storage/gc.ts";
import { loadManifest, type Manifest, objectKeysOf } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  NAMESPACE,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  type TestEngineOptions,
  TestSession,
  untilIdle,
} from "./harness.ts";
import { DENSE } from "./selections.ts";

/** When sessions of these tests begin. */
const BORN_MS = Date.now();

/** A store whose puts of some keys wait; each is let through by its own function. */
function holdingStore(): { store: MemoryStore; hold(isHeld: (key: string) => boolean): void; held: (() => void)[] } {
  const store = new MemoryStore();
  const held: (() => void)[] = [];
  let isHeld = (_key: string) => false;
  const put = store.put.bind(store);
  store.put = async (key, ...rest) => {
    if (isHeld(key)) await new Promise<void>((resolve) => held.push(resolve));
    return await put(key, ...rest);
  };
  const hold = (which: typeof isHeld) => {
    isHeld = which;
  };
  return { store, held, hold };
}

const by = { settings: { storeGetMsMax: 5_000, storePutMsMax: 10_000 }, clock: systemClock };

function remove(engine: TestEngine, store: PageStore, id: string, bornMs?: number): Promise<void> {
  return sessionCalls(engine, store, by).delete(NAMESPACE, id, bornMs);
}

/** Two engines on one store. */
async function pair(store: PageStore, options: Partial<TestEngineOptions> = {}): Promise<[TestEngine, TestEngine]> {
  return [await openForTest({ store, ...options }), await openForTest({ store, ...options })];
}

/** A conversation whose log began at a time. */
function begin(id: string, bornMs: number) {
  const session = new TestSession(id, DENSE);
  return {
    session,
    turn: (engine: TestEngine, seed: number, count: number) =>
      session.turn(engine, randomIds(seed, count), { session: { id, bornMs }, maxTokens: 2 }),
  };
}

async function stored(engine: TestEngine, store: PageStore, id: string): Promise<Manifest | undefined> {
  return (await loadManifest(store, engine.keys.of(NAMESPACE).session(id)))?.manifest;
}

async function settled(...engines: TestEngine[]): Promise<void> {
  for (const engine of engines) {
    await untilIdle(engine);
    await engine.persister.flush();
  }
}

/** How much of a prompt an engine finds without computing it. */
async function cachedTokens(engine: TestEngine, ids: readonly number[]): Promise<number> {
  const tokens = new Uint8Array(Uint32Array.from([...ids, 1]).buffer);
  return (await generate(engine, request({ tokens, maxTokens: 1 }))).usage.cachedTokens;
}

describe("a session that is deleted through one engine", () => {
  it("is not stored again by a commit that waits in another one", async () => {
    const { store, hold, held } = holdingStore();
    const [one, other] = await pair(store);
    const { turn } = begin("s", BORN_MS);
    await turn(one, 1, 100);
    await settled(one);
    hold((key) => key.includes("/session/"));
    await turn(other, 2, 100);
    await expect.poll(() => held.length).toBe(1);
    hold(() => false);
    await remove(one, store, "s", BORN_MS);
    held[0]!();
    await settled(other);
    expect(await stored(one, store, "s")).toBeUndefined();
    expect(other.persister.pendingBytes).toBe(0);
  });

  it("is not stored by the first commit of it, that was on its way when there was no manifest", async () => {
    const { store, hold, held } = holdingStore();
    const [one, other] = await pair(store);
    hold((key) => key.includes("/session/"));
    await begin("s", BORN_MS).turn(other, 1, 100);
    await expect.poll(() => held.length).toBe(1);
    hold(() => false);
    await remove(one, store, "s", BORN_MS);
    held[0]!();
    await settled(other);
    expect(await stored(one, store, "s")).toBeUndefined();
  });

  it("may begin anew under its id: that one is stored, and what comes late of the first does not replace it", async () => {
    const { store, hold, held } = holdingStore();
    const [one, other] = await pair(store);
    const first = begin("s", BORN_MS);
    await first.turn(one, 1, 100);
    await settled(one);
    hold((key) => key.includes("/session/"));
    await first.turn(other, 2, 100);
    await expect.poll(() => held.length).toBe(1);
    hold(() => false);
    await remove(one, store, "s", BORN_MS);
    const second = begin("s", BORN_MS + 1);
    await second.turn(one, 3, 70);
    await settled(one);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: 72, bornMs: BORN_MS + 1 });
    held[0]!();
    await settled(other);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: 72, bornMs: BORN_MS + 1 });
    // A deletion that is told again is of the first.
    await remove(other, store, "s", BORN_MS);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: 72 });
    await second.turn(other, 4, 30);
    await settled(other);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: 104, bornMs: BORN_MS + 1 });
  });

  it("without a time of its own is over with every turn that has come, and the next one is stored", async () => {
    const store = new MemoryStore();
    const [one, other] = await pair(store);
    const first = new TestSession("s", DENSE);
    await first.turn(one, randomIds(1, 100), { maxTokens: 2 });
    await settled(one);
    await remove(one, store, "s");
    expect(await stored(one, store, "s")).toBeUndefined();
    await new Promise((resolve) => setTimeout(resolve, 5));
    await new TestSession("s", DENSE).turn(other, randomIds(2, 80), { maxTokens: 2 });
    await settled(other);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: 82 });
  });

  it("ends a turn that still runs for nobody, in its queue, its steps or suspended, and leaves nothing", async () => {
    const store = new MemoryStore();
    const engine = await openForTest({ store, settings: { runningMax: 1 } });
    const tokens = new Uint8Array(Uint32Array.from(randomIds(1, 90)).buffer);
    const turn = (id: string) =>
      generate(engine, request({ tokens, maxTokens: 120, session: { id, bornMs: BORN_MS } }));
    const [running, queued] = [turn("s"), turn("s")];
    await expect.poll(() => engine.engine.status.runningCount).toBe(1);
    await remove(engine, store, "s", BORN_MS);
    expect([(await running).reason, (await queued).reason]).toEqual(["cancelled", "cancelled"]);
    await settled(engine);
    expect(await stored(engine, store, "s")).toBeUndefined();
    expect(engine.engine.status.hostPool.bytes).toBe(0);
    await expectNothingHeld(engine);
  });
});

describe("the memory of an engine that is told of a deletion", () => {
  const longer = { hostPoolBytes: 1 << 20 };

  it.each(["on the device", "in host memory"])("holds nothing that was the session's alone: %s", async (place) => {
    const store = new MemoryStore();
    const engine = await openForTest({ store, settings: longer });
    const { session, turn } = begin("s", BORN_MS);
    await turn(engine, 1, 150);
    await settled(engine);
    if (place === "in host memory") engine.demoteIdle();
    await remove(engine, store, "s", BORN_MS);
    expect(engine.engine.status.hostPool.bytes).toBe(0);
    expect(engine.engine.status.freeBlockCount).toBe(engine.engine.status.blockCount);
    expect(await cachedTokens(engine, session.ids)).toBe(0);
  });

  it("keeps a prefix that another session shares, and drops it with the last", async () => {
    const store = new MemoryStore();
    const engine = await openForTest({ store });
    const { session, turn } = begin("s", BORN_MS);
    await turn(engine, 1, 150);
    const fork = session.fork("fork");
    await fork.turn(engine, randomIds(2, 100), {
      session: { id: "fork", parentId: "s", bornMs: BORN_MS },
      maxTokens: 2,
    });
    await settled(engine);
    await remove(engine, store, "s", BORN_MS);
    const { usage } = await fork.turn(engine, randomIds(3, 9), {
      session: { id: "fork", bornMs: BORN_MS },
      maxTokens: 2,
    });
    expect(usage.cachedTokens).toBeGreaterThanOrEqual(252);
    await settled(engine);
    await remove(engine, store, "fork", BORN_MS);
    expect(await cachedTokens(engine, fork.ids)).toBe(0);
  });

  it("keeps what more sessions share than it remembers, or a request without one", async () => {
    const store = new MemoryStore();
    const engine = await openForTest({ store });
    const prefix = randomIds(1, 64);
    for (let at = 0; at < 12; at++)
      await new TestSession(`s${at}`, DENSE).turn(engine, [...prefix, ...randomIds(at, 80)], { maxTokens: 2 });
    await settled(engine);
    for (let at = 0; at < 12; at++) await remove(engine, store, `s${at}`);
    expect(await cachedTokens(engine, prefix)).toBe(64);
    const alone = randomIds(50, 64);
    await cachedTokens(engine, alone);
    await new TestSession("last", DENSE).turn(engine, [...alone, 1, 2], { maxTokens: 2 });
    await settled(engine);
    await remove(engine, store, "last");
    expect(await cachedTokens(engine, alone)).toBe(64);
  });
});

describe("a session that is deleted is gone", () => {
  it("from the disks of all engines that are told, as far as its manifest named it", async () => {
    const store = new MemoryStore();
    const disks = await Promise.all(
      [1, 2].map(async () => {
        const folder = await mkdtemp(join(tmpdir(), "quire-deleted-"));
        onTestFinished(() => rm(folder, { recursive: true }));
        const files = await openCacheFolder(folder);
        const cache = new DiskCache(store, { files, bytesMax: 2 ** 26, clock: systemClock });
        return { folder, cache, engine: await openForTest({ store: cache, diskCache: cache }) };
      }),
    );
    const { session, turn } = begin("s", BORN_MS);
    for (const { engine } of disks) {
      await turn(engine, session.ids.length, 150);
      await settled(engine);
    }
    const [first] = disks;
    const named = objectKeysOf((await stored(first!.engine, store, "s"))!);
    const onDisks = async () => {
      const counts = disks.map(async ({ folder, cache }) => {
        await cache.settled();
        const names = new Set(await readdir(folder));
        return [...named].filter((key) => names.has(`${sha256Hex(key)}.qc`)).length;
      });
      return await Promise.all(counts);
    };
    for (const count of await onDisks()) expect(count).toBeGreaterThan(1);
    for (const { engine, cache } of disks) await remove(engine, cache, "s", BORN_MS);
    expect(await onDisks()).toEqual([0, 0]);
  });

  it("for engines of every page encoding that are told", async () => {
    const store = new MemoryStore();
    const engines = [await openForTest({ store, pages: "int8" }), await openForTest({ store, pages: "int4" })];
    const { turn } = begin("s", BORN_MS);
    for (const [at, engine] of engines.entries()) await turn(engine, at, 90);
    await settled(...engines);
    for (const engine of engines) expect(await stored(engine, store, "s")).toBeDefined();
    for (const engine of engines) await remove(engine, store, "s", BORN_MS);
    for (const engine of engines) expect(await stored(engine, store, "s")).toBeUndefined();
    expect((await store.list("kv/")).keys.filter(({ key }) => key.includes("/session/"))).toHaveLength(2);
  });

  it("for one of its id that has begun since, though nobody could delete what is stored: that is not resumed", async () => {
    const store = new MemoryStore();
    const [one, other] = await pair(store);
    const { session, turn } = begin("s", BORN_MS);
    await turn(one, 1, 150);
    await settled(one);
    const again = session.fork("s");
    const of = (bornMs: number) => ({ session: { id: "s", bornMs }, maxTokens: 2 });
    const { usage } = await again.turn(other, randomIds(2, 9), of(BORN_MS + 1));
    expect(usage.cachedTokens).toBe(0);
    await settled(other);
    expect(await stored(other, store, "s")).toMatchObject({ generation: 2, bornMs: BORN_MS + 1 });
  });
});

describe("a session whose pages are removed from the store, by hand or by a collection", () => {
  it("goes on in the engine that has it open, and is stored again with its next turn", async () => {
    const store = new MemoryStore();
    const [one, other] = await pair(store);
    const { session, turn } = begin("s", BORN_MS);
    await turn(one, 1, 150);
    await settled(one);
    await deleteManifestAndTail(store, one.keys.of(NAMESPACE).session("s"));
    expect((await turn(one, 2, 20)).usage.cachedTokens).toBe(152);
    await settled(one);
    expect(await stored(one, store, "s")).toMatchObject({ tokenCount: session.ids.length, generation: 2 });
    await collectGarbage(store, "kv/", { graceMs: 60_000, nowMs: Date.now() + 30_000, sessionAgeMsMax: 0 });
    expect(await stored(one, store, "s")).toBeUndefined();
    // Another engine finds nothing, computes it from the log and stores it.
    expect((await turn(other, 3, 20)).usage.cachedTokens).toBe(0);
    await settled(other);
    expect(await stored(other, store, "s")).toMatchObject({ tokenCount: session.ids.length });
  });
});

describe("beside a deletion", () => {
  it("a fork that resumes from its parent's pages computes what it misses: the same answer", async () => {
    const store = new MemoryStore();
    const [one, other] = await pair(store);
    const { session, turn } = begin("parent", BORN_MS);
    await turn(one, 1, 200);
    await settled(one);
    const alone = session.fork("alone");
    const expected = await alone.turn(one, randomIds(2, 20), { maxTokens: 8, topLogprobs: 0 });
    const get = store.get.bind(store);
    let deletion: Promise<void> | undefined;
    store.get = async (key, ...rest) => {
      const object = await get(key, ...rest);
      // Behind the manifest, before its segments: they are collected with it.
      if (key === one.keys.of(NAMESPACE).session("parent") && !deletion) {
        deletion = Promise.resolve();
        await remove(one, store, "parent", BORN_MS);
        await collectGarbage(store, "kv/", { graceMs: -1, nowMs: Date.now() + 1_000 });
      }
      return object;
    };
    const fork = session.fork("fork");
    const child = { id: "fork", parentId: "parent", bornMs: BORN_MS };
    const got = await fork.turn(other, randomIds(2, 20), { session: child, maxTokens: 8, topLogprobs: 0 });
    expect(deletion).toBeDefined();
    expect([got.ids, got.logprobs]).toEqual([expected.ids, expected.logprobs]);
    await settled(other);
    expect(await stored(other, store, "fork")).toMatchObject({ tokenCount: fork.ids.length });
  });
});
