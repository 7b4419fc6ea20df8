/// <reference types="@webgpu/types" />
/** Memory of steps whose size is known late, on a GPU of which only the limits are real. */
import { expect, it } from "vitest";
import { Arena } from "../../kernels/webgpu/command-list.ts";
import type { Gpu } from "../../kernels/webgpu/gpu.ts";

it("an arena that cannot grow has no memory that was given back", () => {
  const limits = { maxBufferSize: 1 << 20, maxStorageBufferBindingSize: 1 << 16 };
  const destroyed = new Set<GPUBuffer>();
  const gpu = {
    device: { limits },
    storage(label: string, size: number) {
      if (size > limits.maxStorageBufferBindingSize) throw new Error(`${label}: ${size} bytes are more than it binds`);
      return { size } as GPUBuffer;
    },
    destroy: (buffer: GPUBuffer) => void destroyed.add(buffer),
  } as unknown as Gpu;
  const arena = new Arena("scratch");
  arena.need(8192);
  arena.buffer(gpu);
  arena.need(1 << 17);
  expect(() => arena.buffer(gpu)).toThrow("more than it binds");
  // The next step needs less.
  arena.bytes = 0;
  arena.need(8192);
  expect(destroyed.has(arena.buffer(gpu))).toBe(false);
});

it("an arena that grows beyond half of what is bound at once gets whole 16 bytes of it: NVIDIA's limit is no multiple of 16", () => {
  const limits = { maxBufferSize: 2 ** 40, maxStorageBufferBindingSize: 2 ** 31 - 4 };
  const sizes: number[] = [];
  const gpu = {
    device: { limits },
    storage: (_: string, size: number) => {
      sizes.push(size);
      return { size } as GPUBuffer;
    },
    destroy: () => {},
  } as unknown as Gpu;
  const arena = new Arena("scratch");
  for (const bytes of [2 ** 30, 2 ** 30 + 16]) {
    arena.need(bytes);
    arena.buffer(gpu);
  }
  expect(sizes).toEqual([2 ** 30, 2 ** 31 - 16]);
});
