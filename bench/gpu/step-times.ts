/** Where the time of a decode step on the GPU goes. */
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { hasClock } from "./open-gpu.ts";
import { kernelMs, totalMs } from "./time-kernel.ts";

/** Milliseconds of one step. */
export interface GpuStepTimes {
  /** From the GPU's first command to its last. */
  spanMs: number;
  /** All kernels, each run alone; what the span has beyond them is between them. */
  kernelsMs: number;
  /** Of the step's wall time what is not span: recording, encoding, submitting, reading back. */
  outsideMs: number;
  /** By kernel. */
  kernels: Record<string, number>;
}

const SPAN_RUNS = 8;
const KERNEL_RUNS = 3;

/** Runs a step some times more, with timestamps; undefined on a device that has none. `wallMs` is what the step takes without them. */
export async function gpuStepTimes(
  device: unknown,
  { wallMs, run }: { wallMs: number; run: () => Promise<unknown> },
): Promise<GpuStepTimes | undefined> {
  if (!(device instanceof WebGpuDevice) || !hasClock(device)) return undefined;
  const spans: number[] = [];
  device.timeSteps((ns) => spans.push(ns / 1e6));
  for (let count = 0; count < SPAN_RUNS; count++) await run();
  device.timeSteps(undefined);
  const runs: KernelTime[][] = [];
  for (let count = 0; count < KERNEL_RUNS; count++) {
    const times: KernelTime[] = [];
    device.time(times);
    await run();
    runs.push(times);
  }
  device.time(undefined);
  const spanMs = spans.sort((a, b) => a - b)[Math.floor(spans.length / 2)]!;
  const fastest = runs.reduce((best, times) => (totalMs(times) < totalMs(best) ? times : best));
  return { spanMs, kernelsMs: totalMs(fastest), outsideMs: wallMs - spanMs, kernels: kernelMs(fastest) };
}
