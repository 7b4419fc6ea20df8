/** Opens the GPU device for a benchmark. */

import { UsageError } from "../../cli/usage-error.ts";
import { NoAdapterError } from "../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";

/** The caller closes it. @throws {UsageError} one line, where there is no GPU. */
export async function openGpu(options: { memoryBytesMax?: number | undefined } = {}): Promise<WebGpuDevice> {
  const { memoryBytesMax } = options;
  try {
    return await openWebGpuDevice(memoryBytesMax === undefined ? {} : { memoryBytesMax });
  } catch (error) {
    if (error instanceof NoAdapterError) throw new UsageError(error.message);
    throw error;
  }
}

/** Whether kernels can be timed; without it there are wall times only. */
export function hasClock(device: WebGpuDevice): boolean {
  return device.adapter.features.includes("timestamp-query");
}
