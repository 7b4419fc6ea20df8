import { describe, expect, it } from "vitest";
import { assertFits } from "../../engine/fit-device.ts";
import { type EngineServerOptions, startEngineServer } from "../../engine/server.ts";
import { TINY_CONFIG } from "./tiny-model.ts";

const MIB = 2 ** 20;
const SERVER: EngineServerOptions = {
  host: "127.0.0.1",
  port: 0,
  modelFolder: "weights/house-0",
  storeUrl: "memory:",
  env: {},
  device: "wasm",
  threads: 1,
  weightEncoding: "f32",
  kvEncoding: "int8",
  summaryKinds: ["min-max"],
  poolBytes: 24 * MIB,
  contextTokensMax: 2048,
  log: () => {},
};

describe("a model and a pool that the device cannot hold", () => {
  it("are refused at the start, in one line that names a pool which does fit", async () => {
    const message = async (options: Partial<EngineServerOptions>): Promise<string> => {
      try {
        const server = await startEngineServer({ ...SERVER, ...options });
        await server.stop(0);
        return "started";
      } catch (error) {
        expect(error).toMatchObject({ code: "invalid_request", param: "pool_bytes" });
        return (error as Error).message;
      }
    };
    const refused = await message({ memoryBytesMax: 28 * MIB });
    expect(refused).toMatch(/weights, .* for steps and a KV pool of .* do not fit into the device's 28\.0 MiB; /);
    expect(refused).not.toContain("\n");
    const fitting = Number(/a pool of at most ([\d.]+) MiB would fit/.exec(refused)?.[1]);
    expect(fitting).toBeGreaterThan(8);
    expect(await message({ memoryBytesMax: 28 * MIB, poolBytes: Math.floor(fitting * MIB) })).toBe("started");
  });

  it("advise int8 weights where only those leave room, and say so where nothing does", () => {
    const large = { ...TINY_CONFIG, width: 512, ffnWidth: 2048, headCount: 16, headDim: 32, layerCount: 8 };
    const load = { config: large, weightEncoding: "f32", rowsMax: 64, sampledMax: 4, poolBytes: 40 * MIB } as const;
    const refused = (memoryMib: number, poolMib: number) => () =>
      assertFits({ ...load, poolBytesMin: poolMib * MIB }, memoryMib * MIB);
    expect(refused(1000, 20)).not.toThrow();
    expect(refused(100, 30)).toThrow(/int8 weights and a pool of at most [\d.]+ MiB would fit\.$/);
    expect(refused(40, 30)).toThrow(/needs a pool of 30\.0 MiB: take a shorter context or a smaller model\.$/);
  });
});
