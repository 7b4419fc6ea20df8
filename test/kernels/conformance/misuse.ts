/** Conformance of the checks: what a caller must not do fails at once and by name, on every device. */
import { describe, expect, it } from "vitest";
import type { StepRecorder, StepSlice } from "../../../kernels/contract.ts";
import { AssertionError } from "../../../protocol/assert.ts";
import { upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { makeSequence, Stage, type StageShape } from "../support/stage.ts";

const SHAPE: StageShape = {
  ...{ layerCount: 1, headCount: 2, kvHeadCount: 1, headDim: 8, encoding: "f32" },
  summaryKinds: ["min-max"],
};

/** Every assertion that a caller can run into. */
export function describeMisuse(lane: Lane): void {
  describe("misuse is an assertion", () => {
    it("one step at a time", async () => {
      const recorder = lane.device().begin([]);
      expect(() => lane.device().begin([])).toThrow(AssertionError);
      await recorder.submit();
      await lane.device().begin([]).submit();
    });

    const wrong: { name: string; change: Partial<StepSlice> }[] = [
      { name: "no rows", change: { rowCount: 0 } },
      { name: "a position below 0", change: { position: -1 } },
      { name: "too few open slots", change: { openSlots: Int32Array.of(0) } },
      { name: "an open slot twice", change: { openSlots: Int32Array.of(0, 0) } },
      { name: "groups that do not start with 0", change: { groupStarts: Int32Array.of(1) } },
      { name: "groups that do not ascend", change: { groupStarts: Int32Array.of(0, 5, 5) } },
      { name: "a group beyond the rows", change: { groupStarts: Int32Array.of(0, 70) } },
      { name: "no capacity for what is sealed", change: { blockCapacity: 0 } },
    ];
    it.each(wrong)("a slice with $name", async ({ change }) => {
      const stage = new Stage(lane.device(), SHAPE, { blockCapacity: 2 });
      const slice = stage.sliceOf({ sequence: makeSequence(SHAPE, 70, 1), position: 0, rowCount: 70 });
      expect(() => lane.device().begin([{ ...slice, ...change }])).toThrow(AssertionError);
      await lane.device().begin([slice]).submit();
    });

    const unfit: { name: string; change: Partial<StepSlice> }[] = [
      { name: "a sealed block without a device block", change: { blockIds: Int32Array.of(-1, 1) } },
      { name: "a block id out of range", change: { blockIds: Int32Array.of(0, 2) } },
      { name: "an open slot out of range", change: { openSlots: Int32Array.of(0, 2) } },
      { name: "a summary slot out of range", change: { summarySlots: Int32Array.of(0, 9) } },
    ];
    it.each(unfit)("appending with $name", async ({ change }) => {
      await withStep(lane, change, ({ append, recorder }) => {
        expect(append).toThrow(AssertionError);
        return recorder;
      });
    });

    it("attending without selecting", async () => {
      await withStep(lane, {}, ({ append, attend, recorder }) => {
        append();
        expect(attend).toThrow(AssertionError);
        return recorder;
      });
    });

    it("a buffer too small, a released buffer, a range outside", async () => {
      const device = lane.device();
      const x = upload(device, "x", new Float32Array(8));
      const small = device.buffer("small", 4 * 7);
      const recorder = device.begin([]);
      const copy = { outRow: 0, xRow: 0, rows: 2, width: 4 };
      expect(() => recorder.copyRows({ out: small, x, ...copy })).toThrow(AssertionError);
      device.release(small);
      expect(() => recorder.copyRows({ out: small, x, ...copy, rows: 1 })).toThrow(AssertionError);
      await recorder.submit();
      expect(() => device.write(x, 4, new Uint8Array(32))).toThrow(AssertionError);
      await expect(async () => device.read(x, 8, 32)).rejects.toThrow(AssertionError);
    });

    it("an impossible pool", () => {
      const spec = { ...SHAPE, blockCount: 1, openSlotCount: 1, summarySlotCount: 1 };
      expect(() => lane.device().kvPool({ ...spec, headDim: 6 })).toThrow(AssertionError);
      expect(() => lane.device().kvPool({ ...spec, layerCount: 0 })).toThrow(AssertionError);
      expect(() => lane.device().kvPool({ ...spec, summaryKinds: ["min-max", "min-max"] })).toThrow(AssertionError);
    });
  });
}

interface Ops {
  append(): void;
  attend(): void;
  recorder: StepRecorder;
}

/** Begins a step of 70 rows whose slice has been changed, and ends it after `body`. */
async function withStep(lane: Lane, change: Partial<StepSlice>, body: (ops: Ops) => StepRecorder): Promise<void> {
  const device = lane.device();
  const stage = new Stage(device, SHAPE, { blockCapacity: 2 });
  const sequence = makeSequence(SHAPE, 70, 1);
  const slice = { ...stage.sliceOf({ sequence, position: 0, rowCount: 70 }), ...change };
  const [q, k, v] = (["q", "k", "v"] as const).map((name) => upload(device, name, sequence.layers[0]![name]));
  const out = device.buffer("out", q!.bytes);
  const recorder = device.begin([slice]);
  const common = { pool: stage.pool, layer: 0, headCount: SHAPE.headCount, q: q! };
  const append = (): void => recorder.append({ ...common, k: k!, v: v!, rope: stage.rope });
  const attend = (): void => recorder.attend({ ...common, out });
  await body({ append, attend, recorder }).submit();
}
