/** Which pools a GPU can have: blocks lie in a few buffers, each as large as a binding. */
import { describe, expect, it, vi } from "vitest";
import type { KvPoolSpec } from "../../kernels/contract.ts";
import { blockLayout } from "../../kernels/layout.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { poolBlocksMax, poolPartsMax } from "../../kernels/webgpu/pool.ts";
import { runQuire } from "../cli/run-quire.ts";
import { adapterForTests, softwareGpuFolder } from "../support/software-gpu.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

describe("blocks that a pool may have", () => {
  it.each([
    [10, 5],
    [12, 7],
    [16, 11],
    [64, 11],
    [5, 0],
    [4, 0],
  ])("with %i storage buffers per kernel lie in %i", (storageBuffersMax, parts) => {
    expect(poolPartsMax({ storageBuffersMax })).toBe(parts);
  });

  // Dawn lets a kernel have 16 buffers; on NVIDIA it binds no more than 2 GiB less 4 bytes at once.
  it.each([
    ["2 GiB", 2 ** 31 - 4, 15_650],
    ["4 GiB", 2 ** 32 - 4, 31_300],
  ])(
    "of an 8B model in int8: eight sequences of 32K fit into bindings of %s, eight of 128K do not",
    (_, bindingBytesMax, each) => {
      // 32 layers, 8 heads of 128: keys and values with their scales.
      const blockBytes = 2 * 8 * 64 * 128 + 8 * 128 * 4 + 8 * 64 * 4;
      const blocks = poolBlocksMax({ storageBuffersMax: 16, bindingBytesMax }, blockBytes);
      expect(blocks).toBe(11 * each);
      // As the benchmark of decoding has them: a block more than the context, and one for what is decoded.
      const needed = (sequences: number, tokens: number) => sequences * (tokens / 64 + 2) * 32;
      expect(needed(8, 32_768)).toBeLessThan(blocks);
      expect(needed(1, 131_072)).toBeLessThan(blocks);
      expect(needed(8, 131_072)).toBeGreaterThan(blocks);
    },
  );
});

describe.skipIf(!hasAdapter)("a pool at the limit", () => {
  const spec: KvPoolSpec = {
    ...{ layerCount: 2, kvHeadCount: 2, headDim: 16, encoding: "int8", summaryKinds: ["min-max"] },
    ...{ blockCount: 0, openSlotCount: 1, summarySlotCount: 1 },
  };

  it("works to its last block; one block more is refused by name, before and when it is made", async () => {
    const bindingBytesMax = 1 << 14;
    const device = await openWebGpuDevice({ bindingBytesMax });
    const { bytes } = blockLayout(spec);
    const blockCount = poolBlocksMax({ ...device.adapter, bindingBytesMax }, bytes);
    expect(blockCount).toBeGreaterThan(10);
    device.assertPoolFits({ ...spec, blockCount });
    const pool = device.kvPool({ ...spec, blockCount });
    const last = Uint8Array.from({ length: bytes }, (_, at) => at & 63);
    pool.writeBlock(blockCount - 1, last);
    expect(await pool.readBlock(blockCount - 1)).toEqual(last);
    const tokens = Math.floor(blockCount / 2) * 64;
    for (const refuse of [device.kvPool, device.assertPoolFits]) {
      expect(() => refuse.call(device, { ...spec, blockCount: blockCount + 1 })).toThrow(
        `blockCount ${blockCount + 1}: this adapter holds at most ${blockCount} blocks of ${bytes} bytes, ${tokens} tokens (`,
      );
    }
    await device.close();
  });

  it("is said by quire devices and quire inspect", async () => {
    const folder = softwareGpuFolder();
    const env = { LD_LIBRARY_PATH: folder, VK_ICD_FILENAMES: process.env.VK_ICD_FILENAMES };
    const devices = await runQuire(["devices"], env);
    expect(devices.stdout).toMatch(/\n +pages in up to \d+ MiB, whatever its memory/);
    const inspect = await runQuire(["inspect", "weights/house-0", "--device", "webgpu", "--json"], env);
    const report = JSON.parse(inspect.stdout) as {
      config: KvPoolSpec;
      gpu: { poolTokensMax: number; blockBytesMax: number };
    };
    const { bytes } = blockLayout({ ...report.config, encoding: "int8" });
    expect(report.gpu.blockBytesMax % bytes).toBe(0);
    expect(report.gpu.poolTokensMax).toBe(Math.floor(report.gpu.blockBytesMax / bytes / report.config.layerCount) * 64);
  });
});
