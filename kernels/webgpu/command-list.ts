/// <reference types="@webgpu/types" />
/** The commands of one step, kept on the host until `submit` encodes them: one submission, or for a long step a few, and one readback. */
import { assert } from "../../protocol/assert.ts";
import { type Gpu, type Pipeline, USAGE } from "./gpu.ts";
import { type Kernel, PARAMS_STRIDE, writeParams } from "./kernel.ts";
import { Words } from "./words.ts";

/** Memory whose size is known only when a step is complete. Its content does not outlive the step. */
export class Arena {
  readonly label: string;
  /** Largest size that the running step needs. */
  bytes = 0;
  #buffer: GPUBuffer | undefined;

  constructor(label: string) {
    this.label = label;
  }

  /** Notes that a step needs at least so much. */
  need(bytes: number): void {
    this.bytes = Math.max(this.bytes, bytes);
  }

  /** The buffer; replaced by a larger one where it does not suffice, by twice as much at least. */
  buffer(gpu: Gpu): GPUBuffer {
    if (this.#buffer !== undefined && this.#buffer.size >= this.bytes) return this.#buffer;
    const { maxBufferSize, maxStorageBufferBindingSize } = gpu.device.limits;
    const bytesMax = Math.floor(Math.min(maxBufferSize, maxStorageBufferBindingSize) / 16) * 16;
    const grown = Math.max(this.bytes, Math.min(bytesMax, (this.#buffer?.size ?? 0) * 2), 4096);
    const old = this.#buffer;
    // Where there is no larger one, the next step finds none.
    this.#buffer = undefined;
    if (old !== undefined) gpu.destroy(old);
    this.#buffer = gpu.storage(this.label, grown);
    return this.#buffer;
  }
}

/** Work groups in x, y and z. */
export type Grid = readonly [x: number, y?: number, z?: number];

interface DispatchCommand {
  kind: "dispatch";
  name: string;
  pipeline: Pipeline;
  paramsAt: number;
  buffers: readonly (GPUBuffer | Arena)[];
  grid: Grid;
}

type Command = DispatchCommand | { kind: "upload"; to: GPUBuffer; offset: number; from: number; bytes: number };

const GRID_MAX = 65_535;
/** Commands of a step's first submission, and of those behind it; a step of fewer than FIRST_PIECE + PIECE / 2 is one. */
const FIRST_PIECE = 64;
const PIECE = 192;
const BYTES_MIN = 1 << 16;

/** A growing run of bytes. */
class Bytes {
  data = new Uint8Array(BYTES_MIN);
  words = new Uint32Array(this.data.buffer);
  floats = new Float32Array(this.data.buffer);
  length = 0;

  /** Reserves `bytes` and returns where they are. */
  take(bytes: number): number {
    const at = this.length;
    this.length += bytes;
    if (this.length > this.data.length) {
      const grown = new Uint8Array(Math.max(Math.ceil(this.length / 4) * 4, this.data.length * 2));
      grown.set(this.data);
      this.data = grown;
      this.words = new Uint32Array(grown.buffer);
      this.floats = new Float32Array(grown.buffer);
    }
    return at;
  }
}

/** Buffers of one dispatch, and their bind group; good while no buffer has been destroyed since. */
interface Bound {
  pipeline: Pipeline;
  uniforms: GPUBuffer;
  buffers: readonly (GPUBuffer | Arena)[];
  group: GPUBindGroup;
  destroyedCount: number;
}

/** Buffers of the host's side that are kept from step to step. */
export class StepBuffers {
  /** u32 tables of the step: see step-tables.ts. */
  readonly tables = new Arena("tables");
  /** What the step gives back. */
  readonly outcome = new Arena("outcome");
  readonly scratch = new Arena("scratch");
  /** Rows of a product's input as its kernel reads them. */
  readonly inputs = new Arena("inputs");
  /** Their scales and sums. */
  readonly inputScales = new Arena("input scales");
  /** The same for a kernel that reads the rows of one product and makes those of the next. */
  readonly nextInputs = new Arena("next inputs");
  readonly nextInputScales = new Arena("next input scales");
  /** What `tables` will hold. */
  readonly words = new Words();
  readonly params = new Bytes();
  /** What the last step bound, dispatch by dispatch: mostly the next one binds the same. */
  readonly bound: Bound[] = [];
  readonly uploads = new Bytes();
  /** Told of the nanoseconds that the GPU takes from the first command of a step to the last; its dispatches stay together. */
  onSpan: ((ns: number) => void) | undefined;
  #uniforms: GPUBuffer | undefined;
  #staging: GPUBuffer | undefined;
  #readable: GPUBuffer | undefined;

  get arenas(): readonly Arena[] {
    const inputs = [this.inputs, this.inputScales, this.nextInputs, this.nextInputScales];
    return [this.tables, this.outcome, this.scratch, ...inputs];
  }

  uniforms(gpu: Gpu, bytes: number): GPUBuffer {
    this.#uniforms = atLeast(gpu, this.#uniforms, bytes, (size) => gpu.uniforms(size));
    return this.#uniforms;
  }

  staging(gpu: Gpu, bytes: number): GPUBuffer {
    this.#staging = atLeast(gpu, this.#staging, bytes, (size) => gpu.staging(size));
    return this.#staging;
  }

  readable(gpu: Gpu, bytes: number): GPUBuffer {
    this.#readable = atLeast(gpu, this.#readable, bytes, (size) => gpu.readable(size));
    return this.#readable;
  }
}

function atLeast(
  gpu: Gpu,
  buffer: GPUBuffer | undefined,
  bytes: number,
  make: (bytes: number) => GPUBuffer,
): GPUBuffer {
  if (buffer !== undefined && buffer.size >= bytes) return buffer;
  if (buffer !== undefined) gpu.destroy(buffer);
  let size = BYTES_MIN;
  while (size < bytes) size *= 2;
  return make(size);
}

/** Times one kernel's dispatch took, in the order of the step. */
export interface KernelTime {
  name: string;
  ns: number;
}

/** Records commands in order. */
export class CommandList {
  readonly #gpu: Gpu;
  readonly #buffers: StepBuffers;
  readonly #commands: Command[] = [];

  constructor(gpu: Gpu, buffers: StepBuffers) {
    this.#gpu = gpu;
    this.#buffers = buffers;
    buffers.words.clear();
    buffers.params.length = 0;
    buffers.uploads.length = 0;
    for (const arena of buffers.arenas) arena.bytes = 0;
  }

  get isEmpty(): boolean {
    return this.#commands.length === 0;
  }

  /** Commands so far. */
  get count(): number {
    return this.#commands.length;
  }

  /** Runs `kernel` over `grid`; nothing where the grid is empty. `buffers` in the order of the kernel's bindings. */
  dispatch(
    kernel: Kernel,
    params: Readonly<Record<string, number>>,
    buffers: readonly (GPUBuffer | Arena)[],
    grid: Grid,
  ): void {
    const [x, y = 1, z = 1] = grid;
    if (x === 0 || y === 0 || z === 0) return;
    const pipeline = this.#gpu.pipelineOf(kernel);
    // A step has hundreds of dispatches: messages are made only when they are needed.
    if (buffers.length !== pipeline.bindingCount) {
      assert(false, `kernel ${kernel.name}: wrong number of buffers`);
    }
    if (Math.max(x, y, z) > GRID_MAX) {
      assert(
        false,
        `kernel ${kernel.name}: a grid of ${x} x ${y} x ${z} work groups is more than ${GRID_MAX} in one dimension`,
      );
    }
    const { params: bytes } = this.#buffers;
    const paramsAt = bytes.take(PARAMS_STRIDE);
    writeParams(pipeline.fields, params, bytes, paramsAt / 4);
    this.#commands.push({ kind: "dispatch", name: kernel.name, pipeline, paramsAt, buffers, grid });
  }

  /** Copies `data` (not kept; whole words) into a buffer, after the commands before and ahead of those that follow. */
  upload(to: GPUBuffer, offset: number, data: Uint8Array): void {
    const from = this.#buffers.uploads.take(data.length);
    this.#buffers.uploads.data.set(data, from);
    this.#commands.push({ kind: "upload", to, offset, from, bytes: data.length });
  }

  /**
   * Submits everything, with the step's `tables`, and returns the first `outcomeBytes` of the outcome (0 at first). With `timed`, the
   * dispatches run one by one and their times are added to it: the GPU's own, or without its timestamps those that the host sees, which
   * hold a submission each.
   */
  async submit(tables: Words, outcomeBytes: number, timed?: KernelTime[]): Promise<Uint8Array<ArrayBuffer>> {
    const { device } = this.#gpu;
    const { outcome, params, uploads } = this.#buffers;
    this.#buffers.tables.need(tables.bytes);
    outcome.need(outcomeBytes);
    // All that the step needs is known: arenas grow now, before anything is bound.
    for (const arena of this.#buffers.arenas) if (arena.bytes > 0) arena.buffer(this.#gpu);
    tables.sendTo(this.#buffers.tables.buffer(this.#gpu), device.queue);
    device.queue.writeBuffer(this.#uniforms(), 0, params.data, 0, params.length);
    if (uploads.length > 0) {
      device.queue.writeBuffer(this.#buffers.staging(this.#gpu, uploads.length), 0, uploads.data, 0, uploads.length);
    }
    let encoder = device.createCommandEncoder();
    if (outcomeBytes > 0) encoder.clearBuffer(outcome.buffer(this.#gpu), 0, outcomeBytes);
    const { onSpan } = this.#buffers;
    const hasTimestamps = device.features.has("timestamp-query");
    const timer = timed === undefined || !hasTimestamps ? undefined : new Timer(this.#gpu, this.#dispatchCount());
    const span = onSpan === undefined ? undefined : new Timer(this.#gpu, 2);
    span?.mark(encoder);
    if (timed !== undefined && timer === undefined) {
      device.queue.submit([encoder.finish()]);
      await this.#runOneByOne(timed);
      encoder = device.createCommandEncoder();
    } else {
      encoder = this.#encodeInPieces(encoder, timer);
    }
    span?.mark(encoder);
    timer?.resolve(encoder);
    span?.resolve(encoder);
    const readable = this.#buffers.readable(this.#gpu, Math.max(4, outcomeBytes));
    if (outcomeBytes > 0) encoder.copyBufferToBuffer(outcome.buffer(this.#gpu), 0, readable, 0, outcomeBytes);
    device.queue.submit([encoder.finish()]);
    const bytes = await this.#gpu.mapped(readable, Math.max(4, outcomeBytes));
    if (timer !== undefined) timed?.push(...(await timer.times()));
    if (span !== undefined) onSpan?.(await span.spanNs());
    return bytes;
  }

  #dispatchCount(): number {
    return this.#commands.filter(({ kind }) => kind === "dispatch").length;
  }

  /** Parameters of all its dispatches. */
  #uniforms(): GPUBuffer {
    return this.#buffers.uniforms(this.#gpu, Math.max(PARAMS_STRIDE, this.#buffers.params.length));
  }

  /** A long step is submitted in pieces, so that the GPU runs the first while the host encodes the next. Returns the encoder of the last one. */
  #encodeInPieces(first: GPUCommandEncoder, timer: Timer | undefined): GPUCommandEncoder {
    const { device } = this.#gpu;
    let encoder = first;
    let from = 0;
    for (let end = FIRST_PIECE; end < this.#commands.length - PIECE / 2; end += PIECE) {
      this.#encode(encoder, { from, end }, timer);
      device.queue.submit([encoder.finish()]);
      encoder = device.createCommandEncoder();
      from = end;
    }
    this.#encode(encoder, { from, end: this.#commands.length }, timer);
    return encoder;
  }

  /** Each command in a submission of its own, with the time until it is done. */
  async #runOneByOne(timed: KernelTime[]): Promise<void> {
    const { device } = this.#gpu;
    for (const [from, command] of this.#commands.entries()) {
      const encoder = device.createCommandEncoder();
      this.#encode(encoder, { from, end: from + 1 }, undefined);
      await device.queue.onSubmittedWorkDone();
      const startMs = performance.now();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
      const ns = Math.round((performance.now() - startMs) * 1e6);
      if (command.kind === "dispatch") timed.push({ name: command.name, ns });
    }
  }

  /** Commands `from` to `end`. */
  #encode(encoder: GPUCommandEncoder, { from, end }: { from: number; end: number }, timer: Timer | undefined): void {
    const { uploads } = this.#buffers;
    const uniforms = this.#uniforms();
    const staging = uploads.length === 0 ? undefined : this.#buffers.staging(this.#gpu, uploads.length);
    let pass: GPUComputePassEncoder | undefined;
    let set: Pipeline | undefined;
    const offsets = [0];
    for (let place = from; place < end; place++) {
      const command = this.#commands[place] as Command;
      if (command.kind === "upload") {
        pass?.end();
        pass = undefined;
        encoder.copyBufferToBuffer(staging as GPUBuffer, command.from, command.to, command.offset, command.bytes);
        continue;
      }
      if (timer !== undefined) pass?.end();
      if (pass === undefined || timer !== undefined) {
        pass = encoder.beginComputePass(timer === undefined ? {} : { timestampWrites: timer.next(command.name) });
        set = undefined;
      }
      if (set !== command.pipeline) pass.setPipeline(command.pipeline.pipeline);
      set = command.pipeline;
      offsets[0] = command.paramsAt;
      pass.setBindGroup(0, this.#groupOf(command, place, uniforms), offsets);
      pass.dispatchWorkgroups(command.grid[0], command.grid[1] ?? 1, command.grid[2] ?? 1);
    }
    pass?.end();
  }

  /** The bind group of a dispatch: that of the same place in the last step, if it was the same. */
  #groupOf({ pipeline, buffers }: DispatchCommand, place: number, uniforms: GPUBuffer): GPUBindGroup {
    const { bound } = this.#buffers;
    const last = bound[place];
    if (
      last !== undefined &&
      last.pipeline === pipeline &&
      last.uniforms === uniforms &&
      last.destroyedCount === this.#gpu.destroyedCount &&
      isSame(last.buffers, buffers)
    ) {
      return last.group;
    }
    const memories = buffers.map((buffer) => (buffer instanceof Arena ? buffer.buffer(this.#gpu) : buffer));
    const group = this.#gpu.bind(pipeline, uniforms, memories);
    bound[place] = { pipeline, uniforms, buffers, group, destroyedCount: this.#gpu.destroyedCount };
    return group;
  }
}

function isSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  for (let index = 0; index < a.length; index++) if (a[index] !== b[index]) return false;
  return a.length === b.length;
}

/**
 * Times of dispatches that run one behind the other, of their begins and ends in turn. A GPU may take the first stamp of a dispatch when it comes by it, while
 * the one before still runs (on Vulkan it is taken at the top of the pipe): what they share is the earlier one's.
 */
export function timesBetween(names: readonly string[], stamps: BigUint64Array): KernelTime[] {
  let before = 0n;
  return names.map((name, index) => {
    const [begin, end] = [stamps[index * 2] as bigint, stamps[index * 2 + 1] as bigint];
    const from = begin > before ? begin : before;
    if (end > before) before = end;
    return { name, ns: end > from ? Number(end - from) : 0 };
  });
}

/** Timestamps around every dispatch. */
class Timer {
  readonly #gpu: Gpu;
  readonly #set: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  readonly #names: string[] = [];

  constructor(gpu: Gpu, count: number) {
    this.#gpu = gpu;
    this.#set = gpu.device.createQuerySet({ type: "timestamp", count: Math.max(1, count) * 2 });
    this.#resolved = gpu.device.createBuffer({
      size: Math.max(1, count) * 16,
      usage: USAGE.queryResolve | USAGE.copySrc,
    });
  }

  next(name: string): GPUComputePassTimestampWrites {
    const at = this.#names.length * 2;
    this.#names.push(name);
    return { querySet: this.#set, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }

  resolve(encoder: GPUCommandEncoder): void {
    if (this.#names.length > 0) encoder.resolveQuerySet(this.#set, 0, this.#names.length * 2, this.#resolved, 0);
  }

  /** Takes the time between what is encoded before and behind it. */
  mark(encoder: GPUCommandEncoder): void {
    encoder.beginComputePass({ timestampWrites: this.next("mark") }).end();
  }

  async times(): Promise<KernelTime[]> {
    return timesBetween(this.#names, await this.#stamps());
  }

  /** From the first stamp to the last. */
  async spanNs(): Promise<number> {
    const stamps = await this.#stamps();
    return Number((stamps.at(-1) as bigint) - (stamps[0] as bigint));
  }

  /** Ends the timer. */
  async #stamps(): Promise<BigUint64Array> {
    const bytes = await this.#gpu.read(this.#resolved, 0, this.#names.length * 16);
    this.#set.destroy();
    this.#resolved.destroy();
    return new BigUint64Array(bytes.buffer);
  }
}
