/** The one memory that all threads share: a first-fit allocator over it, and views of it. */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";

const WASM_PAGE_BYTES = 65_536;
const ALIGN_BYTES = 64;
/** The control page (see assembly/control.ts); address 0 so means "none". */
const RESERVED_BYTES = 4096;
/** One page short of 4 GiB, so that the end of a range is still a 32-bit number. */
export const HEAP_BYTES_MAX = 2 ** 32 - WASM_PAGE_BYTES;

interface Span {
  at: number;
  bytes: number;
}

/** A growing shared memory. Addresses are byte offsets below 2^32, aligned to 64. Not for use by several threads. */
export class WasmHeap {
  readonly memory: WebAssembly.Memory;
  readonly bytesMax: number;
  /** Views of the whole memory; read them anew after every allocation. */
  bytes: Uint8Array<SharedArrayBuffer>;
  words: Int32Array<SharedArrayBuffer>;
  floats: Float32Array<SharedArrayBuffer>;
  /** Ascending, never adjacent. */
  readonly #free: Span[] = [];
  readonly #used = new Map<number, number>();
  /** Memory from here on was never handed out, so it is still zero. */
  #freshFrom = RESERVED_BYTES;

  constructor(bytesMax: number) {
    const pagesMax = Math.floor(Math.min(bytesMax, HEAP_BYTES_MAX) / WASM_PAGE_BYTES);
    assert(pagesMax >= 1, `the device needs at least ${WASM_PAGE_BYTES} bytes of memory`);
    this.bytesMax = pagesMax * WASM_PAGE_BYTES;
    this.memory = new WebAssembly.Memory({ initial: 1, maximum: pagesMax, shared: true });
    this.#free.push({ at: RESERVED_BYTES, bytes: WASM_PAGE_BYTES - RESERVED_BYTES });
    this.bytes = new Uint8Array(sharedBuffer(this.memory));
    this.words = new Int32Array(sharedBuffer(this.memory));
    this.floats = new Float32Array(sharedBuffer(this.memory));
  }

  /**
   * Address of `bytes` fresh bytes of undefined content.
   * @throws {QuireError} `engine_failed` when the memory's limit is reached, or the host gives no more.
   */
  allocate(bytes: number): number {
    const at = this.tryAllocate(bytes);
    if (at !== undefined) return at;
    throw new QuireError("engine_failed", "The CPU device has no memory left.", {
      cause: new Error(`${bytes} bytes wanted, ${this.memory.buffer.byteLength} of ${this.bytesMax} taken`),
    });
  }

  /** As {@link allocate}; undefined where there is no room. */
  tryAllocate(bytes: number): number | undefined {
    assert(Number.isInteger(bytes) && bytes >= 0, "bytes must be an integer >= 0");
    const size = sizeOf(bytes);
    let index = this.#free.findIndex((span) => span.bytes >= size);
    if (index < 0) {
      if (!this.#grow(size)) return undefined;
      index = this.#free.length - 1;
    }
    const span = this.#free[index] as Span;
    const at = span.at;
    if (span.bytes === size) this.#free.splice(index, 1);
    else this.#free[index] = { at: at + size, bytes: span.bytes - size };
    this.#used.set(at, size);
    this.#freshFrom = Math.max(this.#freshFrom, at + size);
    return at;
  }

  /** As {@link allocate}, filled with zeros. Memory that was never used is not touched. */
  allocateZeroed(bytes: number): number {
    const freshFrom = this.#freshFrom;
    const at = this.allocate(bytes);
    this.bytes.fill(0, at, Math.max(at, Math.min(at + bytes, freshFrom)));
    return at;
  }

  /** Gives back what {@link allocate} returned. */
  release(at: number): void {
    const bytes = this.#used.get(at);
    assert(bytes !== undefined, "released memory that was not allocated");
    this.#used.delete(at);
    let index = this.#free.findIndex((span) => span.at > at);
    if (index < 0) index = this.#free.length;
    this.#free.splice(index, 0, { at, bytes });
    this.#join(index);
    this.#join(index - 1);
  }

  /** Merges a free span with the next one if they touch. */
  #join(index: number): void {
    const span = this.#free[index];
    const next = this.#free[index + 1];
    if (span === undefined || next === undefined || span.at + span.bytes !== next.at) return;
    this.#free.splice(index, 2, { at: span.at, bytes: span.bytes + next.bytes });
  }

