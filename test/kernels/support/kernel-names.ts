/** Which kernels a GPU device dispatches: what its fusions are counted by. */
import type { StepRecorder } from "../../../kernels/contract.ts";
import type { KernelTime } from "../../../kernels/webgpu/command-list.ts";
import type { WebGpuDevice } from "../../../kernels/webgpu/open-webgpu.ts";

/** Names of what is dispatched until `run` resolves, in their order. */
export async function kernelsOf(device: WebGpuDevice, run: () => Promise<unknown>): Promise<string[]> {
  const times: KernelTime[] = [];
  device.time(times);
  try {
    await run();
  } finally {
    device.time(undefined);
  }
  return times.map(({ name }) => name);
}

/** Names of what a step of these ops dispatches, which has no slices. */
export function kernelsOfStep(device: WebGpuDevice, record: (recorder: StepRecorder) => void): Promise<string[]> {
  return kernelsOf(device, () => {
    const recorder = device.begin([]);
    record(recorder);
    return recorder.submit();
  });
}
