/// <reference types="@webgpu/types" />
/**
 * A KV pool on the GPU. Blocks lie in up to a few buffers (bindings are limited); open slots and summaries in one buffer per layer, because
 * an op sees one layer only. Within a layer: open slot `[slot]{ K f32 [kvHead][64][headDim], V the same }`, summaries of a kind
 * `[slot][kvHead]{ codes, scales }` as the contract has them.
 */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { COARSE_KINDS } from "../coarse.ts";
import { BLOCK_TOKENS, type KvPool, type KvPoolSpec, type SummaryKind } from "../contract.ts";
import {
  assertPoolSpec,
  blockCentreBytes,
  blockLayout,
  openSlotBytes,
  summaryBytes,
  summaryHeadAt,
  summaryHeadBytes,
  summaryKindIndex,
  summaryLayers,
  summaryScalesAt,
} from "../layout.ts";
import { blockCentre } from "../summary-codec.ts";
import type { Gpu } from "./gpu.ts";

/** What limits a pool on a GPU. */
export interface PoolLimits {
  /** Storage buffers that one kernel may have. */
  storageBuffersMax: number;
  /** Bytes of the largest buffer that can be bound whole. */
  bindingBytesMax: number;
}

/** Storage buffers of attention beside the parts of a pool. */
const ATTEND_BUFFERS = 5;
/** What 16 storage buffers per kernel, the most that Dawn grants, leave. */
const PARTS_MAX = 11;

/** Buffers over which the blocks of a pool may spread: attention has all of them bound at once. */
export function poolPartsMax({ storageBuffersMax }: Pick<PoolLimits, "storageBuffersMax">): number {
  return Math.max(0, Math.min(PARTS_MAX, storageBuffersMax - ATTEND_BUFFERS));
}

/** Blocks of `blockBytes` that a pool may have, however much memory the GPU has. */
export function poolBlocksMax(limits: PoolLimits, blockBytes: number): number {
  return poolPartsMax(limits) * Math.floor(limits.bindingBytesMax / blockBytes);
}

/** Copies bytes into a buffer, ordered with the ops of a running step. */
export type WriteBytes = (buffer: GPUBuffer, byteOffset: number, data: Uint8Array) => void;

/** See `KvPool`. */
export class WebGpuPool implements KvPool {
  readonly spec: Readonly<KvPoolSpec>;
  readonly blockBytes: number;
  readonly openSlotBytes: number;
  readonly summaryBytes: number;
  /** Blocks of one part; block b is the b % blocksPerPart-th of part floor(b / blocksPerPart). */
  readonly blocksPerPart: number;
  readonly blockParts: readonly GPUBuffer[];
  /** One per layer. */
  readonly open: readonly GPUBuffer[];
  readonly #summaries: readonly (readonly GPUBuffer[])[];
  /** Per kind; empty for those without. */
  readonly #centres: readonly (readonly GPUBuffer[])[];
  readonly #gpu: Gpu;
  readonly #write: WriteBytes;

