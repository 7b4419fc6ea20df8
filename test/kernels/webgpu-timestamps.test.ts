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

  it("say how long a step took, which is no less than each of its ops and no more than it took on the host", async () => {
    const device = await openWebGpuDevice();
    const count = 1 << 20;
    const [x, out] = [upload(device, "x", new Float32Array(count)), poisoned(device, "out", count)];
    const run = async (): Promise<number> => {
      const startMs = performance.now();
      const recorder = device.begin([]);
      for (let copy = 0; copy < 4; copy++) recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: count });
      await recorder.submit();
      return performance.now() - startMs;
    };
    await run();
    const times: KernelTime[] = [];
    const spans: number[] = [];
    device.timeSteps((ns) => spans.push(ns));
    const wallMs = await run();
    device.time(times);
    await run();
    expect(spans.length).toBe(2);
    expect(spans[0]! / 1e6).toBeLessThan(wallMs);
    expect(spans[1]!).toBeGreaterThanOrEqual(Math.max(...times.map(({ ns }) => ns)));
    device.timeSteps(undefined);
    await run();
    expect(spans.length).toBe(2);
    await device.close();
  });
});
