/** On a GPU, what warming up has compiled is what turns need. */
import { describe, expect, it, vi } from "vitest";
import { noiseWeights } from "../../bench/gpu/noise.ts";
import { shapeConfig } from "../../bench/shapes.ts";
import { warmUp } from "../../engine/warm-up.ts";
import type { SelectionPlan } from "../../kernels/contract.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { LlamaRunner } from "../../models/llama.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { adapterForTests } from "../support/software-gpu.ts";

vi.setConfig({ testTimeout: 1_200_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

const SAMPLE = {
  ...{ temperature: 0.7, topK: 0, topP: 0.9, minP: 0, seed: 0, position: 0 },
  ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
  ...{ seenIds: new Uint32Array(0), seenCounts: new Uint32Array(0) },
  ...{ biasIds: new Uint32Array(0), biasValues: new Float32Array(0) },
};

describe.skipIf(!hasAdapter)("warming up a GPU", () => {
  it("compiles every kernel of prompts and tokens, dense and selected", async () => {
    const device = await openWebGpuDevice();
    const config = shapeConfig("tiny");
    const { layerCount, kvHeadCount, headDim } = config;
    const runner = new LlamaRunner({
      ...{ device, config, fingerprint: "noise", rowsMax: 64, sampledMax: 8 },
      weights: await noiseWeights({ device, seed: 1 }, config, "int8"),
      pool: device.kvPool({
        ...{ layerCount, kvHeadCount, headDim, encoding: "int8", summaryKinds: ["min-max"] },
        ...{ blockCount: 64, openSlotCount: 4, summarySlotCount: 32 },
      }),
    });
    await warmUp(runner, () => {});
    const before = device.kernelCount;
    expect(before).toBeGreaterThan(15);
    const step = async (plan: SelectionPlan, position: number, rowCount: number): Promise<void> => {
      const blockCapacity = Math.floor((position + rowCount) / 64) + 1;
      const slice = {
        ...{ position, rowCount, plan, blockCapacity, groupStarts: Int32Array.of(0) },
        blockIds: Int32Array.from({ length: layerCount * blockCapacity }, (_, at) => at),
        summarySlots: Int32Array.from({ length: blockCapacity }, (_, at) => at),
        openSlots: Int32Array.of(0),
      };
      await runner.step([{ slice, tokens: new Uint32Array(rowCount), exact: false, sample: SAMPLE }]);
    };
    const quest = policyNamed("quest").plan(128);
    await step({ kind: "dense" }, 0, 64);
    await step({ kind: "dense" }, 64, 1);
    for (const rowCount of [3, 8]) await step({ kind: "dense" }, 64, rowCount);
    await step(quest, 576, 16);
    await step(quest, 600, 1);
    expect(device.kernelCount).toBe(before);
    await device.close();
  });
});
