/** Small helpers over byte arrays that every format shares. Everything stored is little-endian. */
import { assert } from "../protocol/assert.ts";

const CHAIN_PATTERN = /^[0-9a-f]{64}$/;

/** Bytes of a chain value (SHA-256). */
export const CHAIN_BYTES = 32;

/** True for 64 lower-case hex digits: how a chain value is written everywhere outside of binary formats. */
export function isChainHex(value: unknown): value is string {
  return typeof value === "string" && CHAIN_PATTERN.test(value);
}

/** @throws {AssertionError} when `chain` is not 64 lower-case hex digits. */
export function chainToBytes(chain: string): Uint8Array {
  assert(isChainHex(chain), "chain: not 64 lower-case hex digits");
  return Buffer.from(chain, "hex");
}

/** Lower-case hex. */
export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

/** A view for reading numbers at any alignment. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** True when both hold the same bytes. */
export function bytesEqual(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Copies into an array of its own, so that the result neither aliases nor keeps `bytes`. */
export function ownBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(bytes.byteLength);
  copy.set(bytes);
  return copy;
}

/**
 * Gives memory back at once that nobody reads any more; afterwards `bytes` is empty. Left to the collector, all of an engine's heap is
 * marked for every 64 MiB of it or less, and the next bytes come in pages that the kernel has to clear. Bytes that share their memory stay
 * as they are.
 */
export function giveBack(bytes: Uint8Array<ArrayBuffer>): void {
  const { buffer } = bytes;
  if (bytes.byteLength > 0 && bytes.byteLength === buffer.byteLength) buffer.transfer(0);
}

/** Reads `count` u32 values; the bytes need no alignment. */
export function readU32s(bytes: Uint8Array, offset: number, count: number): Uint32Array<ArrayBuffer> {
  const values = new Uint32Array(count);
  const view = viewOf(bytes);
  for (let i = 0; i < count; i++) values[i] = view.getUint32(offset + 4 * i, true);
  return values;
}

/** Writes u32 values; the bytes need no alignment. */
export function writeU32s(bytes: Uint8Array, offset: number, values: Uint32Array): void {
  const view = viewOf(bytes);
  for (const [i, value] of values.entries()) view.setUint32(offset + 4 * i, value, true);
}
