/// <reference types="@webgpu/types" />
/** The GPU as the device uses it: memory, pipelines and bind groups, each kept, and the first error, kept too. */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { DeviceLostError } from "../device-lost.ts";
import {
  type Kernel,
  type Lane,
  PARAMS_STRIDE,
  type ParamFields,
  PLAIN_LANE,
  paramFields,
  shaderSource,
} from "./kernel.ts";

/** WebGPU's flags, which are globals in a browser only. */
export const USAGE = { mapRead: 1, copySrc: 4, copyDst: 8, uniform: 64, storage: 128, queryResolve: 512 } as const;

/** How long a GPU whose results could not be read has to say that it is lost. */
const LOST_MS_MAX = 100;
const STAGE_COMPUTE = 4;
const MAP_READ = 1;

/** A kernel that is compiled. */
export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly fields: ParamFields;
  readonly bindingCount: number;
  readonly layout: GPUBindGroupLayout;
  readonly bindGroups: BindGroups;
}

/** Bind groups by their buffers, one after the other: hundreds are looked up in a step, and no key has to be made for it. */
interface BindGroups {
  group?: GPUBindGroup;
  next: Map<GPUBuffer, BindGroups>;
}

/** One opened GPU. */
export class Gpu {
  readonly device: GPUDevice;
  /** What kernels are compiled for. */
  readonly lane: Lane;
  readonly #pipelines = new Map<string, Pipeline>();
  readonly #own = new WeakSet<GPUBuffer>();
  /** Answers that are still to come: whether memory that was asked for is there. */
  readonly #asked = new Set<Promise<void>>();
  /** Counts buffers that were destroyed: what was bound before may be gone. */
  #destroyed = 0;
  /** Memory that was not to be had: whatever fails after it is its consequence. */
  #shortage: string | undefined;
  #failure: string | undefined;
  #lost: string | undefined;
  #closed = false;

