/// <reference types="@webgpu/types" />
/** What the host asks of a GPU, counted. */

/** Calls so far; a test sets them to 0 where it begins to count. */
export interface GpuCalls {
  submit: number;
  map: number;
  mappedBytes: number;
}

/** None yet. */
export const noCalls = (): GpuCalls => ({ submit: 0, map: 0, mappedBytes: 0 });

/** The adapter, whose devices now count submissions and mappings in `calls`. */
export function counted(adapter: GPUAdapter, calls: GpuCalls): GPUAdapter {
  const request = adapter.requestDevice.bind(adapter);
  adapter.requestDevice = async (descriptor) => {
    const device = await request(descriptor);
    const submit = device.queue.submit.bind(device.queue);
    device.queue.submit = (buffers) => {
      calls.submit++;
      return submit(buffers);
    };
    const create = device.createBuffer.bind(device);
    device.createBuffer = (wanted) => {
      const buffer = create(wanted);
      const map = buffer.mapAsync.bind(buffer);
      buffer.mapAsync = (mode, offset, size) => {
        calls.map++;
        calls.mappedBytes += size ?? buffer.size;
        return map(mode, offset, size);
      };
      return buffer;
    };
    return device;
  };
  return adapter;
}
