/** A resumed turn whose summaries come in layer by layer: it begins with the first layer's, and whatever befalls the others, it answers as one that has everything. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { type GetOptions, StoreError, type StoreObject } from "../../storage/contract.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { summaryFormOf } from "../../storage/keys.ts";
import { commitManifest, loadManifest } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { decodeSummaryObject, summaryRange } from "../../storage/summary-object.ts";
import { encodeSummariesByBlock } from "../storage/summaries-by-block.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  openTestEngine,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  untilIdle,
} from "./harness.ts";

const LAYERS = 5;
const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const PROMPT = randomIds(2, 40);
const ONE = { topLogprobs: 0, maxTokens: 1 } as const;

/** A store whose reads of the layers behind the first can be changed. */
class LayeredStore extends MemoryStore {
  /** Of each such read, in order: gives what comes instead. */
  change: (key: string, read: () => Promise<StoreObject | undefined>) => Promise<StoreObject | undefined> = (
    _key,
    read,
  ) => read();
  laterReads = 0;

  override async get(key: string, options?: GetOptions): Promise<StoreObject | undefined> {
    const read = () => super.get(key, options);
    if (!key.includes("/sum-") || options?.range === undefined || options.range.offset === 0) return await read();
    this.laterReads += 1;
    return await this.change(key, read);
  }
}

const SETTINGS = { summaryRunTokens: 256 };

const open = (store: MemoryStore, settings = {}): Promise<TestEngine> =>
  openForTest({ store, layerCount: LAYERS, settings: { ...SETTINGS, ...settings } }, expectNothingHeld);

/** A session of 900 tokens, and what its next turn answers on an engine that has everything. */
async function written(selection: SelectionRequest) {
  const store = new MemoryStore();
  const writer = await openTestEngine({ store, layerCount: LAYERS, settings: SETTINGS });
  const session = new TestSession("s", selection);
  await session.turn(writer, randomIds(1, 900));
  await untilIdle(writer);
  await writer.persister.flush();
  const expected = await session.fork("resident").turn(writer, PROMPT, ONE);
  await untilIdle(writer);
  await writer.kill();
  return { store, session, expected };
}

const QUEST_SESSION = written(QUEST);

/** A store of its own with such a session. */
async function stored(selection = QUEST) {
  const { store: from, session, expected } = await (selection === QUEST ? QUEST_SESSION : written(selection));
  const store = new LayeredStore();
  for (const { key } of (await from.list("kv/")).keys) await store.put(key, (await from.get(key))!.bytes);
  return { store, session: session.fork("s"), expected };
}

/** Counts the steps of an engine's device. */
function countSteps(engine: TestEngine): { count: number; first: Promise<void> } {
  const first = Promise.withResolvers<void>();
  const counted = { count: 0, first: first.promise };
  const { runner } = engine;
  const step = runner.step.bind(runner);
  runner.step = (sequences) => {
    counted.count += 1;
    first.resolve();
    return step(sequences);
  };
  return counted;
}

