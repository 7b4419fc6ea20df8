import { describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import type { GateClass } from "../../../engine/kv/gate.ts";
import { LayeredSummaries, type LayerRange } from "../../../engine/kv/layered-summaries.ts";
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

function section(fromLayer: number, toLayer: number): Uint8Array<ArrayBuffer> {
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
  const reads: {
    from: number;
    to: number;
    kind: GateClass;
    answer: (bytes: Uint8Array<ArrayBuffer>) => void;
    fail: (error: Error) => void;
  }[] = [];
  const lost: { blocks: readonly LogicalBlock[]; error: unknown }[] = [];
  const layered = new LayeredSummaries({
    ...{ pool, head: decodeSummaryHead(OBJECT), first: section(0, 1) },
    read: ({ from, to }, kind) => new Promise((answer, fail) => reads.push({ from, to, kind, answer, fail })),
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

const ALL = [0, 1, 2, 3, 4];
/** Layers `[from, to)`. */
const upTo = (to: number, from = 1) => ALL.slice(from, to);
/** Layers in front of the first that is not there. */
const thereOf = (layered: LayeredSummaries) => layered.firstLacking(ALL) ?? LAYERS;
const askedOf = (layered: LayeredSummaries) => ALL.filter((layer) => layered.isAsked(layer));

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));

describe("layered summaries", () => {
  it("are there as they come, and make blocks whole with the last", async () => {
    const { layered, blocks, reads, holds } = setUp();
    expect([thereOf(layered), askedOf(layered), layered.layerBytes]).toEqual([1, [0], 4 * SHARE]);
    const first = layered.want([1], "demand");
    const rest = layered.want(upTo(LAYERS), "demand");
    void layered.want([2], "demand");
    expect(reads.map(({ from, to }) => [from, to])).toEqual([
      [1, 2],
      [2, LAYERS],
    ]);
    expect([askedOf(layered), layered.comingCount]).toEqual([ALL, 4]);
    let isOver = false;
    void rest.then(() => (isOver = true));
    const last = section(2, LAYERS);
    reads[1]!.answer(last);
    await settled();
    expect(last.byteLength, "their memory was given back").toBe(0);
    expect([thereOf(layered), layered.firstLacking([0, 2, 4]), layered.comingCount, isOver]).toEqual([
      ...[1, undefined, 1, false],
    ]);
    for (const block of blocks) expect([isScoredBy(block, KIND), block.summaries.has(KIND)]).toEqual([true, false]);
    reads[0]!.answer(section(1, 2));
    await first;
    await rest;
    expect(thereOf(layered)).toBe(LAYERS);
    for (const [index, block] of blocks.entries()) {
      expect([block.summaries.has(KIND), block.incoming]).toEqual([true, undefined]);
      for (let layer = 0; layer < LAYERS; layer++) expect(holds(index, layer), `${index}, ${layer}`).toBe(true);
    }
  });

  it("are read of the layers that are wanted, neighbours at once, the others when somebody wants them", async () => {
    const { layered, blocks, reads, holds } = setUp();
    const some = layered.want([0, 2, 4], "demand");
    const rest = layered.want(ALL, "fill");
    expect(reads.map(({ from, to, kind }) => [from, to, kind])).toEqual([
      [2, 3, "demand"],
      [4, 5, "demand"],
      [1, 2, "fill"],
      [3, 4, "fill"],
    ]);
    for (const { from, to, answer } of reads.slice(0, 2)) answer(section(from, to));
    await some;
    expect([layered.firstLacking([0, 2, 4]), thereOf(layered), holds(3, 4), holds(3, 3)]).toEqual([
      ...[undefined, 1, true, false],
    ]);
    expect(blocks.map(({ summaries }) => summaries.size)).toEqual([0, 0, 0, 0]);
    for (const { from, to, answer } of reads.slice(2)) answer(section(from, to));
    await rest;
    expect(blocks.map(({ summaries }) => summaries.size)).toEqual([1, 1, 1, 1]);
  });

  it("that nobody needs as yet are not lost when they do not come: they are read again for whoever does", async () => {
    const { layered, blocks, reads, lost, holds } = setUp();
    const scored = layered.want([2], "demand");
    reads[0]!.answer(section(2, 3));
    await scored;
    const ahead = layered.want(ALL, "fill");
    const wanted = layered.want([1], "demand");
    for (const { fail } of reads.slice(1)) fail(new Error("down"));
    await ahead;
    expect([lost.length, askedOf(layered)]).toEqual([0, [0, 1, 2]]);
    for (const block of blocks) expect(block.incoming).toBe(layered);
    expect(reads.slice(3).map(({ from, to, kind }) => [from, to, kind])).toEqual([[1, 2, "demand"]]);
    reads[3]!.answer(section(1, 2));
    await wanted;
    expect([layered.firstLacking([0, 1, 2]), holds(2, 1)]).toEqual([undefined, true]);
    const failed = layered.want([3], "demand");
    reads[4]!.fail(new Error("down"));
    await failed;
    expect(lost.map((one) => one.blocks)).toEqual([blocks]);
  });

  it.each([
    ["damaged", (bytes: Uint8Array<ArrayBuffer>) => bytes.fill(1, 8, 9)],
    ["short", (bytes: Uint8Array<ArrayBuffer>) => bytes.subarray(1)],
    ["empty", () => new Uint8Array(0)],
    ["of two layers", () => section(1, 3)],
    ["of another layer", () => section(2, 3)],
    ["failing", undefined],
  ])("that are %s are lost once, with those behind them, and nothing of them is written", async (_name, change) => {
    const { layered, blocks, reads, lost, written } = setUp();
    const wanted = [layered.want([1], "demand"), layered.want(upTo(4, 2), "demand")];
    if (change === undefined) reads[0]!.fail(new Error("down"));
    else reads[0]!.answer(change(section(1, 2)));
    await settled();
    reads[1]!.answer(section(2, 4));
    await Promise.all(wanted);
    expect(thereOf(layered)).toBe(1);
    expect(lost.map((one) => one.blocks)).toEqual([blocks]);
    for (const block of blocks) expect([isScoredBy(block, KIND), block.incoming]).toEqual([false, undefined]);
    expect([...written.keys()].every((name) => name.endsWith("/0"))).toBe(true);
    await layered.want([4], "demand");
    expect([reads.length, lost.length]).toEqual([2, 1]);
  });

  it("of which whole layers do not come are lost from there on", async () => {
    const { layered, blocks, reads, lost } = setUp();
    const wanted = layered.want(upTo(4), "demand");
    reads[0]!.answer(section(1, 3));
    await wanted;
    expect([thereOf(layered), lost.length]).toEqual([1, 1]);
    for (const block of blocks) expect(block.incoming).toBeUndefined();
  });

  it("leave the slots alone of blocks that were given up, or got summaries in another way", async () => {
    const { layered, cache, blocks, reads, written, lost } = setUp();
    const [gone, kept] = blocks as [LogicalBlock, LogicalBlock];
    const all = layered.want(ALL, "demand");
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
      const read = async ({ from, to }: LayerRange) => section(from, to);
      const layered = new LayeredSummaries({ pool, head, first: section(0, first), read, onLost() {} });
      const block = cache.create(0);
      layered.give(block, 1);
      expect(written).toEqual(Array.from({ length: first }, (_, layer) => `${block.summarySlot} ${layer} true`));
      expect([thereOf(layered), askedOf(layered), layered.layerBytes]).toEqual([first, upTo(first, 0), 4 * SHARE]);
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
