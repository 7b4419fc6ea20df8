/** What reads of blocks leave behind: no memory for the collector to find, and no timer for each. */
import { expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { allLayers, BlockFetcher } from "../../../engine/kv/block-fetcher.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { Gate } from "../../../engine/kv/gate.ts";
import type { StoredSegment } from "../../../engine/kv/stored-segment.ts";
import { systemClock } from "../../../engine/settings.ts";
import type { KvPool } from "../../../kernels/contract.ts";
import type { GetOptions, StoreObject } from "../../../storage/contract.ts";
import { kvGeometry } from "../../../storage/geometry.ts";
import { HedgedStore } from "../../../storage/hedged-reads.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { decodeSegmentHeader, encodeSegment, segmentBytes } from "../../../storage/segment.ts";
import { noise } from "../../storage/random.ts";

const LAYERS = 2;
const GEOMETRY = kvGeometry({
  ...{ layerCount: LAYERS, kvHeadCount: 1, headDim: 4, encoding: "int8", summaryKinds: ["min-max"] },
  segmentTokens: 256,
});
const SEGMENTS = 40;

/** Remembers what it has given. */
class RememberingStore extends MemoryStore {
  readonly given: Uint8Array[] = [];

  override async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    const object = await super.get(key, options);
    if (object) this.given.push(object.bytes);
    return object;
  }
}

/** Segments in a store behind hedging, and their blocks; the clock counts the deadlines that were asked for. */
async function setUp() {
  const inner = new RememberingStore();
  const deadlines: number[] = [];
  let nowMs = 0;
  const clock = {
    ...systemClock,
    nowMs: () => nowMs,
    deadline(ms: number) {
      deadlines.push(ms);
      return new AbortController().signal;
    },
  };
  const store = new HedgedStore(inner, { clock, hedgeShareMax: 0.05, absentMs: 0 });
  const cache = new BlockCache({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(4 * SEGMENTS * LAYERS),
    summarySlots: new FreeList(4 * SEGMENTS),
  });
  const written = new Map<number, Uint8Array>();
  const failures: string[] = [];
  const fetcher = new BlockFetcher({
    ...{ store, cache, geometry: GEOMETRY, gate: new Gate(1_000), clock, getMsMax: 5_000, fillBytesPerS: 1e9 },
    pool: { writeBlock: (id: number, bytes: Uint8Array) => void written.set(id, bytes.slice()) } as KvPool,
    onFailure: (_segment, cause) => void failures.push(String(cause)),
  });
  const bytesOf = (index: number, layer: number) => noise(100 * index + layer, GEOMETRY.blockBytes);
  const segmentBlocks = async (number: number) => {
    const place = { fromToken: number * 256, chain: String(number).padStart(64, "0") };
    const block = (layer: number, index: number) => bytesOf(4 * number + index, layer);
    const bytes = encodeSegment({ geometry: GEOMETRY, ...place, block });
    const objectKey = `kv/00/x/seg/${number}`;
    await inner.put(objectKey, bytes);
    const stored: StoredSegment = {
      ...{ ...place, tokenCount: 256, objectKey, objectOffset: 0, objectBytes: segmentBytes(GEOMETRY) },
      checksums: decodeSegmentHeader(bytes).checksums,
      ...{ summaries: new Map(), slots: new Map(), damaged: false },
      ...{ written: Promise.resolve(true), isWritten: true, seenMs: 0 },
    };
    return [0, 1, 2, 3].map((offset) => {
      const made = cache.create(4 * number + offset);
      made.stored = stored;
      return cache.publish(made, `ns:${made.index}`);
    });
  };
  const segments = await Promise.all(Array.from({ length: SEGMENTS }, (_, number) => segmentBlocks(number)));
  const pass = (ms: number) => {
    nowMs += ms;
  };
  return { inner, fetcher, segments, written, failures, bytesOf, deadlines, pass };
}

it("gives the memory of a read back once its blocks are on the device", async () => {
  const { inner, fetcher, segments, written, failures, bytesOf } = await setUp();
  await fetcher.fetch(allLayers(segments.flat()), "demand");
  expect(failures).toEqual([]);
  for (const block of segments.flat())
    for (const [layer, id] of block.deviceBlocks.entries())
      expect(written.get(id)).toEqual(bytesOf(block.index, layer));
  expect(inner.given).toHaveLength(SEGMENTS * LAYERS);
  expect(inner.given.filter(({ byteLength }) => byteLength > 0)).toEqual([]);
});

it("takes one deadline for reads that begin together, and another later", async () => {
  const { fetcher, segments, deadlines, pass } = await setUp();
  const [first = [], second = [], ...others] = segments;
  await fetcher.fetch(allLayers([...first, ...second]), "demand");
  expect(deadlines).toEqual([5_000]);
  pass(1);
  // From the twentieth read on the store knows when one is late, and has a deadline for that, too.
  await fetcher.fetch(allLayers(others.slice(0, 10).flat()), "demand");
  pass(1);
  deadlines.length = 0;
  await fetcher.fetch(allLayers(others.slice(10).flat()), "demand");
  expect(deadlines.toSorted((a, b) => a - b)).toEqual([10, 5_000]);
});
