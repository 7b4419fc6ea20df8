/** Times of ops on the GPU, by timestamp queries around every dispatch. */
import type { StepReadback, StepRecorder, StepSlice } from "../../kernels/contract.ts";
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";

/** One thing to time. */
export interface GpuCase {
  name: string;
  slices: readonly StepSlice[];
  record(recorder: StepRecorder): void;
  /** Bytes that must come from memory or go there, given what the device counted. */
  bytes(readback: StepReadback): number;
  /** Operations; a multiply-add counts as two. */
  ops?: number;
}

/** What a case took; times are the least of all runs. */
export interface GpuRow {
  name: string;
  ms: number;
  bytes: number;
  gigabytesPerS: number;
  gigaopsPerS: number | undefined;
  /** Milliseconds of every kernel of the fastest run. */
  kernels: Record<string, number>;
}

/** Runs a case once untimed and then for about `ms` milliseconds, at least twice. */
export async function timeCase(device: WebGpuDevice, item: GpuCase, ms: number): Promise<GpuRow> {
  const run = async (times?: KernelTime[]): Promise<StepReadback> => {
    device.time(times);
    const recorder = device.begin(item.slices);
    item.record(recorder);
    return await recorder.submit();
  };
  const readback = await run();
  let best: KernelTime[] | undefined;
  const endMs = performance.now() + ms;
  for (let count = 0; count < 2 || performance.now() < endMs; count++) {
    const times: KernelTime[] = [];
    await run(times);
    if (best === undefined || total(times) < total(best)) best = times;
  }
  device.time(undefined);
  const kernels: Record<string, number> = {};
  for (const { name, ns } of best ?? []) kernels[name] = (kernels[name] ?? 0) + ns / 1e6;
  const bestMs = total(best ?? []) / 1e6;
  const bytes = item.bytes(readback);
  return {
    ...{ name: item.name, ms: bestMs, bytes, gigabytesPerS: bytes / bestMs / 1e6 },
    gigaopsPerS: item.ops === undefined ? undefined : item.ops / bestMs / 1e6,
    kernels,
  };
}

function total(times: readonly KernelTime[]): number {
  return times.reduce((sum, { ns }) => sum + ns, 0);
}
