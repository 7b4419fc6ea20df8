/** Random weights made on the GPU, on a software adapter. */
import { describe, expect, it, vi } from "vitest";
import { drawNormal } from "../../bench/decode/fill-random.ts";
import { noiseMatrix } from "../../bench/gpu/noise.ts";
import { seededRandom } from "../../bench/random.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { floatsOf } from "../kernels/support/floats.ts";
import { adapterForTests } from "../support/software-gpu.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const SHAPE = { outWidth: 400, inWidth: 96 };

describe.skipIf(!hasAdapter)("noise as weights", () => {
  it.each(["int8", "int4", "bf16", "f32"] as const)(
    "of %s is seeded, and a product with it keeps its size",
    async (encoding) => {
      // In several buffers, each of which is filled.
      const device = await openWebGpuDevice({ bindingBytesMax: 1 << 14 });
      const packed: string[] = [];
      for (const seed of [1, 1, 2]) {
        const matrix = await noiseMatrix({ device, seed }, "noise", encoding, SHAPE);
        packed.push(Buffer.from(await device.readPacked(matrix, 0, matrix.packedBytes)).toString("base64"));
      }
      expect(packed[1]).toBe(packed[0]);
      expect(packed[2]).not.toBe(packed[0]);

      const matrix = await noiseMatrix({ device, seed: 3 }, "noise", encoding, SHAPE);
      const random = seededRandom(5);
      const rows = 4;
      const values = Float32Array.from({ length: rows * SHAPE.inWidth }, () => drawNormal(random));
      const x = device.buffer("x", values.byteLength);
      device.write(x, 0, new Uint8Array(values.buffer));
      const out = device.buffer("out", rows * SHAPE.outWidth * 4);
      const recorder = device.begin([]);
      recorder.matmul({ out, x, matrix, rows });
      await recorder.submit();
      const products = floatsOf(await device.read(out, 0, out.bytes));
      const deviation = Math.sqrt(products.reduce((sum, value) => sum + value ** 2, 0) / products.length);
      // Codes have the deviation that their scale is made for; floats lie between 1/128 and 1/64.
      const expected = encoding === "int8" || encoding === "int4" ? 1 : 0.0119 * Math.sqrt(SHAPE.inWidth);
      expect(deviation / expected).toBeGreaterThan(0.85);
      expect(deviation / expected).toBeLessThan(1.15);
      expect(new Set(products).size, "no two rows of the matrix are equal").toBeGreaterThan(0.98 * products.length);
      await device.close();
    },
  );
});
