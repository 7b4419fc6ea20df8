/** Warming up changes nothing of what is computed afterwards. */
import { describe, expect, it } from "vitest";
import { SeededWeights } from "../../bench/make-shape/seeded-weights.ts";
import { shapeConfig } from "../../bench/shapes.ts";
import { warmUpReport } from "../../cli/warm-up-report.ts";
import { type WarmUpProgress, warmUp } from "../../engine/warm-up.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelRunner, SequenceStep } from "../../models/contract.ts";
import { openRunner } from "../../models/open.ts";

const SAMPLE = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0, position: 0, topLogprobs: 5 },
  ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
  ...{ seenIds: new Uint32Array(0), seenCounts: new Uint32Array(0) },
  ...{ biasIds: new Uint32Array(0), biasValues: new Float32Array(0) },
};

/** A prompt of 100 tokens in the blocks and slots that warming up has written, and what comes after it. */
function promptStep(): SequenceStep {
  const slice = {
    ...{ position: 0, rowCount: 100, blockCapacity: 2, plan: { kind: "dense" } as const },
    ...{ blockIds: Int32Array.of(0, 1, 2, 3), summarySlots: Int32Array.of(0, 1), openSlots: Int32Array.of(0, 1) },
    groupStarts: Int32Array.of(0),
  };
  return { slice, tokens: Uint32Array.from({ length: 100 }, (_, i) => (i * 37) % 512), exact: false, sample: SAMPLE };
}

async function withRunner<T>(run: (runner: ModelRunner) => Promise<T>): Promise<T> {
  const device = await openDevice({ kind: "wasm", threads: 1 });
  try {
    const config = shapeConfig("tiny");
    const kv = { encoding: "int8", summaryKinds: ["min-max", "mean-deviation", "sign-bits"] } as const;
    const counts = { blockCount: 8, openSlotCount: 2, summarySlotCount: 4 };
    const how = { device, encoding: "int8", kv: { ...kv, ...counts }, rowsMax: 128, sampledMax: 1 } as const;
    return await run(await openRunner({ ...how, config, source: new SeededWeights(config, 1) }));
  } finally {
    await device.close();
  }
}

describe("warming up", () => {
  it("runs a chunk and a token for each way to attend, and leaves no trace in what is computed next", async () => {
    const progress: WarmUpProgress[] = [];
    const warm = await withRunner(async (runner) => {
      const selected: boolean[] = [];
      const step = runner.step.bind(runner);
      runner.step = async (steps) => {
        const results = await step(steps);
        selected.push(results[0]!.traffic.pagesSelected > 0);
        return results;
      };
      await warmUp(runner, (each) => progress.push(each));
      // Dense, then one policy for each kind of summaries, which really chooses.
      expect(selected).toEqual([false, false, true, true, true, true, true, true]);
      return (await runner.step([promptStep()]))[0]!.sample;
    });
    expect(progress.map(({ stepsDone }) => stepsDone)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(progress.every(({ stepCount }) => stepCount === 8)).toBe(true);
    const cold = await withRunner(async (runner) => (await runner.step([promptStep()]))[0]!.sample);
    expect(warm).toEqual(cold);
  });

  it("is reported every two seconds, and at its end", () => {
    let nowMs = 0;
    const lines: string[] = [];
    const report = warmUpReport(
      (line) => void lines.push(line),
      () => nowMs,
    );
    for (const [ms, stepsDone, kernelCount] of [
      [500, 1, 8],
      [2500, 2, 21],
      [3000, 3, 30],
      [4200, 4, 34],
    ] as const) {
      nowMs = ms;
      report({ stepsDone, stepCount: 4, kernelCount, ms });
    }
    expect(lines).toEqual([
      "quire: compiling kernels: 21 after 3 s, step 2 of 4\n",
      "quire: compiled 34 kernels in 4.2 s\n",
    ]);
  });
});
