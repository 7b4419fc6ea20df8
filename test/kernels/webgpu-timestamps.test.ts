/** Times that kernels are given: finer than the 65.5 us to which Dawn rounds them unless it is told not to. */
import { describe, expect, it, vi } from "vitest";
import { requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { type KernelTime, timesBetween } from "../../kernels/webgpu/command-list.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { bytesOf, poisoned, results, upload } from "./support/floats.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

describe("times of dispatches, by their stamps", () => {
  it("do not count twice what a dispatch waits for the one before", () => {
    const stamps = BigUint64Array.of(1000n, 1400n, 1010n, 2000n, 2100n, 2150n, 2140n, 2150n);
    expect(timesBetween(["a", "b", "c", "d"], stamps)).toEqual([
      { name: "a", ns: 400 },
      { name: "b", ns: 600 },
      { name: "c", ns: 50 },
      { name: "d", ns: 0 },
    ]);
  });
});

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

  it("are made up for by the host's clock where the adapter has none, and the results are the same", async () => {
    const adapter = await requestAdapter();
    const request = adapter.requestDevice.bind(adapter);
    adapter.requestDevice = (descriptor) => {
      const requiredFeatures = [...(descriptor?.requiredFeatures ?? [])].filter((name) => name !== "timestamp-query");
      return request({ ...descriptor, requiredFeatures });
    };
    const device = await openWebGpuDevice({ adapter, features: [] });
    const [x, out] = [upload(device, "x", Float32Array.of(3, -5)), poisoned(device, "out", 2)];
    const step = async (): Promise<number[]> => {
      const recorder = device.begin([]);
      recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: 2 });
      device.write(x, 0, bytesOf(Float32Array.of(7)));
      recorder.siluMul({ out, gate: out, up: x, rows: 1, width: 2 });
      await recorder.submit();
      device.write(x, 0, bytesOf(Float32Array.of(3)));
      return [...(await results(device, out))];
    };
    const untimed = await step();
    const times: KernelTime[] = [];
    device.time(times);
    expect(await step()).toEqual(untimed);
    expect(times.map(({ name }) => name)).toEqual(["copy", "silu_mul_in_place"]);
    expect(times.every(({ ns }) => ns > 0)).toBe(true);
    device.time(undefined);
    await step();
    expect(times.length).toBe(2);
    await device.close();
  });
});
