import { describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { LayeredSummaries } from "../../../engine/kv/layered-summaries.ts";
import { isScoredBy, type LogicalBlock } from "../../../engine/kv/logical-block.ts";
import type { KvPool, SummaryKind } from "../../../kernels/contract.ts";
import { kvGeometry } from "../../../storage/geometry.ts";
import { decodeSummaryHead, decodeSummaryObject, summaryRange, summarySlot } from "../../../storage/summary-object.ts";
import { SMALL_SHAPE, sampleSummaryObject } from "../../storage/samples.ts";

const LAYERS = 5;
const GEOMETRY = kvGeometry({ ...SMALL_SHAPE, layerCount: LAYERS });
const KIND = "mean-deviation";
const OBJECT = sampleSummaryObject(GEOMETRY, 2);
const SHARE = GEOMETRY.summaryBytes / LAYERS;

function section(fromLayer: number, toLayer: number): Uint8Array {
  const { offset, bytes } = summaryRange({ geometry: GEOMETRY, kind: KIND, segmentCount: 2 }, { fromLayer, toLayer });
  return OBJECT.slice(offset, offset + bytes);
}

/** Four blocks with a slot each, and the layered summaries that they were given; reads are answered by the test. */
function setUp() {
  const written = new Map<string, Uint8Array>();
  const pool = {
    writeSummary(slot: number, kind: SummaryKind, bytes: Uint8Array, layer?: number): void {
      written.set(`${kind}/${slot}/${layer}`, bytes.slice());
    },
  } as unknown as KvPool;
  const cache = new BlockCache({ layerCount: LAYERS, deviceBlocks: new FreeList(0), summarySlots: new FreeList(8) });
  const reads: { from: number; to: number; answer: (bytes: Uint8Array) => void; fail: (error: Error) => void }[] = [];
  const lost: { blocks: readonly LogicalBlock[]; error: unknown }[] = [];
  const layered = new LayeredSummaries({
    ...{ pool, head: decodeSummaryHead(OBJECT), first: section(0, 1) },
    read: (from, to) => new Promise((answer, fail) => reads.push({ from, to, answer, fail })),
    onLost: (blocks, error) => lost.push({ blocks, error }),
  });
  const blocks = [0, 1, 2, 3].map((index) => cache.create(index));
  for (const [index, block] of blocks.entries()) layered.give(block, index);
  /** Whether a layer of a block's slot is what the whole object says. */
  const holds = (index: number, layer: number): boolean => {
    const { segments } = decodeSummaryObject(OBJECT);
    const slot = summarySlot(GEOMETRY, segments[index >> 1]!, index & 1);
    const bytes = written.get(`${KIND}/${blocks[index]!.summarySlot}/${layer}`);
    return bytes !== undefined && Buffer.compare(bytes, slot.subarray(layer * SHARE, (layer + 1) * SHARE)) === 0;
  };
  return { layered, cache, blocks, reads, lost, written, holds };
}

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));

