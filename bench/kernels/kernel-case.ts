/** A kernel at a size, how long it takes, and how long it would take at the machine's limits. */
import type { Device, StepReadback, StepRecorder, StepSlice } from "../../kernels/contract.ts";
import type { MachineLimits } from "./machine-limits.ts";

/** What a kernel must do, whatever does it. */
export interface KernelWork {
  /** Bytes that must come from memory or go there: weights, KV, metadata, inputs and outputs, each once. */
  bytes: number;
  /** Operations; a multiply-add counts as two. */
  ops: number;
  /** The arithmetic that limits them. */
  arithmetic: "int8" | "f32";
}

/** One thing to time. */
export interface KernelCase {
  op: string;
  size: string;
  slices: readonly StepSlice[];
  /** Records the op once. `turn` counts up, so that copies can take turns and no cache holds what memory would have to give. */
  record(recorder: StepRecorder, turn: number): void;
  /** What one `record` does, given what the device counted for it. */
  work(traffic: StepReadback["traffic"]): KernelWork;
}

/** One row of the result; times of one run of the op. */
export interface KernelRow extends KernelWork {
  op: string;
  size: string;
  ms: { min: number; p50: number };
  gigabytesPerS: number;
  gigaopsPerS: number;
  /** The time that bytes and operations imply at the machine's limits, and which of them implies it. */
  limitMs: number;
  bound: "memory" | "int8" | "f32";
  /** limitMs over the fastest time: 1 is the machine's limit; above 1 the data came from a cache. */
  share: number;
  /** On a GPU: milliseconds of each kernel of the fastest run. */
  kernels?: Record<string, number>;
}

/** A sample shorter than this is timed over several runs. */
const SAMPLE_MS_MIN = 0.25;

/** Runs a case for about `ms` milliseconds, half of it before the clock counts. */
export async function measureKernel(
  device: Device,
  item: KernelCase,
  { limits, ms }: { limits: MachineLimits; ms: number },
): Promise<KernelRow> {
  const once = device.begin(item.slices);
  item.record(once, 0);
  const { traffic } = await once.submit();
  const recorder = device.begin(item.slices);
  const probe = device.buffer("probe", 4);
  const word = new Uint8Array(4);
  let turn = 1;
  const run = (count: number) => {
    const startMs = performance.now();
    for (let i = 0; i < count; i++) item.record(recorder, turn++);
    // A write comes behind what was recorded before it: the device has done all of that.
    device.write(probe, 0, word);
    return (performance.now() - startMs) / count;
  };
  let singleMs = run(1);
  for (const endMs = performance.now() + ms / 2; performance.now() < endMs; ) singleMs = Math.min(singleMs, run(1));
  const count = Math.max(1, Math.ceil(SAMPLE_MS_MIN / Math.max(singleMs, 1e-4)));
  const times = [run(count)];
  for (const endMs = performance.now() + ms / 2; performance.now() < endMs; ) times.push(run(count));
  await recorder.submit();
  device.release(probe);
  return describeRow(item, item.work(traffic), times, limits);
}

/** The row of a case that took these times. */
export function describeRow(
  { op, size }: Pick<KernelCase, "op" | "size">,
  work: KernelWork,
  times: readonly number[],
  limits: MachineLimits,
): KernelRow {
  const sorted = times.toSorted((a, b) => a - b);
  const [min, p50] = [sorted[0]!, sorted[Math.floor(sorted.length / 2)]!];
  const memoryMs = (work.bytes / limits.readBytesPerS) * 1000;
  const opsMs = (work.ops / (work.arithmetic === "int8" ? limits.int8OpsPerS : limits.f32OpsPerS)) * 1000;
  const limitMs = Math.max(memoryMs, opsMs);
  return {
    op,
    size,
    ...work,
    ms: { min, p50 },
    gigabytesPerS: work.bytes / min / 1e6,
    gigaopsPerS: work.ops / min / 1e6,
    limitMs,
    bound: memoryMs >= opsMs ? "memory" : work.arithmetic,
    share: limitMs / min,
  };
}
