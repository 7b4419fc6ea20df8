/**
 * Blocks as a pool holds them, and as the store keeps them (`docs/page-format.md`, section 2). f32 and int8 blocks are stored as they are; f16 and
 * int4 blocks in fewer bytes, without loss: the pool has rounded them when they were sealed, so that a block that comes back from the store is
 * the one that never left, bit for bit.
 */
import { assert } from "../protocol/assert.ts";
import { BLOCK_TOKENS, type KvGeometry, type StoredEncoding, storedBlockBytes } from "./geometry.ts";

type Shape = Pick<KvGeometry, "kvHeadCount" | "headDim" | "encoding">;

const CODES = 16;
/** Steps of an int4 vector above its least code. */
const STEPS = CODES - 1;
/** The widest step: 254 / 15, rounded up. */
const STEP_MAX = 17;

/** Whether blocks are stored in other bytes than a pool's. */
export function isPacked({ encoding }: Shape): boolean {
  return poolFormOf(encoding).rounding !== undefined;
}

/** The stored bytes of a pool's block of one layer: `bytes` themselves where those are stored. @throws {AssertionError} for a block that was not rounded. */
export function packBlock(shape: Shape, bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  if (!isPacked(shape)) return bytes;
  assert(bytes.byteLength === poolBlockBytes(shape), "block encoding: not a block of the pool");
  const packed = new Uint8Array(storedBlockBytes(shape));
  if (shape.encoding === "f16") {
    const values = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const halves = new DataView(packed.buffer);
    for (let at = 0; at < packed.byteLength; at += 2)
      halves.setUint16(at, toHalf(values.getUint32(2 * at, true)), true);
    return packed;
  }
  for (const part of partsOf(shape)) {
    packed.set(bytes.subarray(part.poolScalesAt, part.poolScalesAt + 4 * part.vectorCount), part.scalesAt);
    packVectors(bytes, packed, part, shape);
  }
  return packed;
}

/** What {@link packBlock} packed, which must be as long as stored blocks of this shape are. */
export function unpackBlock(shape: Shape, packed: Uint8Array): Uint8Array {
  if (!isPacked(shape)) return packed;
  assert(packed.byteLength === storedBlockBytes(shape), "block encoding: not a stored block");
  const bytes = new Uint8Array(poolBlockBytes(shape));
  if (shape.encoding === "f16") {
    const halves = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
    const values = new DataView(bytes.buffer);
    for (let at = 0; at < packed.byteLength; at += 2)
      values.setUint32(2 * at, fromHalf(halves.getUint16(at, true)), true);
    return bytes;
  }
  for (const part of partsOf(shape)) {
    bytes.set(packed.subarray(part.scalesAt, part.scalesAt + 4 * part.vectorCount), part.poolScalesAt);
    unpackVectors(packed, bytes, part, shape);
  }
  return bytes;
}

/** How a pool holds blocks that are stored in an encoding: as what, and rounded to what. */
export type PoolForm = { encoding: "f32"; rounding?: "f16" } | { encoding: "int8"; rounding?: "int4" };

const POOL_FORMS: Record<StoredEncoding, PoolForm> = {
  f32: { encoding: "f32" },
  f16: { encoding: "f32", rounding: "f16" },
  int8: { encoding: "int8" },
  int4: { encoding: "int8", rounding: "int4" },
};

/** The encodings in which a pool's blocks may be stored: its own first. */
export function storedFormsOf(encoding: PoolForm["encoding"]): readonly [StoredEncoding, StoredEncoding] {
  return encoding === "int8" ? ["int8", "int4"] : ["f32", "f16"];
}

/** See {@link PoolForm}. */
export function poolFormOf(encoding: StoredEncoding): PoolForm {
  return POOL_FORMS[encoding];
}

function poolBlockBytes(shape: Shape): number {
  return storedBlockBytes({ ...shape, encoding: poolFormOf(shape.encoding).encoding });
}

/** Keys or values of an int4 block: where their scales, grids and codes lie, in a pool's block and packed. Channels of keys, tokens of values: vectors. */
interface Part {
  isKeys: boolean;
  vectorCount: number;
  poolCodesAt: number;
  poolScalesAt: number;
  scalesAt: number;
  /** Least code of each vector, i8. */
  zerosAt: number;
  /** Step of each vector, u8. */
  stepsAt: number;
  /** 4 bits a value, tokens ascending, the lower half of a byte first. */
  codesAt: number;
}

