/** Numerics are invariant: on one device, a row's bits do not depend on what else is in the step or how the work is cut. */
import { describe, expect, it } from "vitest";
import type { DeviceBuffer, KvEncoding, SelectionPlan, StepRecorder } from "../../../kernels/contract.ts";
import { expectSameBits, isSameBytes } from "../support/compare.ts";
import { poisoned, results, upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, type Part, type Sequence, Stage, type StageShape } from "../support/stage.ts";
import { poolBytes } from "./append.ts";
import { PLANS } from "./selection.ts";

const SHAPE: Omit<StageShape, "encoding"> = {
  ...{ layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 12 },
  summaryKinds: ["min-max", "mean-deviation"],
};
const ENCODINGS: readonly KvEncoding[] = ["f32", "int8"];

/** Compares a device with itself, bit by bit. */
export function describeInvariance(lane: Lane): void {
  describeRowInvariance(lane);
  describe.each(ENCODINGS)(`invariance, %s KV (seed ${SEED})`, (encoding) => {
    const shape: StageShape = { ...SHAPE, encoding };
    describeBatches(lane, shape);
    describeChunks(lane, shape);
    describeResidency(lane, shape);
  });
}

type Op = (recorder: StepRecorder, args: { out: DeviceBuffer; x: DeviceBuffer; rows: number }) => void;

function describeRowInvariance(lane: Lane): void {
  const inWidth = 52;
  const outWidth = 37;
  const makeOps = (): { name: string; width: number; op: Op }[] => {
    const device = lane.device();
    const random = new Random(SEED);
    const weights = random.normals(outWidth * inWidth);
    const products = (["f32", "bf16", "f16", "int8", "int4"] as const).map((encoding) => {
      const matrix = device.matrix("weights", encoding, { outWidth, inWidth }, weights);
      const op: Op = (recorder, args) => recorder.matmul({ ...args, matrix });
      return { name: `matmul ${encoding}`, width: outWidth, op };
    });
    const weight = upload(device, "norm weight", random.normals(inWidth));
    return [
      ...products,
      {
        name: "rmsNorm",
        width: inWidth,
        op: (recorder, args) => recorder.rmsNorm({ ...args, weight, width: inWidth, eps: 1e-5 }),
      },
      {
        name: "siluMul",
        width: inWidth,
        op: (recorder, { out, x, rows }) => recorder.siluMul({ out, gate: x, up: x, rows, width: inWidth }),
      },
    ];
  };

  it(`row ops: a row alone and at any place of a batch (seed ${SEED})`, async () => {
    const device = lane.device();
    const rows = new Random(SEED).normals(70 * inWidth);
    for (const { name, width, op } of makeOps()) {
      const run = async (firstRow: number, rowCount: number): Promise<Float32Array> => {
        const x = upload(device, "x", rows.slice(firstRow * inWidth, (firstRow + rowCount) * inWidth));
        const out = poisoned(device, "out", rowCount * width);
        const recorder = device.begin([]);
        op(recorder, { out, x, rows: rowCount });
        await recorder.submit();
        const values = await results(device, out);
        device.release(x);
        device.release(out);
        return values;
      };
      const whole = await run(0, 70);
      for (const [firstRow, rowCount] of [
        [0, 1],
        [69, 1],
        [3, 2],
        [5, 3],
        [8, 5],
        [17, 9],
        [1, 33],
        [13, 57],
      ] as const) {
        const expected = whole.slice(firstRow * width, (firstRow + rowCount) * width);
        expectSameBits(await run(firstRow, rowCount), expected, `${name}, ${rowCount} rows from ${firstRow}`);
      }
    }
  });
}

function describeBatches(lane: Lane, shape: StageShape): void {
  it("a slice alone, in a batch, and in the batch turned round", async () => {
    const plans: SelectionPlan[] = [{ kind: "dense" }, ...PLANS.map(({ plan }) => plan)];
    const stage = new Stage(lane.device(), shape, { blockCapacity: 8 * plans.length });
    const parts: Part[] = [];
    for (const [index, plan] of plans.entries()) {
      const sequence = makeSequence(shape, 390 + index * 5, SEED + index);
      const rowCount = 1 + ((index * 7) % 20);
      const position = sequence.length - rowCount;
      await stage.fill(sequence, position);
      parts.push({ sequence, position, rowCount, plan });
    }
    const batch = await stage.run(parts);
    const turned = await stage.run([...parts].reverse());
    for (const [index, part] of parts.entries()) {
      const alone = await stage.run([part]);
      for (let layer = 0; layer < shape.layerCount; layer++) {
        const expected = alone.out[0]![layer]!;
        expectSameBits(batch.out[index]![layer]!, expected, `part ${index} layer ${layer} in the batch`);
        expectSameBits(turned.out[parts.length - 1 - index]![layer]!, expected, `part ${index} layer ${layer} turned`);
      }
      expect(batch.readback.traffic[index], `traffic of part ${index}`).toEqual(alone.readback.traffic[0]);
    }
  });

  it("wherever its blocks lie", async () => {
    const sequence = makeSequence(shape, 300, SEED);
    const run = async (seed: number) => {
      const stage = new Stage(lane.device(), shape, { blockCapacity: 8, seed });
      return stage.run([{ sequence, position: 0, rowCount: 300 }]);
    };
    const [one, other] = [await run(1), await run(2)];
    for (let layer = 0; layer < 2; layer++) expectSameBits(one.out[0]![layer]!, other.out[0]![layer]!);
  });
}