  /** @throws {QuireError} invalid_request for more blocks than {@link poolBlocksMax}. */
  constructor(gpu: Gpu, spec: KvPoolSpec, { write, ...limits }: PoolLimits & { write: WriteBytes }) {
    assertPoolSpec(spec);
    this.spec = { ...spec, summaryKinds: [...spec.summaryKinds] };
    this.blockBytes = blockLayout(spec).bytes;
    this.openSlotBytes = openSlotBytes(spec);
    this.summaryBytes = summaryBytes(spec);
    this.#gpu = gpu;
    this.#write = write;
    assertHolds(spec, limits, this.blockBytes);
    const most = Math.floor(limits.bindingBytesMax / this.blockBytes);
    const partCount = Math.max(1, Math.ceil(spec.blockCount / Math.max(1, most)));
    this.blocksPerPart = partCount === 1 ? Math.max(1, spec.blockCount) : most;
    this.blockParts = Array.from({ length: partCount }, (_, part) => {
      const count = Math.min(this.blocksPerPart, spec.blockCount - part * this.blocksPerPart);
      return gpu.storage(`blocks ${part}`, count * this.blockBytes);
    });
    const { layerCount } = spec;
    const perLayer = (label: string, bytes: number): GPUBuffer[] =>
      Array.from({ length: layerCount }, (_, layer) => gpu.storage(`${label} of layer ${layer}`, bytes));
    this.open = perLayer("open slots", (spec.openSlotCount * this.openSlotBytes) / layerCount);
    const summaryLayerBytes = (spec.summarySlotCount * this.summaryBytes) / layerCount;
    this.#summaries = spec.summaryKinds.map((kind) => perLayer(`${kind} summaries`, summaryLayerBytes));
    const centreLayerBytes = spec.summarySlotCount * spec.kvHeadCount * blockCentreBytes(spec.headDim);
    this.#centres = spec.summaryKinds.map((kind) =>
      COARSE_KINDS.includes(kind) ? perLayer(`${kind} centres`, centreLayerBytes) : [],
    );
  }

  /** Centres of blocks by one kind's summaries, of one layer: `[slot][kvHead]{ i8 codes [headDim], f32 scale }`; undefined: it has none. */
  centres(kind: SummaryKind, layer: number): GPUBuffer | undefined {
    return this.#centres[summaryKindIndex(this.spec, kind)]?.[layer];
  }

  /** Summaries of one kind of one layer. */
  summaries(kind: SummaryKind, layer: number): GPUBuffer {
    return this.#summaries[summaryKindIndex(this.spec, kind)]?.[layer] as GPUBuffer;
  }

  /** f32 elements of one open slot in one layer: its keys, then its values. */
  get openSlotElements(): number {
    return this.openSlotBytes / this.spec.layerCount / 4;
  }

  /** Bytes of one kind of one summary slot in one layer. */
  get summaryLayerBytes(): number {
    return this.spec.kvHeadCount * summaryHeadBytes(this.spec.headDim);
  }

  async readBlock(blockId: number): Promise<Uint8Array<ArrayBuffer>> {
    const { buffer, byteOffset } = this.#block(blockId);
    return this.#gpu.read(buffer, byteOffset, this.blockBytes);
  }

  writeBlock(blockId: number, bytes: Uint8Array): void {
    assert(bytes.length === this.blockBytes, `a block has ${this.blockBytes} bytes, not ${bytes.length}`);
    const { buffer, byteOffset } = this.#block(blockId);
    this.#write(buffer, byteOffset, bytes);
  }

  async readSummary(slot: number, kind: SummaryKind): Promise<Uint8Array<ArrayBuffer>> {
    const runs = this.#summaryRuns(slot, kind);
    return join(
      await Promise.all(runs.map(({ buffer, byteOffset, bytes }) => this.#gpu.read(buffer, byteOffset, bytes))),
    );
  }

  writeSummary(slot: number, kind: SummaryKind, bytes: Uint8Array, only?: number): void {
    const { from, to } = summaryLayers(this.spec, bytes, only);
    this.#writeRuns(this.#summaryRuns(slot, kind).slice(from, to), bytes);
    const { kvHeadCount, headDim } = this.spec;
    for (let layer = from; layer < to; layer++) {
      const buffer = this.centres(kind, layer);
      if (buffer === undefined) return;
      const centres = join(
        Array.from({ length: kvHeadCount }, (_, kvHead) => {
          const at = summaryHeadAt(this.spec, layer - from, kvHead);
          return centreOf(bytes.slice(at, at + summaryHeadBytes(headDim)), headDim);
        }),
      );
      this.#write(buffer, slot * centres.length, centres);
    }
  }

  async readOpen(slot: number, tokenCount: number): Promise<Uint8Array<ArrayBuffer>> {
    const { layerCount, kvHeadCount, headDim } = this.spec;
    assertIndex(slot, this.spec.openSlotCount, "open slot");
    const out = new Uint8Array(this.#openBytes(tokenCount));
    if (tokenCount === 0) return out;
    const slotBytes = this.openSlotBytes / layerCount;
    const layers = await Promise.all(this.open.map((buffer) => this.#gpu.read(buffer, slot * slotBytes, slotBytes)));
    const headBytes = tokenCount * headDim * 4;
    this.#eachOpenHead(tokenCount, ({ layer, part, kvHead, at }) => {
      const from = (part * kvHeadCount + kvHead) * BLOCK_TOKENS * headDim * 4;
      out.set((layers[layer] as Uint8Array).subarray(from, from + headBytes), at);
    });
    return out;
  }

  writeOpen(slot: number, tokenCount: number, bytes: Uint8Array): void {
    const { layerCount, kvHeadCount, headDim } = this.spec;
    assertIndex(slot, this.spec.openSlotCount, "open slot");
    const size = this.#openBytes(tokenCount);
    assert(bytes.length === size, `${tokenCount} open tokens have ${size} bytes, not ${bytes.length}`);
    if (tokenCount === 0) return;
    const slotBytes = this.openSlotBytes / layerCount;
    const headBytes = tokenCount * headDim * 4;
    this.#eachOpenHead(tokenCount, ({ layer, part, kvHead, at }) => {
      const to = slot * slotBytes + (part * kvHeadCount + kvHead) * BLOCK_TOKENS * headDim * 4;
      this.#write(this.open[layer] as GPUBuffer, to, bytes.subarray(at, at + headBytes));
    });
  }

  #openBytes(tokenCount: number): number {
    assert(tokenCount >= 0 && tokenCount <= BLOCK_TOKENS, `an open slot cannot hold ${tokenCount} tokens`);
    return (this.openSlotBytes / BLOCK_TOKENS) * tokenCount;
  }

  /** Every head's first tokens, in the order of the contract's compact form: keys of all layers, then values. */
  #eachOpenHead(
    tokenCount: number,
    visit: (head: { layer: number; part: 0 | 1; kvHead: number; at: number }) => void,
  ): void {
    const { layerCount, kvHeadCount, headDim } = this.spec;
    let at = 0;
    for (const part of [0, 1] as const) {
      for (let layer = 0; layer < layerCount; layer++) {
        for (let kvHead = 0; kvHead < kvHeadCount; kvHead++) {
          visit({ layer, part, kvHead, at });
          at += tokenCount * headDim * 4;
        }
      }
    }
  }

  #block(blockId: number): { buffer: GPUBuffer; byteOffset: number } {
    assertIndex(blockId, this.spec.blockCount, "block");
    const buffer = this.blockParts[Math.floor(blockId / this.blocksPerPart)] as GPUBuffer;
    return { buffer, byteOffset: (blockId % this.blocksPerPart) * this.blockBytes };
  }

  #summaryRuns(slot: number, kind: SummaryKind): { buffer: GPUBuffer; byteOffset: number; bytes: number }[] {
    assertIndex(slot, this.spec.summarySlotCount, "summary slot");
    const buffers = this.#summaries[summaryKindIndex(this.spec, kind)] as readonly GPUBuffer[];
    const bytes = this.summaryLayerBytes;
    return buffers.map((buffer) => ({ buffer, byteOffset: slot * bytes, bytes }));
  }

  #writeRuns(runs: readonly { buffer: GPUBuffer; byteOffset: number; bytes: number }[], data: Uint8Array): void {
    let at = 0;
    for (const { buffer, byteOffset, bytes } of runs) {
      this.#write(buffer, byteOffset, data.subarray(at, at + bytes));
      at += bytes;
    }
  }
}