function partsOf({ kvHeadCount, headDim }: Shape): [keys: Part, values: Part] {
  const codeCount = kvHeadCount * BLOCK_TOKENS * headDim;
  const part = (isKeys: boolean, poolAt: number, at: number): Part => {
    const vectorCount = kvHeadCount * (isKeys ? headDim : BLOCK_TOKENS);
    return {
      ...{ isKeys, vectorCount, poolCodesAt: poolAt, poolScalesAt: poolAt + codeCount },
      ...{ scalesAt: at, zerosAt: at + 4 * vectorCount, stepsAt: at + 5 * vectorCount, codesAt: at + 6 * vectorCount },
    };
  };
  const keysBytes = 6 * kvHeadCount * headDim + codeCount / 2;
  return [part(true, 0, 0), part(false, codeCount + 4 * kvHeadCount * headDim, keysBytes)];
}

function packVectors(bytes: Uint8Array, packed: Uint8Array, part: Part, { headDim }: Shape): void {
  const stride = part.isKeys ? headDim : 1;
  const count = part.isKeys ? BLOCK_TOKENS : headDim;
  const perHead = part.isKeys ? headDim : BLOCK_TOKENS;
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset + part.poolCodesAt);
  for (let vector = 0; vector < part.vectorCount; vector++) {
    const head = Math.floor(vector / perHead);
    const first = head * BLOCK_TOKENS * headDim + (vector % perHead) * (part.isKeys ? 1 : headDim);
    const { zero, step } = gridOf(codes, { first, stride, count });
    packed[part.zerosAt + vector] = zero;
    packed[part.stepsAt + vector] = step;
    for (let index = 0; index < count; index++) {
      const at = first + index * stride;
      const code = Math.ceil(((codes[at] as number) - zero) / step);
      const place = part.codesAt + (at >> 1);
      packed[place] = (packed[place] as number) | (at & 1 ? code << 4 : code);
    }
  }
}

/** The narrowest grid that has every code of a vector. The sealed block's own is one that does. */
function gridOf(
  codes: Int8Array,
  { first, stride, count }: { first: number; stride: number; count: number },
): { zero: number; step: number } {
  const end = first + stride * count;
  let zero = 127;
  let largest = -127;
  for (let at = first; at < end; at += stride) {
    const code = codes[at] as number;
    if (code < zero) zero = code;
    if (code > largest) largest = code;
  }
  for (let step = Math.max(1, Math.ceil((largest - zero) / STEPS)); step <= STEP_MAX; step++) {
    let at = first;
    // 127 is what lies beyond it, too.
    while (at < end && (codes[at] === 127 || ((codes[at] as number) - zero) % step === 0)) at += stride;
    if (at >= end) return { zero, step };
  }
  assert(false, "block encoding: a block that was not sealed for int4");
}

/** By tables of what each of a vector's 16 codes stands for: this is between a resumed turn and its first token. */
function unpackVectors(packed: Uint8Array, bytes: Uint8Array, part: Part, { headDim }: Shape): void {
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset + part.poolCodesAt);
  const values = valuesOf(packed, part);
  const rowCount = part.isKeys ? (part.vectorCount / headDim) * BLOCK_TOKENS : part.vectorCount;
  for (let row = 0; row < rowCount; row++) {
    const first = row * headDim;
    // The table of the row's first channel, and how far that of the next one is from it.
    let table = CODES * (part.isKeys ? Math.floor(row / BLOCK_TOKENS) * headDim : row);
    const next = part.isKeys ? CODES : 0;
    for (let at = first; at < first + headDim; at += 2) {
      const pair = packed[part.codesAt + (at >> 1)] as number;
      codes[at] = values[table + (pair & 15)] as number;
      codes[at + 1] = values[table + next + (pair >> 4)] as number;
      table += 2 * next;
    }
  }
}

/** `[vector][16]` */
function valuesOf(packed: Uint8Array, part: Part): Int8Array {
  const values = new Int8Array(part.vectorCount * CODES);
  for (let vector = 0; vector < part.vectorCount; vector++) {
    const zero = ((packed[part.zerosAt + vector] as number) << 24) >> 24;
    const step = packed[part.stepsAt + vector] as number;
    for (let code = 0; code < CODES; code++) values[vector * CODES + code] = Math.min(127, zero + step * code);
  }
  return values;
}

/** Bits of a binary16 value from those of the same value in f32. */
function toHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const exponent = (bits >>> 23) & 0xff;
  const mantissa = bits & 0x7fffff;
  if (exponent === 255) return sign | 0x7c00 | (mantissa === 0 ? 0 : 0x200);
  if (exponent > 112) {
    assert((mantissa & 0x1fff) === 0 && exponent < 143, "block encoding: a block that was not sealed for f16");
    return sign | ((exponent - 112) << 10) | (mantissa >> 13);
  }
  if (exponent === 0) return sign;
  // Steps of 2^-24.
  return sign | ((mantissa | 0x800000) >>> (126 - exponent));
}

function fromHalf(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >> 10) & 31;
  const mantissa = half & 0x3ff;
  if (exponent === 31) return sign | 0x7f800000 | (mantissa << 13);
  if (exponent > 0) return sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (mantissa === 0) return sign;
  const shift = Math.clz32(mantissa) - 21;
  return sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13);
}
