/** The reference device on cases small enough to be worked out on paper. */
import { describe, expect, it } from "vitest";
import type { DeviceBuffer, KvPool, RopeTable, StepSlice } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { markExercised } from "../exercised.ts";
import { bytesOf, floatsOf, upload } from "./support/floats.ts";

const device = openReferenceDevice();

const put = (...values: number[]): DeviceBuffer => upload(device, "values", Float32Array.from(values));

async function get(buffer: DeviceBuffer): Promise<number[]> {
  return [...floatsOf(await device.read(buffer, 0, buffer.bytes))];
}

/** Angles that turn every position by the same (cos, sin). */
function ropeOf(
  cos: number,
  sin: number,
  { headDim, positionCount }: { headDim: number; positionCount: number },
): RopeTable {
  const elements = (positionCount * headDim) / 2;
  return { cos: put(...Array(elements).fill(cos)), sin: put(...Array(elements).fill(sin)), positionCount };
}

function poolOf(blockCount: number): KvPool {
  return device.kvPool({
    ...{ layerCount: 1, kvHeadCount: 1, headDim: 4, encoding: "f32", summaryKinds: ["min-max"] },
    ...{ blockCount, openSlotCount: 1, summarySlotCount: blockCount },
  });
}

describe("the reference device, by hand", () => {
  markExercised("device", "reference");

  it("rmsNorm: (3, 4) has mean square 12.5", async () => {
    const out = put(0, 0);
    const recorder = device.begin([]);
    recorder.rmsNorm({ out, x: put(3, 4), weight: put(1, 2), rows: 1, width: 2, eps: 0 });
    await recorder.submit();
    const values = await get(out);
    expect(values[0]).toBeCloseTo(3 / Math.sqrt(12.5), 6);
    expect(values[1]).toBeCloseTo(8 / Math.sqrt(12.5), 6);
  });

  it("matmul, f32: out = x . W^T", async () => {
    const matrix = device.matrix("w", "f32", { outWidth: 3, inWidth: 2 }, Float32Array.of(1, 2, 3, 4, 5, 6));
    const out = put(0, 0, 0, 0, 0, 0);
    const recorder = device.begin([]);
    recorder.matmul({ out, x: put(1, 0, 1, -1), matrix, rows: 2 });
    await recorder.submit();
    expect(await get(out)).toEqual([1, 3, 5, -1, -1, -1]);
  });

  it("matmul, int8: scales of 1, and -63.5 rounds to the even -64", async () => {
    const matrix = device.matrix("w", "int8", { outWidth: 1, inWidth: 2 }, Float32Array.of(127, -63.5));
    const out = put(0);
    const recorder = device.begin([]);
    recorder.matmul({ out, x: put(127, 2), matrix, rows: 1 });
    await recorder.submit();
    expect(await get(out)).toEqual([127 * 127 - 64 * 2]);
  });

  it("append: a quarter turn takes (a, b, c, d) to (-c, -d, a, b)", async () => {
    const pool = poolOf(1);
    const q = put(5, 6, 7, 8);
    const recorder = device.begin([decodeAt(0, 1)]);
    const rope = ropeOf(0, 1, { headDim: 4, positionCount: 1 });
    recorder.append({ pool, layer: 0, headCount: 1, q, k: put(1, 2, 3, 4), v: put(9, 10, 11, 12), rope });
    await recorder.submit();
    expect(await get(q)).toEqual([-7, -8, 5, 6]);
    expect([...floatsOf(await pool.readOpen(0, 1))]).toEqual([-3, -4, 1, 2, 9, 10, 11, 12]);
  });

  it("attend: scores of ln 3 and 0 weigh 3/4 and 1/4", async () => {
    const pool = poolOf(1);
    pool.writeOpen(0, 1, bytesOf(Float32Array.of(1, 0, 0, 0, 4, 0, 0, 0)));
    const q = put(2 * Math.log(3), 0, 0, 0);
    const out = put(0, 0, 0, 0);
    const recorder = device.begin([decodeAt(1, 1)]);
    const rope = ropeOf(1, 0, { headDim: 4, positionCount: 2 });
    const common = { pool, layer: 0, headCount: 1, q };
    recorder.append({ ...common, k: put(0, 1, 0, 0), v: put(0, 8, 0, 0), rope });
    recorder.select(common);
    recorder.attend({ ...common, out });
    const { traffic, misses } = await recorder.submit();
    const values = await get(out);
    expect(values[0]).toBeCloseTo(3, 5);
    expect(values[1]).toBeCloseTo(2, 5);
    expect(values.slice(2)).toEqual([0, 0]);
    expect(traffic).toEqual([
      { pagesSelected: 0, pagesInContext: 0, kvBytes: 2 * 2 * 4 * 4, metadataBytes: 0, pagesPassedOver: 0 },
    ]);
    expect(misses).toEqual([]);
  });

  it("select: Quest adds the radius on the query's side, and the two best pages join the forced ones", async () => {
    const pool = poolOf(7);
    // Channel 0 of the query is 1, channel 1 is -2: score = c0 - 2 c1 + r0 + 2 r1. Page 5 scores 3, page 9 scores 4, page 12 scores 2.
    for (let slot = 0; slot < 7; slot++) {
      const summary = new Uint8Array(4 * 2 * 4 + 4 * 2 * 4);
      const codes = new Int8Array(summary.buffer);
      new Float32Array(summary.buffer, 4 * 2 * 4).fill(1);
      for (let page = slot * 4; page < slot * 4 + 4; page++) {
        const at = (page % 4) * 8;
        if (page === 5) codes.set([3], at);
        if (page === 9) codes.set([0, 0, 0, 0, 0, 2], at);
        if (page === 12) codes.set([0, -1], at);
        if (page === 13) codes.set([0, 1, 0, 0, 3], at);
      }
      pool.writeSummary(slot, "min-max", summary);
    }
    const slice: StepSlice = {
      ...decodeAt(399, 7),
      plan: {
        ...{ kind: "pages", budgetPages: 5, sinkPages: 1, recentPages: 2, scope: "kv-head", combine: "max" },
        scorer: { summary: "min-max", radiusWeight: 1 },
      },
    };
    slice.blockIds[2] = -1;
    slice.blockIds[3] = -1;
    const recorder = device.begin([slice]);
    recorder.select({ pool, layer: 0, headCount: 1, q: put(1, -2, 0, 0) });
    expect(device.debugSelection?.(recorder)).toEqual([
      { sliceIndex: 0, group: 0, kvHead: 0, pages: [0, 5, 9, 23, 24] },
    ]);
    expect(recorder.hasMissed(0)).toBe(true);
    const { misses, traffic } = await recorder.submit();
    expect(misses).toEqual([{ sliceIndex: 0, layer: 0, block: 2 }]);
    // Candidates are pages 1 to 22; a page's summary is twice 4 codes and a scale.
    expect(traffic).toEqual([
      { pagesSelected: 5, pagesInContext: 25, kvBytes: 0, metadataBytes: 22 * 16, pagesPassedOver: 0 },
    ]);
  });
});

/** One row of a sequence whose blocks and summaries have their own number as id. */
function decodeAt(position: number, blockCapacity: number): StepSlice {
  const ids = Int32Array.from({ length: blockCapacity }, (_, block) => block);
  return {
    ...{ position, rowCount: 1, blockIds: ids, blockCapacity, summarySlots: ids.slice() },
    ...{ openSlots: Int32Array.of(0), groupStarts: Int32Array.of(0), plan: { kind: "dense" } },
  };
}