/** @throws {QuireError} `invalid_request`, param `pool_bytes`, naming the blocks and tokens that a pool may have. */
export function assertHolds(
  { blockCount, layerCount }: Pick<KvPoolSpec, "blockCount" | "layerCount">,
  limits: PoolLimits,
  blockBytes: number,
): void {
  const most = poolBlocksMax(limits, blockBytes);
  if (blockCount <= most) return;
  const tokens = Math.floor(most / layerCount) * BLOCK_TOKENS;
  throw new QuireError(
    "invalid_request",
    `blockCount ${blockCount}: this adapter holds at most ${most} blocks of ${blockBytes} bytes, ${tokens} tokens ` +
      `(${poolPartsMax(limits)} buffers of ${Math.floor(limits.bindingBytesMax / 2 ** 20)} MiB); give the pool less memory`,
    { param: "pool_bytes" },
  );
}

/** The bytes of a block's centre in one KV head, whose summaries are `bytes`. */
function centreOf(bytes: Uint8Array<ArrayBuffer>, headDim: number): Uint8Array {
  const scalesAt = summaryScalesAt(headDim);
  const centre = blockCentre(
    new Int8Array(bytes.buffer, 0, scalesAt),
    new Float32Array(bytes.buffer, scalesAt),
    headDim,
  );
  const scale = Float32Array.of(centre.scale);
  return join([new Uint8Array(centre.codes.buffer), new Uint8Array(scale.buffer)]);
}

function assertIndex(index: number, count: number, what: string): void {
  assert(Number.isInteger(index) && index >= 0 && index < count, `${what} ${index} is out of range`);
}

function join(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(pieces.reduce((bytes, piece) => bytes + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