  /** Makes the last free span hold at least `size` bytes. False where there is no room. */
  #grow(size: number): boolean {
    const end = this.memory.buffer.byteLength;
    const last = this.#free.at(-1);
    const tail = last !== undefined && last.at + last.bytes === end ? last.bytes : 0;
    const pages = Math.ceil((size - tail) / WASM_PAGE_BYTES);
    if (end + pages * WASM_PAGE_BYTES > this.bytesMax || !grown(this.memory, pages)) return false;
    this.bytes = new Uint8Array(sharedBuffer(this.memory));
    this.words = new Int32Array(sharedBuffer(this.memory));
    this.floats = new Float32Array(sharedBuffer(this.memory));
    this.#free.push({ at: end, bytes: pages * WASM_PAGE_BYTES });
    this.#join(this.#free.length - 2);
    return true;
  }
}

/** Whether the host gave the pages; it throws a RangeError when it has none. */
function grown(memory: WebAssembly.Memory, pages: number): boolean {
  try {
    memory.grow(pages);
    return true;
  } catch {
    return false;
  }
}

function sharedBuffer(memory: WebAssembly.Memory): SharedArrayBuffer {
  const buffer: unknown = memory.buffer;
  assert(buffer instanceof SharedArrayBuffer, "the memory is not shared");
  return buffer;
}

/** What an allocation of `bytes` really takes. */
function sizeOf(bytes: number): number {
  return Math.max(ALIGN_BYTES, roundUp(bytes, ALIGN_BYTES));
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

/** Memory for one phase (an op, a selection, a step): taken bit by bit, given back at once by {@link clear}, kept for the next time. */
export class Arena {
  readonly #heap: WasmHeap;
  readonly #beforeRelease: () => void;
  readonly #chunks: Span[] = [];
  #chunk = 0;
  #offset = 0;

  /** `beforeRelease` is called before memory goes back to the heap: ops that wait may still be about to use it. */
  constructor(heap: WasmHeap, beforeRelease: () => void = () => {}) {
    this.#heap = heap;
    this.#beforeRelease = beforeRelease;
  }

  /** Address of `bytes` bytes of undefined content, aligned to 16, valid until {@link clear}. */
  take(bytes: number): number {
    const size = roundUp(bytes, 16);
    for (; this.#chunk < this.#chunks.length; this.#chunk++) {
      const chunk = this.#chunks[this.#chunk] as Span;
      if (this.#offset + size <= chunk.bytes) {
        this.#offset += size;
        return chunk.at + this.#offset - size;
      }
      this.#offset = 0;
    }
    const chunkBytes = Math.max(WASM_PAGE_BYTES, roundUp(size, ALIGN_BYTES));
    this.#chunks.push({ at: this.#heap.allocate(chunkBytes), bytes: chunkBytes });
    this.#offset = size;
    return (this.#chunks[this.#chunk] as Span).at;
  }

  /** Everything taken is free again. Several chunks become one, so that a steady load settles in one piece. */
  clear(): void {
    this.#chunk = 0;
    this.#offset = 0;
    if (this.#chunks.length < 2) return;
    this.#beforeRelease();
    const bytes = this.#chunks.reduce((sum, chunk) => sum + chunk.bytes, 0);
    for (const chunk of this.#chunks.splice(0)) this.#heap.release(chunk.at);
    // Where memory is short and in pieces, `take` finds its chunks again.
    const at = this.#heap.tryAllocate(bytes);
    if (at !== undefined) this.#chunks.push({ at, bytes });
  }
}