/** Runs `[start, end)` in pieces and joins the rows. */
async function inPieces(
  stage: Stage,
  sequence: Sequence,
  cut: { start: number; end: number; piece: number; plan: SelectionPlan; groupRows?: number },
): Promise<Float32Array[]> {
  const { headCount, headDim, layerCount } = stage.shape;
  const width = headCount * headDim;
  const layers = Array.from({ length: layerCount }, () => new Float32Array((cut.end - cut.start) * width));
  for (let position = cut.start; position < cut.end; position += cut.piece) {
    const rowCount = Math.min(cut.piece, cut.end - position);
    const groupRows = cut.groupRows ?? rowCount;
    const groupStarts = Array.from({ length: Math.ceil(rowCount / groupRows) }, (_, group) => group * groupRows);
    const { out } = await stage.run([{ sequence, position, rowCount, plan: cut.plan, groupStarts }]);
    layers.forEach((rows, layer) => {
      rows.set(out[0]![layer]!, (position - cut.start) * width);
    });
  }
  return layers;
}

function describeChunks(lane: Lane, shape: StageShape): void {
  it("prefill in pieces of 1, 7, 64, 100 and at once, pool bytes too", async () => {
    const sequence = makeSequence(shape, 210, SEED);
    const prefill = async (piece: number) => {
      const stage = new Stage(lane.device(), shape, { blockCapacity: 4 });
      const cut = { start: 0, end: 210, piece, plan: { kind: "dense" } as const };
      const out = await inPieces(stage, sequence, cut);
      const { openSlots } = stage.place(sequence);
      const tail = await stage.pool.readOpen(openSlots[3]!, 210 - 192);
      return { out, bytes: [...(await poolBytes(stage)).slice(0, -4), tail], openSlots };
    };
    const whole = await prefill(210);
    for (const piece of [1, 7, 64, 100]) {
      const pieces = await prefill(piece);
      whole.out.forEach((rows, layer) => {
        expectSameBits(pieces.out[layer]!, rows, `pieces of ${piece}, layer ${layer}`);
      });
      const sealed = whole.bytes.length;
      expect(pieces.bytes.length).toBe(sealed);
      await expectSamePool(whole.bytes, pieces.bytes, `pieces of ${piece}`);
    }
  });

  it.each(PLANS)("a resumed turn with $name, cut at the borders of its query groups", async ({ plan }) => {
    const sequence = makeSequence(shape, 480, SEED);
    const turnStart = 333;
    const resume = async (piece: number) => {
      const stage = new Stage(lane.device(), shape, { blockCapacity: 8 });
      await stage.fill(sequence, turnStart);
      return inPieces(stage, sequence, { start: turnStart, end: 480, piece, plan, groupRows: 21 });
    };
    const whole = await resume(147);
    for (const piece of [21, 63]) {
      const pieces = await resume(piece);
      whole.forEach((rows, layer) => {
        expectSameBits(pieces[layer]!, rows, `pieces of ${piece}, layer ${layer}`);
      });
    }
  });

  it("dense, whatever the query groups", async () => {
    const sequence = makeSequence(shape, 200, SEED);
    const run = async (groupStarts: number[]) => {
      const stage = new Stage(lane.device(), shape, { blockCapacity: 4 });
      return stage.run([{ sequence, position: 0, rowCount: 200, groupStarts }]);
    };
    const whole = await run([0]);
    for (const groupStarts of [[0, 64, 128], [0, 1, 2, 50, 199], Array.from({ length: 200 }, (_, row) => row)]) {
      const cut = await run(groupStarts);
      for (let layer = 0; layer < 2; layer++) expectSameBits(cut.out[0]![layer]!, whole.out[0]![layer]!);
    }
  });
}

async function expectSamePool(
  whole: readonly Uint8Array[],
  pieces: readonly Uint8Array[],
  what: string,
): Promise<void> {
  for (const [index, bytes] of whole.entries()) expectSameBits(pieces[index]!, bytes, `${what}: pool entry ${index}`);
}

function describeResidency(lane: Lane, shape: StageShape): void {
  it("a step run again after its misses have come equals one that missed nothing", async () => {
    const sequence = makeSequence(shape, 450, SEED);
    for (const { name, plan } of PLANS) {
      const stage = new Stage(lane.device(), shape, { blockCapacity: 8 });
      await stage.fill(sequence, 448);
      const part = { sequence, position: 448, rowCount: 2, plan };
      const straight = await stage.run([part]);
      const holed = await stage.run([{ ...part, absent: [{ block: 0 }, { block: 2 }, { block: 5 }] }]);
      const again = await stage.run([part]);
      for (let layer = 0; layer < 2; layer++) {
        expectSameBits(again.out[0]![layer]!, straight.out[0]![layer]!, `${name}, layer ${layer}`);
      }
      const differs = !isSameBytes(bytes(holed.out[0]![0]!), bytes(straight.out[0]![0]!));
      expect(differs, `${name}: a miss in layer 0 shows`).toBe(holed.readback.misses.some(({ layer }) => layer === 0));
    }
  });
}

function bytes(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
