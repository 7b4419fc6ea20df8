/** Times an op on the GPU by timestamp queries around every dispatch. */
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { describeRow, type KernelCase, type KernelRow } from "../kernels/kernel-case.ts";
import type { GpuLimits } from "./gpu-limits.ts";

/** Runs a case for about `ms` milliseconds, at least four times, the first of which only warms up. Its share is that of the copy bandwidth. */
export async function timeKernel(
  device: WebGpuDevice,
  item: KernelCase,
  { limits, ms }: { limits: GpuLimits; ms: number },
): Promise<KernelRow> {
  let turn = 0;
  const run = async (times?: KernelTime[]) => {
    device.time(times);
    const recorder = device.begin(item.slices);
    item.record(recorder, turn++);
    return recorder.submit();
  };
  const { traffic } = await run();
  const runs: KernelTime[][] = [];
  for (const endMs = performance.now() + ms; runs.length < 3 || performance.now() < endMs; ) {
    const times: KernelTime[] = [];
    await run(times);
    runs.push(times);
  }
  device.time(undefined);
  const fastest = runs.reduce((best, times) => (totalMs(times) < totalMs(best) ? times : best));
  const memory = { ...limits, readBytesPerS: limits.copyBytesPerS };
  return { ...describeRow(item, item.work(traffic), runs.map(totalMs), memory), kernels: kernelMs(fastest) };
}

/** Milliseconds of all dispatches. */
export function totalMs(times: readonly KernelTime[]): number {
  return times.reduce((sum, { ns }) => sum + ns, 0) / 1e6;
}

/** Milliseconds by kernel. */
export function kernelMs(times: readonly KernelTime[]): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const { name, ns } of times) sums[name] = (sums[name] ?? 0) + ns / 1e6;
  return sums;
}
