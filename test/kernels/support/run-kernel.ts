/// <reference types="@webgpu/types" />
/** A kernel of a test's own, run by itself on the GPU for tests. */
import { openAdapter, requestAdapter } from "../../../kernels/webgpu/adapter.ts";
import { CommandList, StepBuffers } from "../../../kernels/webgpu/command-list.ts";
import { Gpu } from "../../../kernels/webgpu/gpu.ts";
import type { Kernel } from "../../../kernels/webgpu/kernel.ts";
import { Words } from "../../../kernels/webgpu/words.ts";

/** Runs a kernel without parameters over `inputs`, its first bindings, 64 elements to a work group; returns its last binding, four bytes an element. */
export async function runOver(kernel: Kernel, inputs: readonly Float32Array<ArrayBuffer>[]): Promise<ArrayBuffer> {
  const gpu = new Gpu(await openAdapter(await requestAdapter()));
  const buffers = inputs.map((values) => {
    const buffer = gpu.storage("values", values.byteLength);
    gpu.device.queue.writeBuffer(buffer, 0, values);
    return buffer;
  });
  const count = inputs[0]?.length ?? 0;
  const out = gpu.storage("results", count * 4);
  const list = new CommandList(gpu, new StepBuffers());
  list.dispatch(kernel, {}, [...buffers, out], [Math.ceil(count / 64)]);
  await list.submit(new Words(), 0);
  const { buffer } = await gpu.read(out, 0, count * 4);
  gpu.close();
  return buffer;
}
