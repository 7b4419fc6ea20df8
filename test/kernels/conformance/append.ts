/** Conformance of append: what open slots, sealed blocks and summaries hold. */
import { describe, expect, it } from "vitest";
import { decodeKeys, encodeBlockHead, summarizeKeys } from "../../../kernels/block-codec.ts";
import type { KvEncoding } from "../../../kernels/contract.ts";
import { NOT_RESIDENT } from "../../../kernels/contract.ts";
import { summaryHeadAt } from "../../../kernels/layout.ts";
import { expectClose, expectSameBits, magnitude } from "../support/compare.ts";
import { bytesOf, floatsOf, upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { plainOpen } from "../support/oracle.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, ropeAngles, type Sequence, Stage, type StageShape } from "../support/stage.ts";

function shapeOf(encoding: KvEncoding, headDim: number): StageShape {
  return {
    layerCount: 2,
    headCount: 2,
    kvHeadCount: 2,
    headDim,
    encoding,
    summaryKinds: ["mean-deviation", "min-max"],
  };
}

/** Every byte of the pool. */
export async function poolBytes({ pool }: Stage): Promise<Uint8Array[]> {
  const { blockCount, summarySlotCount, openSlotCount } = pool.spec;
  const all: Uint8Array[] = [];
  for (let id = 0; id < blockCount; id++) all.push(await pool.readBlock(id));
  for (let slot = 0; slot < summarySlotCount; slot++) all.push(await pool.readSummary(slot));
  for (let slot = 0; slot < openSlotCount; slot++) all.push(await pool.readOpen(slot, 64));
  return all;
}

/** Fills the whole pool with known bytes, so that what an op leaves alone can be told. */
export function paint({ pool }: Stage, seed: number): void {
  const random = new Random(seed);
  for (let id = 0; id < pool.spec.blockCount; id++) pool.writeBlock(id, random.bytes(pool.blockBytes));
  for (let slot = 0; slot < pool.spec.summarySlotCount; slot++) {
    pool.writeSummary(slot, bytesOf(random.normals(pool.summarySlotBytes / 4)));
  }
  for (let slot = 0; slot < pool.spec.openSlotCount; slot++) {
    pool.writeOpen(slot, 64, bytesOf(random.normals(pool.openSlotBytes / 4)));
  }
}

/** Open slots, sealed blocks and summaries, byte by byte where the contract fixes bytes. */
export function describeAppend(lane: Lane): void {
  describe.each(["f32", "int8"] as const)(`append, %s KV (seed ${SEED})`, (encoding) => {
    it.each([8, 20, 64])("open slots hold rotated keys and untouched values, headDim %i", async (headDim) => {
      const shape = shapeOf(encoding, headDim);
      const stage = new Stage(lane.device(), shape, { blockCapacity: 3 });
      const sequence = makeSequence(shape, 150, SEED);
      await stage.fill(sequence, 150);
      const { openSlots } = stage.place(sequence);
      const angles = ropeAngles(headDim);
      for (let block = 0; block < 3; block++) {
        const count = Math.min(64, 150 - block * 64);
        const bytes = await stage.pool.readOpen(openSlots[block]!, count);
        for (let layer = 0; layer < 2; layer++) {
          const open = plainOpen(shape, bytes, layer, count);
          for (let token = 0; token < count; token++)
            checkToken(lane, shape, sequence, { open, layer, block, token, angles });
        }
      }
    });

    it("sealed bytes and summaries follow from the open slot's bytes", async () => {
      const shape = shapeOf(encoding, 20);
      const stage = new Stage(lane.device(), shape, { blockCapacity: 3 });
      const sequence = makeSequence(shape, 129, SEED);
      await stage.fill(sequence, 129);
      const { blockIds, summarySlots, openSlots, blockCapacity } = stage.place(sequence);
      for (let block = 0; block < 2; block++) {
        const open = floatsOf(await stage.pool.readOpen(openSlots[block]!, 64));
        const summary = floatsOf(await stage.pool.readSummary(summarySlots[block]!));
        for (let layer = 0; layer < 2; layer++) {
          const sealed = await stage.pool.readBlock(blockIds[layer * blockCapacity + block]!);
          const expected = new Uint8Array(stage.pool.blockBytes);
          for (let head = 0; head < 2; head++) {
            const at = (layer * 2 + head) * 64 * 20;
            const values = open.subarray(open.length / 2 + at);
            encodeBlockHead(stage.pool.spec, expected, head, open.subarray(at), values);
            checkSummaries(lane, stage, { sealed, summary, layer, head });
          }
          expectSameBits(sealed, expected, `block ${block} layer ${layer}`);
        }
      }
    });

    it("touches nothing but the rows' slots and the blocks that they seal", async () => {
      const shape = shapeOf(encoding, 8);
      const stage = new Stage(lane.device(), shape, { blockCapacity: 5 });
      const sequence = makeSequence(shape, 128, SEED);
      paint(stage, SEED);
      const before = await poolBytes(stage);
      const { blockIds, summarySlots, openSlots, blockCapacity } = stage.place(sequence);
      await stage.run([{ sequence, position: 20, rowCount: 50 }]);
      const after = await poolBytes(stage);
      const { blockCount, summarySlotCount } = stage.pool.spec;
      const sealed = [blockIds[0]!, blockIds[blockCapacity]!];
      const changed = [...sealed, blockCount + summarySlots[0]!];
      for (const block of [0, 1]) changed.push(blockCount + summarySlotCount + openSlots[block]!);
      after.forEach((bytes, index) => {
        if (!changed.includes(index)) expectSameBits(bytes, before[index]!, `entry ${index}`);
        else expect(Buffer.compare(bytes, before[index]!), `entry ${index} changes`).not.toBe(0);
      });
      const slots = [0, 1].map((block) => blockCount + summarySlotCount + openSlots[block]!);
      checkOpenRows(shape, before[slots[0]!]!, after[slots[0]!]!, (token) => token < 20);
      checkOpenRows(shape, before[slots[1]!]!, after[slots[1]!]!, (token) => token >= 6);
    });

    it("is idempotent, also when the block was sealed before", async () => {
      const shape = shapeOf(encoding, 8);
      const stage = new Stage(lane.device(), shape, { blockCapacity: 3 });
      const sequence = makeSequence(shape, 150, SEED);
      await stage.fill(sequence, 150);
      const first = await poolBytes(stage);
      const out = (await stage.run([{ sequence, position: 30, rowCount: 100 }])).out;
      const again = (await stage.run([{ sequence, position: 30, rowCount: 100 }])).out;
      for (let layer = 0; layer < 2; layer++) expectSameBits(again[0]![layer]!, out[0]![layer]!, `layer ${layer}`);
      for (const [index, bytes] of (await poolBytes(stage)).entries()) {
        expectSameBits(bytes, first[index]!, `entry ${index}`);
      }
    });

    it("a block sealed without a summary slot leaves no summary", async () => {
      const shape = shapeOf(encoding, 8);
      const device = lane.device();
      const stage = new Stage(device, shape, { blockCapacity: 2 });
      const sequence = makeSequence(shape, 64, SEED);
      paint(stage, SEED);
      const before = await Promise.all([0, 1].map((slot) => stage.pool.readSummary(slot)));
      const slice = stage.sliceOf({ sequence, position: 0, rowCount: 64 });
      const recorder = device.begin([{ ...slice, summarySlots: Int32Array.of(NOT_RESIDENT) }]);
      const [q, k, v] = (["q", "k", "v"] as const).map((name) => upload(device, name, sequence.layers[0]![name]));
      recorder.append({ pool: stage.pool, layer: 0, headCount: 2, q: q!, k: k!, v: v!, rope: stage.rope });
      await recorder.submit();
      for (const slot of [0, 1]) expectSameBits(await stage.pool.readSummary(slot), before[slot]!, `slot ${slot}`);
    });
  });
}

interface TokenAt {
  open: { keys: number[][][]; values: number[][][] };
  layer: number;
  block: number;
  token: number;
  angles: { cos: Float32Array; sin: Float32Array };
}

function checkToken(lane: Lane, shape: StageShape, sequence: Sequence, at: TokenAt): void {
  const { open, layer, block, token, angles } = at;
  const { cos, sin } = angles;
  const { headDim } = shape;
  const half = headDim / 2;
  const position = block * 64 + token;
  const { k, v } = sequence.layers[layer]!;
  for (let head = 0; head < shape.kvHeadCount; head++) {
    const row = (position * shape.kvHeadCount + head) * headDim;
    const expected = Array.from({ length: headDim }, (_, channel) => {
      const angle = position * half + (channel % half);
      const [low, high] = [k[row + (channel % half)]!, k[row + (channel % half) + half]!];
      return channel < half ? low * cos[angle]! - high * sin[angle]! : high * cos[angle]! + low * sin[angle]!;
    });
    const absolute = lane.tolerances.rotation * magnitude(expected);
    expectClose(open.keys[head]![token]!, expected, { relative: 0, absolute }, `key of position ${position}`);
    expect(open.values[head]![token], `value of position ${position}`).toEqual([...v.slice(row, row + headDim)]);
  }
}

function checkSummaries(
  lane: Lane,
  stage: Stage,
  { sealed, summary, layer, head }: { sealed: Uint8Array; summary: Float32Array; layer: number; head: number },
): void {
  const { headDim } = stage.shape;
  const keys = decodeKeys(stage.pool.spec, sealed, head);
  for (const kind of ["min-max", "mean-deviation"] as const) {
    const at = summaryHeadAt(stage.pool.spec, kind, layer, head);
    const actual = summary.slice(at, at + 4 * 2 * headDim);
    const expected = summarizeKeys(kind, keys, headDim);
    if (kind === "min-max") expectSameBits(actual, expected, "min-max summaries");
    const absolute = lane.tolerances.rotation * magnitude(keys);
    expectClose(actual, expected, { relative: 0, absolute }, `${kind} summaries`);
  }
}

/** Rows of an open slot for which `isOld` holds are as before, the others not. */
function checkOpenRows(
  { headDim }: StageShape,
  before: Uint8Array,
  after: Uint8Array,
  isOld: (token: number) => boolean,
): void {
  const rowBytes = headDim * 4;
  for (let row = 0; row * rowBytes < before.length; row++) {
    const [old, now] = [before, after].map((bytes) => bytes.subarray(row * rowBytes, (row + 1) * rowBytes));
    expect(Buffer.compare(old!, now!) === 0, `row ${row} of the open slot is as before`).toBe(isOld(row % 64));
  }
}