describe("summaries that come in layer by layer", () => {
  it.each([
    QUEST,
    { ...QUEST, policy: "quest+share(2)" },
    { ...QUEST, policy: "mean-deviation+scope(layer)+group(64)" },
    { ...QUEST, policy: "quest+reuse(8)" },
  ] as const)("computing begins before those of the second layer have come: $policy", async (selection) => {
    const { store, session, expected } = await stored(selection);
    const fresh = await open(store);
    const steps = countSteps(fresh);
    store.change = async (_key, read) => {
      await steps.first;
      return await read();
    };
    const found = await session.turn(fresh, PROMPT, ONE);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.recomputedTokens).toBe(0);
    expect(store.laterReads).toBeGreaterThan(0);
    expect(fresh.logged).toEqual([]);
  });

  it("are read with the head where they are few bytes", async () => {
    const { store, session, expected } = await stored();
    const found = await session.turn(await open(store, { summaryFirstBytesMax: 1024 * 1024 }), PROMPT, ONE);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect([found.usage.recomputedTokens, store.laterReads]).toEqual([0, 0]);
  });

  it.each([1, 5000])(
    "read no byte twice, and not more than the objects have (%i bytes with a head)",
    async (bytesMax) => {
      const { store, session } = await stored();
      const asked: string[] = [];
      const get = store.get.bind(store);
      let bytes = 0;
      store.get = async (key, options) => {
        const object = await get(key, options);
        if (key.includes("/sum-")) {
          asked.push(`${key}@${options?.range?.offset}`);
          bytes += object?.bytes.byteLength ?? 0;
        }
        return object;
      };
      await session.turn(await open(store, { summaryFirstBytesMax: bytesMax }), PROMPT, ONE);
      expect(new Set(asked).size).toBe(asked.length);
      const { keys } = await store.list("kv/");
      const stored256 = keys.filter(({ key }) => key.includes("/sum-min-max/"));
      // All but the envelope's digest, which nobody needs who reads by layers.
      expect(bytes).toBe(stored256.reduce((sum, object) => sum + object.bytes - 32, 0));
    },
  );

  const SHARED: SelectionRequest = { ...QUEST, policy: "quest+share(2)" };

  /** Of which layers summaries are asked for, and what becomes of that; `isStarted`: whether the first token has come. */
  async function resumedShared(answer: (layer: number) => "good" | "fails" = () => "good") {
    const { store, session } = await stored(SHARED);
    const fresh = await open(store, { summaryFirstBytesMax: 1024 * 1024 });
    const segmentTokens = 64;
    const geometry = kvGeometry({ ...fresh.runner.pool.spec, segmentTokens });
    const startOf = (layer: number, segmentCount: number) =>
      summaryRange({ geometry, kind: "min-max", segmentCount }, { fromLayer: layer, toLayer: layer + 1 }).offset;
    const layers = Array.from({ length: LAYERS }, (_, layer) => layer);
    const asked: { layer: number; isStarted: boolean }[] = [];
    const get = store.get.bind(store);
    store.get = async (key, options) => {
      if (!key.includes("/sum-")) return await get(key, options);
      const { offset, bytes } = options!.range!;
      const segmentCount = Number(/-(\d+)-layers$/.exec(key)![1]) / segmentTokens;
      const wanted = layers.filter((layer) => {
        const start = startOf(layer, segmentCount);
        return start >= offset && start < offset + bytes;
      });
      const events = fresh.engine.traces.find("resumed")!.events;
      const isStarted = events.some(({ name }) => name === "first token");
      for (const layer of wanted) asked.push({ layer, isStarted });
      if (wanted.some((layer) => answer(layer) === "fails")) throw new StoreError("unavailable", "down");
      return await get(key, options);
    };
    const askedOf = (isStarted: boolean) =>
      [...new Set(asked.flatMap((one) => (one.isStarted === isStarted ? [one.layer] : [])))].toSorted();
    return { store, session, fresh, askedOf };
  }

  it("are read of the layers that score before the first token, of those that take a choice over behind it", async () => {
    const { session, fresh, askedOf } = await resumedShared();
    const { expected } = await stored(SHARED);
    const found = await session.turn(fresh, PROMPT, { ...ONE, maxTokens: 8, requestId: "resumed" });
    expect(found.logprobs![0]).toEqual(expected.logprobs![0]);
    await untilIdle(fresh);
    expect(askedOf(false)).toEqual([0, 2, 4]);
    expect(askedOf(true)).toEqual([1, 3]);
    expect([found.usage.recomputedTokens, fresh.logged]).toEqual([0, []]);
  });

  it("that nobody scores disturb nobody where they do not come, and whoever scores them asks again", async () => {
    let isDown = true;
    const { session, fresh, askedOf } = await resumedShared((layer) => (isDown && layer % 2 === 1 ? "fails" : "good"));
    const turn = await session.turn(fresh, PROMPT, { ...ONE, maxTokens: 8, requestId: "resumed" });
    await untilIdle(fresh);
    expect(askedOf(true)).toEqual([1, 3]);
    expect([turn.usage.recomputedTokens, fresh.logged]).toEqual([0, []]);
    isDown = false;
    const next = Object.assign(session.fork("s"), { selection: QUEST });
    const { store } = await stored(SHARED);
    const expected = await next.fork("s").turn(await open(store), randomIds(3, 30), ONE);
    const found = await next.turn(fresh, randomIds(3, 30), ONE);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect([found.usage.recomputedTokens, fresh.logged]).toEqual([0, []]);
  });

  const BEFALLS: Record<string, (read: () => Promise<StoreObject | undefined>) => Promise<StoreObject | undefined>> = {
    "a bit flips": async (read) => {
      const object = (await read())!;
      object.bytes[object.bytes.length - 3]! ^= 4;
      return object;
    },
    "it is short": async (read) => {
      const object = (await read())!;
      return { ...object, bytes: object.bytes.slice(0, -8) };
    },
    "it is gone": async () => undefined,
    "the store fails": async () => {
      throw new StoreError("unavailable", "down");
    },
  };

  it.each(Object.entries(BEFALLS).flatMap(([what, befall]) => [1, 2, 4].map((nth) => [what, nth, befall] as const)))(
    "%s, of read %i: the answer is the same, and the next commit makes the summaries good",
    async (_what, nth, befall) => {
      const { store, session, expected } = await stored();
      const fresh = await open(store);
      store.change = (_key, read) => (store.laterReads === nth ? befall(read) : read());
      store.laterReads = 0;
      const found = await session.turn(fresh, PROMPT, ONE);
      expect(found.logprobs).toEqual(expected.logprobs);
      expect(found.usage.cachedTokens + found.usage.recomputedTokens).toBe(916);
      expect(fresh.logged.map(({ event }) => event)).toContain("attach.summary-lost");
      await untilIdle(fresh);
      await fresh.persister.flush();
      store.change = (_key, read) => read();
      const third = await open(store);
      const again = await session.turn(third, randomIds(3, 30), ONE);
      expect(again.usage.recomputedTokens).toBe(0);
      expect(third.logged).toEqual([]);
    },
  );

  it("are waited for by everybody who shares the blocks, and by nobody else", async () => {
    const { store, session, expected } = await stored();
    const fresh = await open(store);
    const alone = new TestSession("alone", { policy: "dense", budgetTokens: 0, exact: true });
    const comes = Promise.withResolvers<void>();
    store.change = async (_key, read) => {
      await comes.promise;
      return await read();
    };
    const turns = ["s", "fork"].map((id) => {
      const copy = session.fork(id);
      return copy.turn(fresh, PROMPT, { ...ONE, session: { id, parentId: "s" } });
    });
    const dense = await alone.turn(fresh, randomIds(7, 30), { maxTokens: 20 });
    expect(dense.ids).toHaveLength(20);
    comes.resolve();
    for (const { logprobs } of await Promise.all(turns)) expect(logprobs).toEqual(expected.logprobs);
  });

  it("of a turn that was aborted serve the next one", async () => {
    const { store, session, expected } = await stored();
    const fresh = await open(store);
    const steps = countSteps(fresh);
    const comes = Promise.withResolvers<void>();
    store.change = async (_key, read) => {
      await comes.promise;
      return await read();
    };
    const first = request({
      ...{ session: { id: "s" }, tokens: idsToBytes([...session.ids, ...PROMPT]), selection: QUEST },
      ...{ turnStart: session.ids.length, spans: session.spans },
    });
    let abort = (): void => {};
    const aborted = generate(fresh, first, (ticket) => {
      abort = () => ticket.cancel();
    });
    await steps.first;
    abort();
    await aborted.catch(() => undefined);
    comes.resolve();
    const found = await session.turn(fresh, PROMPT, ONE);
    expect(found.logprobs).toEqual(expected.logprobs);
  });

  it("hold up a turn of default mode only where they are not there, and it tells what it went on without", async () => {
    const { store, session } = await stored({ ...QUEST, exact: false });
    // With them the first burst would bring what this turn chooses.
    const { keys } = await store.list("kv/");
    const { key } = keys.find((item) => item.key.includes("/session/"))!;
    const { manifest, etag } = (await loadManifest(store, key))!;
    await commitManifest(store, key, { ...manifest, hotBlocks: [] }, etag);
    const fresh = await open(store, { missWaitMs: 0 });
    const steps = countSteps(fresh);
    store.change = async (_key, read) => {
      await steps.first;
      return await read();
    };
    const found = await session.turn(fresh, PROMPT, ONE);
    expect(found.usage.pagesMissed).toBeGreaterThan(0);
    expect(found.spans.some((span) => span.how.includes("~"))).toBe(true);
    expect(steps.count).toBeGreaterThan(1);
  });

  it("of older objects are read whole, and lie by layers after the next commit", async () => {
    const { store, session, expected } = await stored();
    const { keys } = await store.list("kv/");
    const { key } = keys.find((item) => item.key.includes("/session/"))!;
    const { manifest, etag } = (await loadManifest(store, key))!;
    for (const ref of manifest.summaries) {
      const object = decodeSummaryObject((await store.get(ref.objectKey))!.bytes, ref);
      const { bytes, sha256 } = encodeSummariesByBlock(object);
      await store.delete([ref.objectKey]);
      ref.objectKey = ref.objectKey.replace("-layers", "");
      ref.objectBytes = bytes.byteLength;
      ref.sha256 = sha256;
      await store.put(ref.objectKey, bytes);
    }
    await commitManifest(store, key, manifest, etag);
    const fresh = await open(store);
    const found = await session.turn(fresh, PROMPT, ONE);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect([found.usage.recomputedTokens, store.laterReads]).toEqual([0, 0]);
    await untilIdle(fresh);
    await fresh.persister.flush();
    const { summaries } = (await loadManifest(store, key))!.manifest;
    expect(new Set(summaries.map(({ objectKey }) => summaryFormOf(objectKey)))).toEqual(new Set(["layers"]));
    const again = await session.turn(await open(store), randomIds(3, 30), ONE);
    expect(again.usage.recomputedTokens).toBe(0);
    expect(store.laterReads).toBeGreaterThan(0);
  });
});
