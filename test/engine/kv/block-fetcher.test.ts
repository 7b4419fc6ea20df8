import { beforeEach, describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import {
  BlockFetcher,
  type BlockFetcherOptions,
  type BlockLayer,
  type FetchTotals,
  indexInSegment,
} from "../../../engine/kv/block-fetcher.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { Gate } from "../../../engine/kv/gate.ts";
import { HostPool } from "../../../engine/kv/host-pool.ts";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import { ReadAhead } from "../../../engine/kv/read-ahead.ts";
import type { StoredSegment } from "../../../engine/kv/stored-segment.ts";
import type { KvPool } from "../../../kernels/contract.ts";
import { type GetOptions, StoreError } from "../../../storage/contract.ts";
import { kvGeometry } from "../../../storage/geometry.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { decodeSegmentHeader, encodeSegment, segmentBytes, segmentRange } from "../../../storage/segment.ts";
import { VirtualProcess, VirtualTime } from "../../sim/virtual-time.ts";
import { noise } from "../../storage/random.ts";

const LAYERS = 2;
const GEOMETRY = kvGeometry({
  layerCount: LAYERS,
  kvHeadCount: 1,
  headDim: 4,
  encoding: "int8",
  summaryKinds: ["min-max"],
  segmentTokens: 256,
});
const bytesOf = (index: number, layer: number) => noise(100 * index + layer, GEOMETRY.blockBytes);

class RecordingStore extends MemoryStore {
  readonly ranges: GetOptions["range"][] = [];
  hold: Promise<void> | undefined;
  override async get(key: string, options: GetOptions = {}) {
    this.ranges.push(options.range);
    await this.hold;
    return await super.get(key, options);
  }
}

let store: RecordingStore;
let cache: BlockCache;
let written: Map<number, Uint8Array>;
let fetcher: BlockFetcher;
let options: BlockFetcherOptions;
let failures: string[];
let time: VirtualTime;

/** Lets time pass until `work` has settled. */
const run = <T>(work: Promise<T>): Promise<T> => time.run(work, 1_000);

beforeEach(() => {
  store = new RecordingStore();
  cache = new BlockCache({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(12 * LAYERS),
    summarySlots: new FreeList(12),
  });
  written = new Map();
  failures = [];
  time = new VirtualTime();
  options = {
    store,
    pool: { writeBlock: (id: number, bytes: Uint8Array) => void written.set(id, bytes.slice()) } as KvPool,
    cache,
    geometry: GEOMETRY,
    gate: new Gate(4, 2),
    clock: new VirtualProcess(time).clock,
    getMsMax: 50,
    fillBytesPerS: 16 * GEOMETRY.blockBytes * 10,
    onFailure: (_segment, cause) => void failures.push(String(cause)),
  };
  fetcher = new BlockFetcher(options);
});

/** Blocks 4n..4n+3 in a segment that is in the store. */
async function segment(number: number, damage?: (bytes: Uint8Array) => Uint8Array): Promise<LogicalBlock[]> {
  const bytes = encodeSegment({
    geometry: GEOMETRY,
    fromToken: number * 256,
    chain: String(number).repeat(64),
    block: (layer, index) => bytesOf(4 * number + index, layer),
  });
  const stored: StoredSegment = {
    chain: String(number).repeat(64),
    fromToken: number * 256,
    tokenCount: 256,
    objectKey: `kv/00/x/seg/${number}`,
    objectOffset: 0,
    objectBytes: segmentBytes(GEOMETRY),
    checksums: decodeSegmentHeader(bytes).checksums,
    summaries: new Map(),
    slots: new Map(),
    damaged: false,
    ...{ written: Promise.resolve(true), isWritten: true, seenMs: 0 },
  };
  await store.put(stored.objectKey, damage ? damage(bytes) : bytes);
  return [0, 1, 2, 3].map((offset) => {
    const block = cache.create(4 * number + offset);
    block.stored = stored;
    return cache.publish(block, `ns:${block.index}`);
  });
}

const all = (blocks: readonly LogicalBlock[]): BlockLayer[] =>
  blocks.flatMap((block) => Array.from({ length: LAYERS }, (_, layer) => ({ block, layer })));

/** Runs something that tells of its reads, and adds them up. */
async function totalsOf(read: (told: (one: FetchTotals) => void) => Promise<void>): Promise<FetchTotals> {
  const totals: FetchTotals = { bytes: 0, blocks: 0 };
  await read(({ bytes, blocks }) => {
    totals.bytes += bytes;
    totals.blocks += blocks;
  });
  return totals;
}

function expectRight(block: LogicalBlock): void {
  expect(block.resident).toBe(true);
  for (const [layer, id] of block.deviceBlocks.entries()) expect(written.get(id)).toEqual(bytesOf(block.index, layer));
}

describe("filling", () => {
  it("keeps to its pace, whoever asks, and demands do not wait for it", async () => {
    const groups = [await segment(0), await segment(1), await segment(2)];
    const done: number[] = [];
    const fills = groups.map(async (blocks) => {
      const totals = await totalsOf((told) => fetcher.fill(blocks, told));
      done.push(time.nowMs);
      return totals;
    });
    // A segment is 8 blocks of one layer: 160 of them a second are 50 ms for each but the first.
    await run(fetcher.fetch(all((groups[2] as LogicalBlock[]).slice(0, 1)), "demand"));
    expect(time.nowMs).toBe(0);
    expect((await run(Promise.all(fills))).map(({ blocks }) => blocks)).toEqual([8, 8, 6]);
    expect(done).toEqual([0, 50, 100]);
    for (const block of groups.flat()) expectRight(block);
  });
});

describe("reads", () => {
  it("join neighbours of one layer and segment, and bring each block to its place", async () => {
    const blocks = [...(await segment(0)), ...(await segment(1))];
    const totals = await totalsOf((told) => fetcher.fetch(all(blocks).reverse(), "demand", told));
    expect(store.ranges.map((range) => range!.bytes)).toEqual(Array(4).fill(4 * GEOMETRY.blockBytes));
    expect(totals).toEqual({ bytes: 16 * GEOMETRY.blockBytes, blocks: 16 });
    for (const block of blocks) expectRight(block);
    const again = await totalsOf((told) => fetcher.fetch(all(blocks), "demand", told));
    expect(again, "resident blocks are not read").toEqual({ bytes: 0, blocks: 0 });
    expect([store.ranges.length, fetcher.inFlightCount]).toEqual([4, 0]);
  });

  it("are told of one by one as they end, before all of the call have", async () => {
    const blocks = [...(await segment(0)), ...(await segment(1))];
    const told: number[] = [];
    const slow = {
      ...store,
      get: (key: string, ...rest: [GetOptions]) =>
        time.sleep(key.endsWith("seg/1") ? 30 : 5).then(() => store.get(key, ...rest)),
    };
    const slowly = new BlockFetcher({ ...options, store: slow as typeof store });
    const all = blocks.map((block) => ({ block, layer: 0 }));
    const totals = totalsOf((tell) =>
      slowly.fetch(all, "demand", (read) => {
        told.push(read.blocks, time.nowMs);
        tell(read);
      }),
    );
    expect(await run(totals)).toEqual({ bytes: 8 * GEOMETRY.blockBytes, blocks: 8 });
    expect(told).toEqual([4, 5, 4, 30]);
  });

  it("leave out what was not asked for", async () => {
    const [first, , third, fourth] = await segment(0);
    await fetcher.fetch(
      [first!, third!, fourth!, third!].map((block) => ({ block, layer: 1 })),
      "demand",
    );
    expect(store.ranges.map((range) => range!.bytes / GEOMETRY.blockBytes)).toEqual([1, 2]);
    expect(third!.residentLayerCount).toBe(1);
  });

  it("are not made twice for a block that is on its way", async () => {
    const blocks = await segment(0);
    let open = () => {};
    store.hold = new Promise<void>((resolve) => (open = resolve));
    const first = totalsOf((told) => fetcher.fetch(all(blocks.slice(0, 2)), "fill", told));
    const second = totalsOf((told) => fetcher.fetch(all(blocks), "demand", told));
    open();
    expect((await first).blocks).toBe(4);
    expect((await second).blocks).toBe(4);
    expect(store.ranges).toHaveLength(4);
    for (const block of blocks) expectRight(block);
  });

  it("that were begun ahead and wait for their places get them, however many are asked for", async () => {
    const blocks = [...(await segment(0)), ...(await segment(1))].filter(({ index }) => index % 2 === 0);
    const { gate, clock } = options;
    const slow = {
      ...store,
      get: (...args: Parameters<typeof store.get>) => time.sleep(5).then(() => store.get(...args)),
    };
    const ahead = new ReadAhead({ store: slow as typeof store, gate, clock, getMsMax: 1_000 });
    const ranges = all(blocks).map(({ block, layer }) => {
      const { objectKey, objectOffset } = block.stored!;
      const { offset, bytes } = segmentRange(GEOMETRY, layer, indexInSegment(block, block.stored!), 1);
      return { objectKey, offset: objectOffset + offset, bytes };
    });
    ahead.begin(ranges);
    // More than the gate has places for: who took one only to wait for such a read would wait for good.
    expect(gate.waitingCount).toBe(ranges.length - 2);
    await run(new BlockFetcher({ ...options, store: ahead }).fetch(all(blocks), "demand"));
    expect([gate.runningCount, gate.waitingCount, ahead.pendingCount]).toEqual([0, 0, 0]);
    expect(store.ranges).toHaveLength(ranges.length);
    for (const block of blocks) expectRight(block);
  });

  it("that wait as fill go before other fill once they are demanded, in their layer's turn", async () => {
    const blocks = [...(await segment(0)), ...(await segment(1)), ...(await segment(2))].filter(
      ({ index }) => index % 2 === 0,
    );
    const { gate, clock } = options;
    const slow = {
      ...store,
      get: (...args: Parameters<typeof store.get>) => time.sleep(5).then(() => store.get(...args)),
    };
    const ahead = new ReadAhead({ store: slow as typeof store, gate, clock, getMsMax: 1_000 });
    const filling = new BlockFetcher({ ...options, store: ahead });
    const rangeOf = ({ block, layer }: BlockLayer) => {
      const { objectKey, objectOffset } = block.stored!;
      const { offset, bytes } = segmentRange(GEOMETRY, layer, indexInSegment(block, block.stored!), 1);
      return { objectKey, offset: objectOffset + offset, bytes };
    };
    // Half of them were begun ahead, all of them fill: four of the twelve find a place at once.
    const [begun, others] = [all(blocks.slice(0, 3)), all(blocks.slice(3))];
    ahead.begin(begun.map(rangeOf));
    const fills = [filling.fetch(begun, "fill"), filling.fetch(others, "fill")];
    const demanded = [4, 2].flatMap((at) => all(blocks.slice(at, at + 1)));
    expect(filling.demandedLayerCount).toBe(0);
    const demand = filling.fetch(demanded, "demand");
    expect(filling.demandedLayerCount).toBe(demanded.length);
    await run(demand);
    expect(filling.demandedLayerCount).toBe(0);
    // Two are on their way, and no more than two of the others pass: fill has two places of four.
    const count = written.size;
    expect(demanded.every(({ block, layer }) => written.has(block.deviceBlocks[layer] as number))).toBe(true);
    expect(count).toBeLessThanOrEqual(8);
    const of = (layer: number) =>
      store.ranges.findIndex((range) => range?.offset === rangeOf({ block: blocks[4]!, layer }).offset);
    expect(of(0)).toBeLessThan(of(1));
    await run(Promise.all(fills));
    expect(store.ranges).toHaveLength(12);
    for (const block of blocks) expectRight(block);
  });

  it("that nobody wants any more take no memory", async () => {
    const blocks = await segment(0);
    let open = () => {};
    store.hold = new Promise<void>((resolve) => (open = resolve));
    const pending = fetcher.fetch(all(blocks), "demand");
    for (const block of blocks) cache.release(block);
    cache.evictIdle();
    open();
    await pending;
    expect(cache.freeDeviceBlockCount).toBe(12 * LAYERS);
    expect(failures).toEqual([]);
  });

  it("that find the block filled meanwhile leave it as it is", async () => {
    const [block] = await segment(0);
    let open = () => {};
    store.hold = new Promise<void>((resolve) => (open = resolve));
    const pending = fetcher.fetch(all([block!]), "demand");
    // Another sequence computed the same block: publishing gives its layers to this one.
    const computed = cache.create(0);
    cache.allocateAll(computed);
    expect(cache.publish(computed, "ns:0")).toBe(block);
    expect(block!.resident).toBe(true);
    open();
    await pending;
    expect([block!.lost, failures.length]).toEqual([false, 0]);
    expect(cache.freeDeviceBlockCount).toBe(11 * LAYERS);
  });
});

describe("bytes that are wrong or late", () => {
  it.each<[string, (bytes: Uint8Array) => Uint8Array]>([
    ["a flipped bit", (bytes) => bytes.map((byte, at) => (at === bytes.length - 1 ? byte ^ 4 : byte))],
    ["a torn object", (bytes) => bytes.slice(0, bytes.length - 1)],
  ])(
    "%s: the block is lost, its neighbours of an intact range are not, and nobody finds it again",
    async (_name, damage) => {
      const blocks = await segment(0, damage);
      await fetcher.fetch(
        blocks.map((block) => ({ block, layer: 0 })),
        "demand",
      );
      await fetcher.fetch([{ block: blocks[3]!, layer: 1 }], "demand");
      expect(blocks.map((block) => block.lost)).toEqual([false, false, false, true]);
      expect(fetcher.takeLossNotice()).toBe(true);
      expect(fetcher.takeLossNotice()).toBe(false);
      expect(cache.acquire("ns:3")).toBeUndefined();
      expect(failures).toHaveLength(1);
    },
  );

  it("a short answer and one of other bytes are misses", async () => {
    const blocks = await segment(0);
    const get = store.get.bind(store);
    store.get = async (key, options) => {
      const object = await get(key, options);
      return { ...object!, bytes: object!.bytes.subarray(0, object!.bytes.length - 7) };
    };
    await fetcher.fetch(all(blocks.slice(0, 1)), "demand");
    expect(blocks[0]!.lost).toBe(true);
    store.get = (key) => get(key, { range: { offset: 0, bytes: GEOMETRY.blockBytes } });
    await fetcher.fetch(all(blocks.slice(1, 2)), "demand");
    expect(blocks[1]!.lost).toBe(true);
    expect(written.size).toBe(0);
  });

  it("a missing object and a store that stalls past the deadline are misses; fetch itself never rejects", async () => {
    const [missing] = await segment(0);
    const [late] = await segment(1);
    await store.delete([missing!.stored!.objectKey]);
    await fetcher.fetch(all([missing!]), "demand");
    store.get = (_key, options) =>
      new Promise((_resolve, reject) =>
        options?.signal?.addEventListener("abort", () => reject(new StoreError("aborted", "too late"))),
      );
    await run(fetcher.fetch(all([late!]), "fill"));
    expect(time.nowMs).toBe(50);
    expect([missing!.lost, late!.lost]).toEqual([true, true]);
    expect(fetcher.inFlightCount).toBe(0);
  });
});

describe("a block that is on its way to host memory", () => {
  /** A layer whose place on the device another has taken; its bytes come to the host when `comes` resolves. */
  function leaving() {
    const comes = Promise.withResolvers<Uint8Array<ArrayBuffer>>();
    const pool = { ...options.pool, blockBytes: GEOMETRY.blockBytes, readBlock: () => comes.promise } as KvPool;
    const copies = new HostPool({ pool, bytesMax: 4 * GEOMETRY.blockBytes });
    const [deviceBlocks, summarySlots] = [new FreeList(1), new FreeList(2)];
    const small = new BlockCache({ layerCount: 1, deviceBlocks, summarySlots, host: { copies, pool } });
    const [block] = [0, 1].map((index) => {
      const held = small.create(index);
      small.allocateAll(held);
      small.loosen(held);
      return held;
    });
    return {
      block: block as LogicalBlock,
      comes,
      small,
      fetcher: new BlockFetcher({ ...options, cache: small, pool }),
    };
  }

  it("is waited for, and brought back from there", async () => {
    const { block, comes, fetcher } = leaving();
    const fetched = totalsOf((told) => fetcher.fetch([{ block, layer: 0 }], "demand", told));
    expect(block.resident).toBe(false);
    comes.resolve(bytesOf(0, 0).slice());
    expect(await fetched).toEqual({ bytes: 0, blocks: 0 });
    expect(written.get(block.deviceBlocks[0] as number)).toEqual(bytesOf(0, 0));
  });

  it("is waited for also where it leaves while another one is waited for", async () => {
    const [first, second] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const pool = {
      ...{ ...options.pool, blockBytes: GEOMETRY.blockBytes },
      readBlock: async (id: number) => {
        await (id === 0 ? first : second).promise;
        return bytesOf(id, 0).slice();
      },
    } as KvPool;
    const copies = new HostPool({ pool, bytesMax: 4 * GEOMETRY.blockBytes });
    const [deviceBlocks, summarySlots] = [new FreeList(2), new FreeList(4)];
    const small = new BlockCache({ layerCount: 1, deviceBlocks, summarySlots, host: { copies, pool } });
    const hold = (index: number) => {
      const held = small.create(index);
      small.allocateAll(held);
      small.loosen(held);
      return held;
    };
    const blocks = [hold(0), hold(1)];
    // The first one's place is taken, then the second one's.
    const others = [hold(2)];
    const work = new BlockFetcher({ ...options, cache: small, pool }).fetch(
      blocks.map((block) => ({ block, layer: 0 })),
      "demand",
    );
    others.push(hold(3));
    first.resolve();
    await new Promise((resolve) => setImmediate(resolve));
    second.resolve();
    await work;
    expect(blocks.map(({ resident }) => resident)).toEqual([true, true]);
    for (const {
      index,
      deviceBlocks: [id],
    } of blocks)
      expect(written.get(id as number)).toEqual(bytesOf(index, 0));
  });

  it("is nobody's to fetch once its last holder has let go of it", async () => {
    const { block, comes, small, fetcher } = leaving();
    const fetched = totalsOf((told) => fetcher.fetch([{ block, layer: 0 }], "demand", told));
    small.tighten(block);
    small.release(block);
    comes.resolve(bytesOf(0, 0).slice());
    expect(await fetched).toEqual({ bytes: 0, blocks: 0 });
    expect([failures, store.ranges]).toEqual([[], []]);
  });
});
