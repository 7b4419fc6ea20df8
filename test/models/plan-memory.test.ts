import { beforeAll, describe, expect, it } from "vitest";
import { readConfig } from "../../models/config.ts";
import type { ModelConfig } from "../../models/contract.ts";
import {
  activationBytes,
  defaultContextTokens,
  planPool,
  poolUnitBytes,
  smallestConfinedPoolBytes,
  weightBytes,
} from "../../models/plan-memory.ts";

let house: ModelConfig;
beforeAll(async () => {
  house = await readConfig("weights/house-0");
});

describe("memory plan", () => {
  it("knows the bytes of house-0's pool, by hand: 4 layers, 2 KV heads of 32", () => {
    expect(poolUnitBytes(house, "f32", ["min-max"])).toEqual({
      blockBytes: 32768,
      openSlotBytes: 131072,
      // Codes 4*2*32, scales 4*2*4 of each KV head; codes 32 and a scale of the block's centre.
      summarySlotBytes: 8 * (288 + 36),
      centreBytes: 8 * 36,
      tokenBytes: 2088.5,
    });
    // Codes 4096 + 4096, key scales 2*32*4, value scales 2*64*4.
    expect(poolUnitBytes(house, "int8", ["min-max", "mean-deviation"])).toEqual({
      blockBytes: 8960,
      openSlotBytes: 131072,
      summarySlotBytes: 2 * 8 * (288 + 36),
      centreBytes: 2 * 8 * 36,
      tokenBytes: 641,
    });
  });

  it("knows the bytes of house-0's weights: 771,712 parameters, 1,152 of them norms", () => {
    expect(weightBytes(house, "f32")).toBe(771_712 * 4);
    expect(weightBytes(house, "int8")).toBe(((771_712 - 1_152) * 36) / 32 + 1_152 * 4);
    expect(weightBytes(house, "bf16")).toBe((771_712 - 1_152) * 2 + 1_152 * 4);
    // The embeddings, 260 of 128, stay int8.
    const layers = ((771_712 - 1_152 - 260 * 128) * 20) / 32;
    expect(weightBytes(house, "int4")).toBe(layers + (260 * 128 * 36) / 32 + 1_152 * 4);
    const untied = weightBytes({ ...house, tiedEmbeddings: false }, "f32");
    expect(untied - weightBytes(house, "f32")).toBe(260 * 128 * 4);
  });

  it("knows that activations grow with rows", () => {
    expect(activationBytes(house, 512, 32) - activationBytes(house, 511, 32)).toBe(
      4 * (3 * 128 + 2 * 128 + 2 * 64 + 2 * 352),
    );
  });

  it.each([
    [64, "f32", 8],
    [64, "int8", 8],
    [256, "int8", 32],
    [1024, "f32", 32],
  ] as const)("fills %d MiB of %s without going over", (mebibytes, encoding, runningMax) => {
    const summaryKinds = ["min-max", "mean-deviation"] as const;
    const request = { config: house, encoding, summaryKinds, runningMax, contextTokens: 8192 };
    const poolBytes = mebibytes * 2 ** 20;
    const plan = planPool({ ...request, poolBytes });
    const unit = poolUnitBytes(house, encoding, summaryKinds);
    const bytes =
      plan.blockCount * unit.blockBytes +
      plan.openSlotCount * unit.openSlotBytes +
      plan.summarySlotCount * unit.summarySlotBytes;
    expect(plan.bytes).toBe(bytes);
    expect(bytes).toBeLessThanOrEqual(poolBytes);
    expect(poolBytes - bytes).toBeLessThan(4 * unit.blockBytes + unit.summarySlotBytes);
    expect(plan.blockCount % 4).toBe(0);
    expect(plan.tokenCapacity).toBe((plan.blockCount / 4) * 64);
    expect(plan.tokenCapacity).toBeGreaterThanOrEqual(8192);
    expect(plan.summarySlotCount).toBe(plan.blockCount / 4 + 128);
    expect(plan.openSlotCount).toBe(2 * plan.runningMax + 8);
  });

  it("runs fewer sequences rather than give most of a small pool to open slots", () => {
    const request = { config: house, encoding: "int8", summaryKinds: ["min-max"], contextTokens: 4096 } as const;
    const plan = planPool({ ...request, poolBytes: 12 * 2 ** 20, runningMax: 32 });
    expect(plan.runningMax).toBeGreaterThanOrEqual(1);
    expect(plan.runningMax).toBeLessThan(32);
    expect(plan.openSlotCount * 131072).toBeLessThanOrEqual(6 * 2 ** 20);
  });

  it("says what is needed when one sequence does not fit, and is right about it", () => {
    const request = { config: house, encoding: "f32", summaryKinds: ["min-max"], runningMax: 4 } as const;
    const contextTokens = 32768;
    expect(() => planPool({ ...request, contextTokens, poolBytes: 2 ** 20 })).toThrow(
      /1\.0 MiB cannot hold one sequence of 32768 tokens: 67\.8 MiB are needed/,
    );
    // 512 blocks of 4 layers, two summary slots for each, ten open slots.
    const neededBytes = 512 * (4 * 32768 + 2 * 2592) + 10 * 131072;
    expect(planPool({ ...request, contextTokens, poolBytes: neededBytes }).tokenCapacity).toBe(contextTokens);
    expect(() => planPool({ ...request, contextTokens, poolBytes: neededBytes - 1 })).toThrow(/cannot hold/);
  });

  it("holds a layer of a context, and a block in all of them, where host memory holds the rest", () => {
    const request = { config: house, encoding: "f32", summaryKinds: ["min-max"], runningMax: 1 } as const;
    const contextTokens = 32768;
    // 512 blocks of one of 4 layers and one of all; summary slots for these 129 and for the context's 512; ten open slots.
    const poolBytes = 129 * 4 * 32768 + (129 + 512) * 2592 + 10 * 131072;
    const hostBytes = 512 * 4 * 32768;
    const plan = planPool({ ...request, contextTokens, poolBytes, hostBytes });
    expect(plan).toMatchObject({ blockCount: 512 + 4, summarySlotCount: 129 + 512, runningMax: 1, bytes: poolBytes });
    expect(plan.tokenCapacity).toBe(129 * 64);
    expect(() => planPool({ ...request, contextTokens, poolBytes: poolBytes - 1, hostBytes })).toThrow(
      /67\.8 MiB are needed, or 19\.0 MiB and 64\.0 MiB of host memory \(/,
    );
    expect(() => planPool({ ...request, contextTokens, poolBytes, hostBytes: hostBytes - 1 })).toThrow(/cannot hold/);
    expect(smallestConfinedPoolBytes({ ...request, contextTokens })).toBe(poolBytes);
    // One that holds everything is divided as if there were no host memory.
    const whole = { ...request, contextTokens, poolBytes: 2 ** 27 };
    expect(planPool({ ...whole, hostBytes })).toEqual(planPool(whole));
  });

  it("chooses the model's context where the pool holds it, else what leaves room for others", () => {
    const pool = { config: house, encoding: "f32", summaryKinds: ["min-max"] } as const;
    // As above: 512 blocks of 136,256 bytes and ten open slots hold the whole context.
    const wholeBytes = 512 * 136_256 + 10 * 131_072;
    expect(defaultContextTokens({ ...pool, poolBytes: wholeBytes })).toBe(32_768);
    const contextTokens = defaultContextTokens({ ...pool, poolBytes: wholeBytes - 1 });
    expect(contextTokens).toBe(Math.floor((wholeBytes / 2 - 10 * 131_072) / 136_256) * 64);
    const plan = planPool({ ...pool, poolBytes: wholeBytes - 1, contextTokens, runningMax: 4 });
    expect(plan.runningMax).toBe(4);
    expect(defaultContextTokens({ ...pool, poolBytes: 1 })).toBe(64);
  });
});
