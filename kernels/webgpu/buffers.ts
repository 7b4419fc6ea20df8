/// <reference types="@webgpu/types" />
/** Buffers of the device's users, and the checks that they are this device's. */
import { assert } from "../../protocol/assert.ts";
import type { DeviceBuffer, KvPool, Matrix } from "../contract.ts";
import { WebGpuMatrix } from "./packed-matrix.ts";
import { WebGpuPool } from "./pool.ts";

/** See `DeviceBuffer`. The memory is as large as a multiple of 16. */
export class WebGpuBuffer implements DeviceBuffer {
  readonly label: string;
  readonly bytes: number;
  readonly memory: GPUBuffer;
  released = false;

  constructor(label: string, bytes: number, memory: GPUBuffer) {
    this.label = label;
    this.bytes = bytes;
    this.memory = memory;
  }
}

/** @throws {AssertionError} for a buffer of another device or one already released. */
export function ownBuffer(buffer: DeviceBuffer): WebGpuBuffer {
  assert(buffer instanceof WebGpuBuffer, `buffer ${buffer.label} is of another device`);
  assert(!buffer.released, `buffer ${buffer.label} was released`);
  return buffer;
}

/** The memory of a buffer that holds at least `elements` f32 values. */
export function memoryOf(buffer: DeviceBuffer, elements: number): GPUBuffer {
  const own = ownBuffer(buffer);
  assert(own.bytes >= elements * 4, `buffer ${own.label}: ${own.bytes} bytes cannot hold ${elements} elements`);
  return own.memory;
}

/** @throws {AssertionError} for a pool of another device. */
export function ownPool(pool: KvPool): WebGpuPool {
  assert(pool instanceof WebGpuPool, "the pool is of another device");
  return pool;
}

/** @throws {AssertionError} for a matrix of another device. */
export function ownMatrix(matrix: Matrix): WebGpuMatrix {
  assert(matrix instanceof WebGpuMatrix, `matrix ${matrix.label} is of another device`);
  return matrix;
}
