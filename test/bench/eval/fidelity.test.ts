/** The instrument's own attention against the device's, and its measures against what must hold for any selection. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Capture } from "../../../bench/eval/capture.ts";
import { ExactAttention } from "../../../bench/eval/exact-attention.ts";
import { FidelityProbe, type RowFidelity } from "../../../bench/eval/fidelity.ts";
import { type Candidate, candidatesOf } from "../../../bench/eval/grid.ts";
import { seededRandom } from "../../../bench/random.ts";
import { readCases } from "../../../bench/recall/cases.ts";
import { poolCounts, Sequence } from "../../../bench/recall/sequence.ts";
import type { Device, DeviceBuffer } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import type { ModelRunner } from "../../../models/contract.ts";
import { readModelConfig } from "../../../models/model-files.ts";
import { openModel } from "../../../models/open.ts";
import { policyNamed } from "../../../models/selection/registry.ts";

const MODEL = "weights/house-0";
const CONTEXT = 1_024;

let device: Device;
let capture: Capture;
let runner: ModelRunner;
let sequence: Sequence;
let denseBytes: number;

beforeAll(async () => {
  const { sentences } = await readCases("weights/house/eval-cases.jsonl.gz");
  const ids = [...new TextEncoder().encode(sentences.join("").slice(0, 4 * CONTEXT))];
  const config = await readModelConfig(MODEL);
  device = await openDevice({ kind: "wasm", threads: 1 });
  capture = new Capture(device, config);
  const counts = poolCounts({ layerCount: config.layerCount, contextTokens: CONTEXT + 64, rowsMax: 256 });
  runner = await openModel({
    folder: MODEL,
    device: capture.wrap(device),
    encoding: "f32",
    kv: { encoding: "f32", summaryKinds: ["min-max", "mean-deviation"], ...counts },
    rowsMax: 256,
    observe: capture.observe,
  });
  sequence = new Sequence(runner, CONTEXT + 64);
  await sequence.read(ids.slice(0, CONTEXT), new AbortController().signal);
  for (let row = 0; row < 20; row++) {
    const before = sequence.traffic.kvBytes;
    capture.isOn = row === 19;
    await sequence.advance(ids[CONTEXT + row] as number, { kind: "dense" });
    denseBytes = sequence.traffic.kvBytes - before;
  }
  capture.isOn = false;
});
afterAll(() => device?.close());

const lastRow = () => sequence.slice(sequence.length - 1, 1, { kind: "dense" });

async function floats(buffer: DeviceBuffer): Promise<Float32Array> {
  const bytes = await device.read(buffer, 0, buffer.bytes);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

async function measure(candidates: readonly Candidate[]): Promise<RowFidelity[]> {
  const probe = new FidelityProbe({ device, pool: runner.pool, headCount: runner.config.headCount, capture });
  try {
    return await probe.measure(lastRow(), candidates, { denseBytes, random: seededRandom(3) });
  } finally {
    probe.close();
  }
}

/** Largest difference of the host's outputs over what the device chose under `selection` from the device's own. */
async function largestDifference(selection: string, budgetTokens: number): Promise<number> {
  const { layerCount, headCount, kvHeadCount, headDim } = runner.config;
  const exact = new ExactAttention(runner.pool);
  await exact.moveTo(lastRow());
  const out = device.buffer("out", headCount * headDim * 4);
  const recorder = device.begin([{ ...lastRow(), plan: policyNamed(selection).plan(budgetTokens) }]);
  let worst = 0;
  for (let layer = 0; layer < layerCount; layer++) {
    const q = capture.queries[layer] as DeviceBuffer;
    recorder.select({ pool: runner.pool, layer, headCount, q });
    const views = device.debugSelection?.(recorder) ?? [];
    recorder.attend({ pool: runner.pool, layer, headCount, q, out });
    const [ours, { weights }] = [await floats(out), exact.attend(layer, await floats(q))];
    for (let head = 0; head < headCount; head++) {
      const kvHead = Math.floor(head / (headCount / kvHeadCount));
      const { pages, tokenMasks } = views.find((view) => view.kvHead === kvHead) ?? {};
      const attended = pages === undefined ? undefined : { pages, tokenMasks };
      const host = exact.output(layer, kvHead, weights[head] as Float64Array, attended);
      for (const [channel, value] of host.entries()) {
        worst = Math.max(worst, Math.abs(value - (ours[head * headDim + channel] as number)));
      }
    }
  }
  await recorder.submit();
  device.release(out);
  return worst;
}

describe("attention on the host", () => {
  it.each([
    ["dense", 0],
    ["quest", 256],
    ["streaming", 256],
    ["tokenselect", 128],
  ])("gives what the device gives for %s", async (selection, budgetTokens) => {
    expect(await largestDifference(selection, budgetTokens)).toBeLessThan(2e-5);
  });

  it("would not if it read the wrong tokens", async () => {
    const exact = new ExactAttention(runner.pool);
    await exact.moveTo(lastRow());
    const { weights, pageMass } = exact.attend(0, await floats(capture.queries[0] as DeviceBuffer));
    expect(weights.length).toBe(4);
    for (const row of [...weights, ...pageMass]) expect(row.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 9);
    const right = exact.output(0, 0, weights[0] as Float64Array);
    const wrong = exact.output(0, 1, weights[0] as Float64Array);
    expect(Math.max(...right.map((value, i) => Math.abs(value - (wrong[i] as number))))).toBeGreaterThan(1e-2);
  });
});

describe("fidelity", () => {
  const mean = (cells: number[][]): number => cells.flat().reduce((a, b) => a + b, 0) / cells.flat().length;

  it("is full where the budget holds everything", async () => {
    const [everything] = await measure([
      { name: "quest", budgetTokens: 2_048, plan: policyNamed("quest").plan(2_048) },
    ]);
    expect(everything?.mass.flat().every((value) => value === 1)).toBe(true);
    expect(everything?.pageRecall.flat().every((value) => value === 1)).toBe(true);
    expect(everything?.outputError.flat().every((value) => value === 0)).toBe(true);
    expect(everything).toMatchObject({ pagesShare: 1, metadataBytes: 0, kvBytes: denseBytes });
  });

  it("orders the baselines, and no pages beat the oracle's at equal bytes", async () => {
    const candidates = candidatesOf(["streaming", "quest", "mean-deviation", "quest+radius(0)"], [128, 256]);
    const results = await measure(candidates);
    for (const budgetTokens of [128, 256]) {
      const of = (name: string) =>
        results[candidates.findIndex((c) => c.name === name && c.budgetTokens === budgetTokens)]!;
      for (const [index, { name }] of candidates.entries()) {
        const { mass, oracleMass, pageRecall, kvBytes, metadataBytes } = results[index] as RowFidelity;
        expect(mean(mass), name).toBeLessThanOrEqual(mean(oracleMass) + 1e-9);
        expect(pageRecall.flat().every((share) => share >= 0 && share <= 1)).toBe(true);
        expect(kvBytes).toBeLessThan(denseBytes / 3);
        expect(metadataBytes > 0).toBe(name.startsWith("quest") || name === "mean-deviation");
      }
      expect(mean(of("oracle").mass)).toBeCloseTo(mean(of("oracle").oracleMass), 9);
      expect(
        of("oracle")
          .pageRecall.flat()
          .every((share) => share === 1),
      ).toBe(true);
      expect(mean(of("quest").mass)).toBeGreaterThan(mean(of("random").mass));
      expect(mean(of("quest").outputError)).toBeLessThan(mean(of("random").outputError));
      expect(mean(of("oracle").outputError)).toBeLessThan(mean(of("quest").outputError));
    }
  });
});
