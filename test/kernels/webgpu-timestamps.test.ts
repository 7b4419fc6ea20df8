/** Times that kernels are given: finer than the 65.5 us to which Dawn rounds them unless it is told not to. */
import { describe, expect, it, vi } from "vitest";
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { poisoned, upload } from "./support/floats.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

describe.skipIf(!hasAdapter)("timestamps of the GPU device", () => {
  it("are not rounded", async () => {
    const device = await openWebGpuDevice();
    const [x, out] = [upload(device, "x", new Float32Array(64)), poisoned(device, "out", 64)];
    const times: KernelTime[] = [];
    device.time(times);
    const recorder = device.begin([]);
    for (let count = 0; count < 20; count++) recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: 64 });
    await recorder.submit();
    expect(times.length).toBe(20);
    expect(times.every(({ ns }) => ns >= 0)).toBe(true);
    expect(times.filter(({ ns }) => ns % 65_536 !== 0).length).toBeGreaterThan(10);
    await device.close();
  });
});