describe("layered summaries", () => {
  it("are there in the order of layers, whatever comes first, and make blocks whole with the last", async () => {
    const { layered, blocks, reads, holds } = setUp();
    expect([layered.layersThere, layered.layersAsked, layered.layerBytes]).toEqual([1, 1, 4 * SHARE]);
    const first = layered.want(1);
    const rest = layered.want(40);
    void layered.want(2);
    expect(reads.map(({ from, to }) => [from, to])).toEqual([
      [1, 2],
      [2, LAYERS],
    ]);
    let isOver = false;
    void rest.then(() => (isOver = true));
    reads[1]!.answer(section(2, LAYERS));
    await settled();
    expect([layered.layersThere, isOver]).toEqual([1, false]);
    for (const block of blocks) expect([isScoredBy(block, KIND), block.summaries.has(KIND)]).toEqual([true, false]);
    reads[0]!.answer(section(1, 2));
    await first;
    await rest;
    expect(layered.layersThere).toBe(LAYERS);
    for (const [index, block] of blocks.entries()) {
      expect([block.summaries.has(KIND), block.incoming]).toEqual([true, undefined]);
      for (let layer = 0; layer < LAYERS; layer++) expect(holds(index, layer), `${index}, ${layer}`).toBe(true);
    }
  });

  it.each([
    ["damaged", (bytes: Uint8Array) => bytes.fill(1, 8, 9)],
    ["short", (bytes: Uint8Array) => bytes.subarray(1)],
    ["empty", () => new Uint8Array(0)],
    ["of two layers", () => section(1, 3)],
    ["of another layer", () => section(2, 3)],
    ["failing", undefined],
  ])("that are %s are lost once, with those behind them, and nothing of them is written", async (_name, change) => {
    const { layered, blocks, reads, lost, written } = setUp();
    const wanted = [layered.want(1), layered.want(3)];
    if (change === undefined) reads[0]!.fail(new Error("down"));
    else reads[0]!.answer(change(section(1, 2)));
    reads[1]!.answer(section(2, 4));
    await Promise.all(wanted);
    expect(layered.layersThere).toBe(1);
    expect(lost.map((one) => one.blocks)).toEqual([blocks]);
    for (const block of blocks) expect([isScoredBy(block, KIND), block.incoming]).toEqual([false, undefined]);
    expect([...written.keys()].every((name) => name.endsWith("/0"))).toBe(true);
    await layered.want(4);
    expect([reads.length, lost.length]).toEqual([2, 1]);
  });

  it("of which whole layers do not come are lost from there on", async () => {
    const { layered, blocks, reads, lost } = setUp();
    const wanted = layered.want(3);
    reads[0]!.answer(section(1, 3));
    await wanted;
    expect([layered.layersThere, lost.length]).toEqual([1, 1]);
    for (const block of blocks) expect(block.incoming).toBeUndefined();
  });

  it("leave the slots alone of blocks that were given up, or got summaries in another way", async () => {
    const { layered, cache, blocks, reads, written, lost } = setUp();
    const [gone, kept] = blocks as [LogicalBlock, LogicalBlock];
    const all = layered.want(LAYERS - 1);
    const slot = gone.summarySlot;
    cache.release(gone);
    // Its slot is another's now.
    const other = cache.create(9);
    while (other.summarySlot !== slot) Object.assign(other, { summarySlot: cache.create(9).summarySlot });
    kept.incoming = undefined;
    const before = written.size;
    reads[0]!.answer(section(1, LAYERS));
    await all;
    expect(written.size).toBe(before + 2 * (LAYERS - 1));
    expect([other, kept, gone].map((block) => block.summaries.size)).toEqual([0, 0, 0]);
    expect(lost).toEqual([]);
  });

  it("may begin with several layers, or all of them", () => {
    for (const first of [2, LAYERS]) {
      const written: string[] = [];
      const pool = {
        writeSummary: (slot: number, _kind: SummaryKind, bytes: Uint8Array, layer?: number) =>
          void written.push(`${slot} ${layer} ${bytes.byteLength === SHARE}`),
      } as unknown as KvPool;
      const cache = new BlockCache({
        layerCount: LAYERS,
        deviceBlocks: new FreeList(0),
        summarySlots: new FreeList(8),
      });
      const head = decodeSummaryHead(OBJECT);
      const read = async (from: number, to: number) => section(from, to);
      const layered = new LayeredSummaries({ pool, head, first: section(0, first), read, onLost() {} });
      const block = cache.create(0);
      layered.give(block, 1);
      expect(written).toEqual(Array.from({ length: first }, (_, layer) => `${block.summarySlot} ${layer} true`));
      expect([layered.layersThere, layered.layersAsked, layered.layerBytes]).toEqual([first, first, 4 * SHARE]);
      expect(block.summaries.has(KIND)).toBe(first === LAYERS);
      expect(isScoredBy(block, KIND)).toBe(true);
    }
  });

  it("are made of a first layer that is the head's", () => {
    const { layered } = setUp();
    expect(layered.kind).toBe(KIND);
    const options = { pool: {} as KvPool, head: decodeSummaryHead(OBJECT), read: async () => new Uint8Array(0) };
    expect(() => new LayeredSummaries({ ...options, first: section(1, 2), onLost() {} })).toThrow("checksum");
  });
});
