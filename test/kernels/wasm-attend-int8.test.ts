/** Integer attention over int8 blocks where it could overflow, lose a sign or read over an end: values are worked out by hand. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { blockLayout } from "../../kernels/layout.ts";
import { openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { markExercised } from "../exercised.ts";
import { poisoned, results, upload } from "./support/floats.ts";

/** Two sealed blocks and an open token that nobody likes: its key is the opposite of what every query looks for, at great length. */
const BLOCK_COUNT = 2;

/** Codes and scales of one block, by (KV head, token, channel). */
interface Filling {
  key(kvHead: number, token: number, channel: number): number;
  keyScale: number;
  value(kvHead: number, token: number, channel: number): number;
  valueScale: number;
}

/** Attention of one row at position 128 with `q(head, channel)`; the open token's key is -100 q of the first head of its KV head. */
async function attendTo(
  device: Device,
  { headCount, kvHeadCount, headDim }: { headCount: number; kvHeadCount: number; headDim: number },
  q: (head: number, channel: number) => number,
  fillings: readonly Filling[],
): Promise<Float32Array> {
  const spec = {
    ...{ layerCount: 1, kvHeadCount, headDim, encoding: "int8" as const, summaryKinds: [] },
    ...{ blockCount: BLOCK_COUNT, openSlotCount: 1, summarySlotCount: 1 },
  };
  const pool = device.kvPool(spec);
  const { keyScalesAt, valuesAt, valueScalesAt } = blockLayout(spec);
  fillings.forEach((filling, block) => {
    const bytes = new Uint8Array(pool.blockBytes);
    const view = new DataView(bytes.buffer);
    for (let kvHead = 0; kvHead < kvHeadCount; kvHead++) {
      for (let token = 0; token < 64; token++) {
        for (let channel = 0; channel < headDim; channel++) {
          const at = (kvHead * 64 + token) * headDim + channel;
          view.setInt8(at, filling.key(kvHead, token, channel));
          view.setInt8(valuesAt + at, filling.value(kvHead, token, channel));
          view.setFloat32(keyScalesAt + (kvHead * headDim + channel) * 4, filling.keyScale, true);
        }
        view.setFloat32(valueScalesAt + (kvHead * 64 + token) * 4, filling.valueScale, true);
      }
    }
    pool.writeBlock(block, bytes);
  });
  const group = headCount / kvHeadCount;
  const open = new Float32Array(2 * kvHeadCount * headDim);
  for (let at = 0; at < kvHeadCount * headDim; at++) {
    open[at] = -100 * q(Math.floor(at / headDim) * group, at % headDim);
  }
  pool.writeOpen(0, 1, new Uint8Array(open.buffer));
  const queries = Float32Array.from({ length: headCount * headDim }, (_, at) =>
    q(Math.floor(at / headDim), at % headDim),
  );
  const out = poisoned(device, "out", headCount * headDim);
  const step = device.begin([
    {
      ...{ position: 128, rowCount: 1, blockIds: Int32Array.from([0, 1, -1]), blockCapacity: 3 },
      ...{ summarySlots: Int32Array.from([-1, -1, -1]), openSlots: Int32Array.from([0]) },
      ...{ groupStarts: Int32Array.from([0]), plan: { kind: "dense" } },
    },
  ]);
  const x = upload(device, "q", queries);
  step.select({ pool, layer: 0, headCount, q: x });
  step.attend({ pool, layer: 0, headCount, q: x, out });
  await step.submit();
  return results(device, out);
}

describe.each([1, 3])("wasm, integer attention over int8 blocks, %i threads", (threads) => {
  markExercised("device", `wasm, ${threads} threads, integer attention`);
  let device: Device;
  beforeAll(async () => {
    device = await openWasmDevice({ threads, sharedWorkMin: 0 });
  });
  afterAll(() => device.close());

  const shapes = [1, 2, 3, 4, 7].flatMap((group) => [20, 64, 512].map((headDim) => ({ group, headDim })));

  it.each(shapes)("$group heads on a KV head of $headDim: the largest sums fit", async ({ group, headDim }) => {
    // Channel c of every query has the sign of the first block's keys and the opposite of the second's: all codes are at their ends, so the
    // sums are the largest there are, 512 * 32767 * 127 for a score. The second block must vanish, the first one's values come back.
    const sign = (channel: number): number => (channel % 3 === 1 ? -1 : 1);
    const value = (kvHead: number, channel: number): number => 127 * ((kvHead + channel) % 2 === 0 ? 1 : -1);
    const kvHeadCount = 2;
    const out = await attendTo(
      device,
      { headCount: group * kvHeadCount, kvHeadCount, headDim },
      (_, channel) => 4 * sign(channel),
      [1, -1].map((side) => ({
        key: (_kvHead, _token, channel) => side * 127 * sign(channel),
        keyScale: 1 / 127,
        value: (kvHead, _token, channel) => side * value(kvHead, channel),
        valueScale: 0.5,
      })),
    );
    const expected = Array.from({ length: out.length }, (_, at) => {
      const kvHead = Math.floor(at / (group * headDim));
      return 0.5 * value(kvHead, at % headDim);
    });
    expect([...out].map((each) => Math.round(each * 1e4) / 1e4)).toEqual(expected);
  });

  it("queries and values of nothing but zeros give zeros", async () => {
    const zeros = { key: () => 0, keyScale: 0, value: () => 0, valueScale: 0 };
    const out = await attendTo(device, { headCount: 4, kvHeadCount: 2, headDim: 20 }, () => 0, [zeros, zeros]);
    expect([...out]).toEqual(new Array(80).fill(0));
  });

  it("each token's weight meets its own value, in every head", async () => {
    // Equal scores, so the result is the mean of the values: token t of block b counts as t + 2 b in channels of its parity.
    const fillings = [0, 1].map((block) => ({
      key: () => 0,
      keyScale: 1,
      value: (kvHead: number, token: number, channel: number) =>
        token % 2 === channel % 2 ? token + 2 * block + kvHead : 0,
      valueScale: 1,
    }));
    const out = await attendTo(device, { headCount: 6, kvHeadCount: 2, headDim: 12 }, () => 0, fillings);
    const expected = Array.from({ length: 72 }, (_, at) => {
      const kvHead = Math.floor(at / 36);
      let sum = 0;
      for (let block = 0; block < 2; block++) {
        for (let token = (at % 12) % 2; token < 64; token += 2) sum += token + 2 * block + kvHead;
      }
      // 128 sealed tokens and the open one, whose value is 0.
      return sum / 129;
    });
    out.forEach((each, at) => void expect(Math.abs(each - expected[at]!), `element ${at}`).toBeLessThan(1e-4));
  });
});
