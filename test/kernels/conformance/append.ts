/** Conformance of append: what open slots, sealed blocks and summaries hold. */
import { describe, expect, it } from "vitest";
import { decodeKeys, encodeBlockHead } from "../../../kernels/block-codec.ts";
import type { KvEncoding } from "../../../kernels/contract.ts";
import { NOT_RESIDENT } from "../../../kernels/contract.ts";
import { summarizeKeys } from "../../../kernels/summary-codec.ts";
import { expectClose, expectSameBits, isSameBytes, magnitude } from "../support/compare.ts";
import { bytesOf, floatsOf, upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { plainBlock, plainOpen, plainSummary } from "../support/oracle.ts";
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
  const { blockCount, summarySlotCount, openSlotCount, summaryKinds } = pool.spec;
  const all: Uint8Array[] = [];
  for (let id = 0; id < blockCount; id++) all.push(await pool.readBlock(id));
  for (let slot = 0; slot < summarySlotCount; slot++) {
    const kinds = await Promise.all(summaryKinds.map((kind) => pool.readSummary(slot, kind)));
    all.push(Uint8Array.from(kinds.flatMap((bytes) => [...bytes])));
  }
  for (let slot = 0; slot < openSlotCount; slot++) all.push(await pool.readOpen(slot, 64));
  return all;
}

