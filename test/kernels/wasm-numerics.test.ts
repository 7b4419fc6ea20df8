/** What the SIMD kernels could get wrong where random data would not show it. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { encodeBlockHead } from "../../kernels/block-codec.ts";
import { type Device, NOT_RESIDENT } from "../../kernels/contract.ts";
import { openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { markExercised } from "../exercised.ts";
import { expectSameBits } from "./support/compare.ts";
import { bytesOf, poisoned, results, upload } from "./support/floats.ts";
import { Random, SEED } from "./support/random.ts";

describe("wasm numerics", () => {
  markExercised("device", "wasm");
  let device: Device;
  beforeAll(async () => {
    device = await openWasmDevice({ threads: 2 });
  });
  afterAll(() => device.close());

  it("int8 products are exact at the ends of the range, in every lane", async () => {
    // Weights of +-1 and an occasional 0 have codes +-127 and 0, inputs too: every dot product is a multiple of 127^2, the largest is 32 * 127^2.
    const random = new Random(SEED);
    const shape = { outWidth: 24, inWidth: 64 };
    for (const rows of [1, 4, 5]) {
      const pick = (index: number): number => (index % 7 === 0 ? 0 : random.next() < 0.5 ? -1 : 1);
      const weights = Float32Array.from({ length: shape.outWidth * shape.inWidth }, (_, index) => pick(index));
      const inputs = Float32Array.from({ length: rows * shape.inWidth }, (_, index) => pick(index + 3));
      weights.fill(1, 0, shape.inWidth);
      weights.fill(-1, 4 * shape.inWidth, 5 * shape.inWidth);
      inputs.fill(1, 0, shape.inWidth);
      const matrix = device.matrix("ends", "int8", shape, weights);
      const out = poisoned(device, "out", rows * shape.outWidth);
      const step = device.begin([]);
      step.matmul({ out, x: upload(device, "x", inputs), matrix, rows });
      await step.submit();
      const scale = Math.fround(Math.fround(1 / 127) * Math.fround(1 / 127));
      const expected = new Float32Array(rows * shape.outWidth);
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < shape.outWidth; column++) {
          for (const block of [0, 32]) {
            let dot = 0;
            for (let k = block; k < block + 32; k++) {
              dot += 127 * weights[column * shape.inWidth + k]! * (127 * inputs[row * shape.inWidth + k]!);
            }
            const at = row * shape.outWidth + column;
            expected[at] = expected[at]! + Math.fround(dot * scale);
          }
        }
      }
      expect(Math.max(...expected)).toBeCloseTo(64, 4);
      expect(await results(device, out)).toEqual(expected);
    }
  });

  it("int4 products are exact at the ends of the range, in every lane and nibble", async () => {
    // Row r has -8 at input r % 32 of each block and 7 elsewhere, so its scale is 1; inputs are 127 or -127 at one place, so theirs is 1 too.
    const shape = { outWidth: 32, inWidth: 64 };
    const weights = Float32Array.from({ length: shape.outWidth * shape.inWidth }, (_, index) =>
      index % 32 === Math.floor(index / shape.inWidth) % 32 ? -8 : 7,
    );
    const matrix = device.matrix("ends", "int4", shape, weights);
    for (const rows of [1, 4, 6, 64]) {
      const inputs = new Float32Array(rows * shape.inWidth);
      for (let row = 0; row < rows; row++) inputs[row * shape.inWidth + ((row * 37) % 64)] = row % 2 === 0 ? 127 : -127;
      const out = poisoned(device, "out", rows * shape.outWidth);
      const step = device.begin([]);
      step.matmul({ out, x: upload(device, "x", inputs), matrix, rows });
      await step.submit();
      const expected = Array.from({ length: rows * shape.outWidth }, (_, index) => {
        const row = Math.floor(index / shape.outWidth);
        const isEnd = (row * 37) % 32 === index % shape.outWidth;
        return (row % 2 === 0 ? 127 : -127) * (isEnd ? -8 : 7);
      });
      expect([...(await results(device, out))]).toEqual(expected);
    }
  });

  it("every int8 code of an embedding comes back, from both halves of a word", async () => {
    // Row r holds codes r..: each row's largest element is 127, so the scale is exactly 1.
    const inWidth = 32;
    const outWidth = 256;
    const weights = Float32Array.from({ length: outWidth * inWidth }, (_, index) => {
      const column = index % inWidth;
      return column === 31 ? 127 : ((Math.floor(index / inWidth) + column * 8) % 255) - 127;
    });
    const table = device.matrix("codes", "int8", { outWidth, inWidth }, weights);
    const out = poisoned(device, "out", outWidth * inWidth);
    const step = device.begin([]);
    step.embed({ out, table, tokens: Uint32Array.from({ length: outWidth }, (_, index) => index) });
    await step.submit();
    expect(await results(device, out)).toEqual(weights);
  });

  it("a block with infinities and NaNs of any bits is sealed as the definition has it, with one NaN", async () => {
    const shape = { layerCount: 1, kvHeadCount: 2, headDim: 20, encoding: "int8" } as const;
    const pool = device.kvPool({ ...shape, summaryKinds: [], blockCount: 1, openSlotCount: 1, summarySlotCount: 1 });
    const random = new Random(SEED);
    const [keys, values] = [0, 1].map(() =>
      Float32Array.from({ length: 2 * 64 * 20 }, () => Math.fround(random.next() * 2 - 1)),
    ) as [Float32Array<ArrayBuffer>, Float32Array<ArrayBuffer>];
    const bits = [0x7fc00000, 0xffc00001, 0x7fffffff, 0x7f800001, 0x7f800000, 0xff800000];
    for (const part of [keys, values]) {
      const words = new Uint32Array(part.buffer);
      for (const [index, word] of bits.entries()) words[(index * 11 + 3) * 20 + index * 3] = word;
      // A token, and a channel of all tokens, of zeros.
      for (let head = 0; head < 2; head++) part.fill(0, (head * 64 + 9) * 20, (head * 64 + 10) * 20);
      for (let token = 0; token < 128; token++) part[token * 20 + 1] = token % 2 === 0 ? 0 : -0;
    }
    pool.writeOpen(0, 64, bytesOf(Float32Array.of(...keys, ...values)));
    // The last row is appended as it is: its angle is 0.
    const row = (part: Float32Array) =>
      Float32Array.from({ length: 40 }, (_, i) => part[(Math.floor(i / 20) * 64 + 63) * 20 + (i % 20)]!);
    const step = device.begin([
      {
        ...{ position: 63, rowCount: 1, blockIds: Int32Array.of(0), blockCapacity: 1, plan: { kind: "dense" } },
        ...{ summarySlots: Int32Array.of(NOT_RESIDENT), openSlots: Int32Array.of(0), groupStarts: Int32Array.of(0) },
      },
    ]);
    const rope = {
      cos: upload(device, "cos", new Float32Array(64 * 10).fill(1)),
      sin: upload(device, "sin", new Float32Array(64 * 10)),
      positionCount: 64,
    };
    const [q, k, v] = [row(keys), row(keys), row(values)].map((floats) => upload(device, "row", floats));
    step.append({ pool, layer: 0, headCount: 2, q: q!, k: k!, v: v!, rope });
    await step.submit();
    const expected = new Uint8Array(pool.blockBytes);
    for (const head of [0, 1]) {
      const [from, end] = [head * 64 * 20, (head + 1) * 64 * 20];
      encodeBlockHead(shape, expected, head, keys.subarray(from, end), values.subarray(from, end));
    }
    // JavaScript leaves open which NaN it stores.
    const words = new Uint32Array(expected.buffer);
    new Float32Array(expected.buffer).forEach((value, at) => {
      const isScale = (at >= 640 && at < 680) || at >= 1320;
      if (isScale && Number.isNaN(value)) words[at] = 0x7fc00000;
    });
    expectSameBits(await pool.readBlock(0), expected);
  });

  it("the exponential is right to 1e-6 over its range, and ends well beyond it", async () => {
    const gates = [...Array.from({ length: 4001 }, (_, index) => (index - 2000) / 25), 100, -100, 1e4, -1e4];
    const gate = upload(device, "gate", Float32Array.from(gates));
    const up = upload(device, "up", new Float32Array(gates.length).fill(1));
    const out = poisoned(device, "out", gates.length);
    const step = device.begin([]);
    step.siluMul({ out, gate, up, rows: 1, width: gates.length });
    await step.submit();
    const values = await results(device, out);
    gates.forEach((value, index) => {
      const x = Math.fround(value);
      const expected = x / (1 + Math.exp(-x));
      const bound = 1e-6 * Math.abs(expected) + 1e-30;
      if (expected === values[index]) return;
      expect(Math.abs(values[index]! - expected), `silu(${x}) = ${values[index]}`).toBeLessThanOrEqual(bound);
    });
  });
});