  constructor(device: GPUDevice, lane: Lane = PLAIN_LANE) {
    this.device = device;
    this.lane = lane;
    device.addEventListener("uncapturederror", (event) => this.#fail((event as GPUUncapturedErrorEvent).error.message));
    void device.lost.then(({ message }) => {
      if (!this.#closed) this.#lost = message;
    });
  }

  /** From the first error of the GPU on always: what it computes is worth nothing then. @throws {DeviceLostError} */
  assertSound(): void {
    if (this.#lost !== undefined) throw new DeviceLostError(`webgpu: the GPU was lost: ${this.#lost}`);
    const failure = this.#shortage ?? this.#failure;
    if (failure !== undefined) throw new DeviceLostError(`webgpu: ${failure}`);
  }

  /** See `Device.allocated`. */
  async allocated(): Promise<void> {
    while (this.#asked.size > 0) await Promise.all(this.#asked);
    if (this.#shortage !== undefined) throw new QuireError("invalid_request", this.#shortage, { param: "pool_bytes" });
    this.assertSound();
  }

  /** Memory for kernels, zero at first. `bytes` is rounded up to 16. */
  storage(label: string, bytes: number): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    const { maxBufferSize, maxStorageBufferBindingSize } = this.device.limits;
    const bytesMax = Math.min(maxBufferSize, maxStorageBufferBindingSize);
    assert(size <= bytesMax, `${label}: ${size} bytes are more than the ${bytesMax} that the adapter binds at once`);
    return this.#buffer(label, size, USAGE.storage | USAGE.copySrc | USAGE.copyDst);
  }

  /** Memory for parameters. */
  uniforms(bytes: number): GPUBuffer {
    return this.#buffer("parameters", bytes, USAGE.uniform | USAGE.copyDst);
  }

  /** Memory that is copied from within a step. */
  staging(bytes: number): GPUBuffer {
    return this.#buffer("staging", bytes, USAGE.copySrc | USAGE.copyDst);
  }

  /** Memory that the host reads. */
  readable(bytes: number): GPUBuffer {
    return this.#buffer("readback", Math.max(4, bytes), USAGE.mapRead | USAGE.copyDst);
  }

  #buffer(label: string, size: number, usage: number): GPUBuffer {
    this.device.pushErrorScope("out-of-memory");
    const buffer = this.device.createBuffer({ label, size, usage });
    const answer = this.device.popErrorScope().then(
      (error) => {
        if (error !== null) this.#shortage ??= `the GPU has no memory for ${label}, ${size} bytes (${error.message})`;
      },
      () => {}, // A lost GPU has no answer; that it is lost it says itself.
    );
    this.#asked.add(answer);
    void answer.then(() => this.#asked.delete(answer));
    this.#own.add(buffer);
    return buffer;
  }

  /** Frees a buffer and forgets what was bound to it. */
  destroy(buffer: GPUBuffer): void {
    this.#assertOwn(buffer);
    for (const { bindGroups } of this.#pipelines.values()) forget(bindGroups, buffer);
    this.#destroyed += 1;
    buffer.destroy();
  }

  /** Changes with every buffer that is destroyed. */
  get destroyedCount(): number {
    return this.#destroyed;
  }

  /** Parameters and buffers of a kernel, bound; a bind group is made once. The offset of the parameters is given when it is set. */
  bind(pipeline: Pipeline, params: GPUBuffer, buffers: readonly GPUBuffer[]): GPUBindGroup {
    let place = nextOf(pipeline.bindGroups, params);
    for (const buffer of buffers) place = nextOf(place, buffer);
    if (place.group === undefined) {
      for (const buffer of [params, ...buffers]) this.#assertOwn(buffer);
      const entries = buffers.map((buffer, index) => ({ binding: index + 1, resource: { buffer } }));
      const uniform = { binding: 0, resource: { buffer: params, size: PARAMS_STRIDE } };
      place.group = this.device.createBindGroup({ layout: pipeline.layout, entries: [uniform, ...entries] });
    }
    return place.group;
  }

  /** Reads a range, after everything submitted before. Any alignment. */
  async read(buffer: GPUBuffer, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    if (bytes === 0) return new Uint8Array(0);
    const start = Math.floor(byteOffset / 4) * 4;
    const size = Math.ceil((byteOffset + bytes) / 4) * 4 - start;
    const readable = this.readable(size);
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, start, readable, 0, size);
    this.device.queue.submit([encoder.finish()]);
    try {
      const all = await this.mapped(readable, size);
      return all.slice(byteOffset - start, byteOffset - start + bytes);
    } finally {
      readable.destroy();
    }
  }

  /** A copy of what a readable buffer holds once the GPU has come so far. */
  async mapped(readable: GPUBuffer, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    try {
      await readable.mapAsync(MAP_READ, 0, bytes);
    } catch (cause) {
      // A lost GPU fails its reads before it says that it is lost.
      await Promise.race([this.device.lost, new Promise((resolve) => setTimeout(resolve, LOST_MS_MAX))]);
      this.assertSound();
      throw new QuireError("engine_failed", "webgpu: results could not be read", { cause });
    }
    const copy = new Uint8Array(readable.getMappedRange(0, bytes).slice(0));
    readable.unmap();
    this.assertSound();
    return copy;
  }

  /** Kernels compiled so far. */
  get pipelineCount(): number {
    return this.#pipelines.size;
  }

  close(): void {
    this.#closed = true;
    this.device.destroy();
  }

  #fail(message: string): void {
    this.#failure ??= message;
  }

  #assertOwn(buffer: GPUBuffer): void {
    assert(this.#own.has(buffer), "the buffer is of another GPU");
  }

  /** The kernel compiled; once. */
  pipelineOf(kernel: Kernel): Pipeline {
    const known = this.#pipelines.get(kernel.name);
    if (known !== undefined) return known;
    const code = shaderSource(kernel, this.lane);
    const module = this.device.createShaderModule({ label: kernel.name, code });
    const storage = Object.values(kernel.bindings).map(({ access }, index) => ({
      binding: index + 1,
      visibility: STAGE_COMPUTE,
      buffer: { type: access === "read" ? ("read-only-storage" as const) : ("storage" as const) },
    }));
    const uniform = { type: "uniform" as const, hasDynamicOffset: true, minBindingSize: PARAMS_STRIDE };
    const layout = this.device.createBindGroupLayout({
      label: kernel.name,
      entries: [{ binding: 0, visibility: STAGE_COMPUTE, buffer: uniform }, ...storage],
    });
    const pipeline = this.device.createComputePipeline({
      label: kernel.name,
      layout: this.device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: "main" },
    });
    const bindingCount = Object.keys(kernel.bindings).length;
    const made = { pipeline, layout, bindingCount, fields: paramFields(kernel), bindGroups: { next: new Map() } };
    this.#pipelines.set(kernel.name, made);
    return made;
  }
}

function nextOf({ next }: BindGroups, buffer: GPUBuffer): BindGroups {
  let place = next.get(buffer);
  if (place === undefined) {
    place = { next: new Map() };
    next.set(buffer, place);
  }
  return place;
}

/** Forgets every group that a buffer is in. */
function forget({ next }: BindGroups, buffer: GPUBuffer): void {
  next.delete(buffer);
  for (const place of next.values()) forget(place, buffer);
}