/** Fills the whole pool with known bytes, so that what an op leaves alone can be told. */
export function paint({ pool }: Stage, seed: number): void {
  const random = new Random(seed);
  for (let id = 0; id < pool.spec.blockCount; id++) pool.writeBlock(id, random.bytes(pool.blockBytes));
  for (let slot = 0; slot < pool.spec.summarySlotCount; slot++) {
    for (const kind of pool.spec.summaryKinds) pool.writeSummary(slot, kind, random.bytes(pool.summaryBytes));
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
        const slot = summarySlots[block]!;
        for (let layer = 0; layer < 2; layer++) {
          const sealed = await stage.pool.readBlock(blockIds[layer * blockCapacity + block]!);
          const expected = new Uint8Array(stage.pool.blockBytes);
          for (let head = 0; head < 2; head++) {
            const at = (layer * 2 + head) * 64 * 20;
            const values = open.subarray(open.length / 2 + at);
            encodeBlockHead(stage.pool.spec, expected, head, open.subarray(at), values);
            await checkSummaries(stage, { sealed, slot, layer, head });
          }
          expectSameBits(sealed, expected, `block ${block} layer ${layer}`);
        }
      }
    });

    it.each([4, 36, 64])("summaries of extreme keys have the codec's bytes, headDim %i", async (headDim) => {
      const shape = { ...shapeOf(encoding, headDim), layerCount: 1 };
      const stage = new Stage(lane.device(), shape, { blockCapacity: 4 });
      const sequence = makeSequence(shape, 256, SEED);
      const { k } = sequence.layers[0]!;
      const width = 2 * headDim;
      const random = new Random(SEED);
      // Block 0: pages of zeros, of one value, of tiny and of huge ones. Block 1: integers, which make halves. Block 2: a lone large channel.
      for (let at = 0; at < 64 * width; at++) {
        const page = Math.floor(at / width / 16);
        k[at] = [0, 0.75, random.normal(1e-42), random.normal(1e30)][page]!;
      }
      for (let at = 64 * width; at < 128 * width; at++) k[at] = random.integer(9) - 4;
      for (let at = 128 * width; at < 192 * width; at += headDim) k[at] = 1000 * random.normal();
      await stage.fill(sequence, 256);
      const { blockIds, summarySlots } = stage.place(sequence);
      for (let block = 0; block < 4; block++) {
        const sealed = await stage.pool.readBlock(blockIds[block]!);
        const slot = summarySlots[block]!;
        for (const head of [0, 1]) await checkSummaries(stage, { sealed, slot, layer: 0, head });
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
        else expect(isSameBytes(bytes, before[index]!), `entry ${index} changes`).toBe(false);
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
      const read = (slot: number) => stage.pool.readSummary(slot, "min-max");
      const before = await Promise.all([0, 1].map(read));
      const slice = stage.sliceOf({ sequence, position: 0, rowCount: 64 });
      const recorder = device.begin([{ ...slice, summarySlots: Int32Array.of(NOT_RESIDENT) }]);
      const [q, k, v] = (["q", "k", "v"] as const).map((name) => upload(device, name, sequence.layers[0]![name]));
      recorder.append({ pool: stage.pool, layer: 0, headCount: 2, q: q!, k: k!, v: v!, rope: stage.rope });
      await recorder.submit();
      for (const slot of [0, 1]) expectSameBits(await read(slot), before[slot]!, `slot ${slot}`);
    });
  });

  describe.each(["f16", "int4"] as const)(`append, sealed blocks rounded to %s (seed ${SEED})`, (rounding) => {
    it.each([4, 20, 64])(
      "sealed bytes and summaries follow from the open slot's bytes, headDim %i",
      async (headDim) => {
        const shape = { ...shapeOf(rounding === "f16" ? "f32" : "int8", headDim), rounding };
        const stage = new Stage(lane.device(), shape, { blockCapacity: 3 });
        const sequence = makeSequence(shape, 192, SEED);
        const random = new Random(SEED);
        // Block 1: one channel and one token far off zero, tiny values and ones beyond binary16. Block 2: integers, which make halves.
        for (const { k, v } of sequence.layers) {
          for (let at = 64 * 2 * headDim; at < 128 * 2 * headDim; at++) {
            k[at] = at % headDim === 1 ? 50 + random.normal() : k[at]! * (at % 3 === 0 ? 1e-6 : 1e5);
            v[at] = v[at]! * 1e-7;
          }
          for (let at = 128 * 2 * headDim; at < 192 * 2 * headDim; at++) k[at] = random.integer(99) - 49;
        }
        await stage.fill(sequence, 192);
        const { blockIds, summarySlots, openSlots, blockCapacity } = stage.place(sequence);
        for (let block = 0; block < 3; block++) {
          const open = floatsOf(await stage.pool.readOpen(openSlots[block]!, 64));
          for (let layer = 0; layer < 2; layer++) {
            const sealed = await stage.pool.readBlock(blockIds[layer * blockCapacity + block]!);
            const expected = new Uint8Array(stage.pool.blockBytes);
            for (let head = 0; head < 2; head++) {
              const at = (layer * 2 + head) * 64 * headDim;
              encodeBlockHead(shape, expected, head, open.subarray(at), open.subarray(open.length / 2 + at));
              await checkSummaries(stage, { sealed, slot: summarySlots[block]!, layer, head });
            }
            expectSameBits(sealed, expected, `block ${block} layer ${layer}`);
          }
        }
      },
    );
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

/** Every kind that the stage keeps has the bytes that follow from the sealed block's. */
export async function checkSummaries(
  stage: Stage,
  { sealed, slot, layer, head }: { sealed: Uint8Array; slot: number; layer: number; head: number },
): Promise<void> {
  const { headDim, kvHeadCount } = stage.shape;
  const keys = decodeKeys(stage.pool.spec, sealed, head);
  const headBytes = 8 * headDim + 32;
  for (const kind of stage.shape.summaryKinds) {
    const bytes = await stage.pool.readSummary(slot, kind);
    const at = (layer * kvHeadCount + head) * headBytes;
    expectSameBits(bytes.subarray(at, at + headBytes), summarizeKeys(kind, keys, headDim), `${kind} summaries`);
    if (kind === "min-max") checkBound(plainBlock(stage.shape, sealed).keys[head]!, stage, { bytes, layer, head });
  }
}

/** Every decoded key lies within the radius of its page's centre, but for rounding in f32. */
function checkBound(
  keys: number[][],
  { shape }: Stage,
  { bytes, layer, head }: { bytes: Uint8Array; layer: number; head: number },
): void {
  const summaries = [0, 1, 2, 3].map((page) => plainSummary(shape, bytes, { layer, kvHead: head, page }));
  keys.forEach((key, token) => {
    const summary = summaries[Math.floor(token / 16)]!;
    key.forEach((value, channel) => {
      const centre = summary.centre[channel]! * summary.centreScale;
      const radius = summary.radius[channel]! * summary.radiusScale;
      // A scale below the smallest normal f32 is off by half a unit of those, times 127 for each of two scales.
      const slack = (Math.abs(centre) + radius) * 1e-6 + 2e-43;
      const distance = Math.abs(value - centre);
      if (!(distance <= radius + slack)) {
        expect.fail(`token ${token} channel ${channel}: ${distance} from the centre, radius ${radius}`);
      }
    });
  });
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
    expect(isSameBytes(old!, now!), `row ${row} of the open slot is as before`).toBe(isOld(row % 64));
  }
}
