/** What a store key may look like (see `contract.ts`), checked by every driver before it touches anything. */
import { assert } from "../protocol/assert.ts";

const KEY_BYTES_MAX = 512;
const PART_CHARACTERS_MAX = 200;
const PART_PATTERN = /^[A-Za-z0-9._-]+$/;
const PREFIX_PATTERN = /^[A-Za-z0-9._/-]*$/;

/** True for a key that every driver takes. */
export function isStoreKey(value: unknown): value is string {
  if (typeof value !== "string" || value.length > KEY_BYTES_MAX) return false;
  return value.split("/").every(isKeyPart);
}

/** True for one part of a key, between slashes. */
export function isKeyPart(part: string): boolean {
  return part.length <= PART_CHARACTERS_MAX && PART_PATTERN.test(part) && part !== "." && part !== "..";
}

/** @throws {AssertionError} for a key outside of the contract. */
export function assertKey(key: string): void {
  assert(isStoreKey(key), `store key outside of the contract: ${JSON.stringify(key).slice(0, 100)}`);
}

/** A prefix is any beginning of a key, the empty one included. @throws {AssertionError} for others. */
export function assertPrefix(prefix: string): void {
  const possible = prefix.length <= KEY_BYTES_MAX && PREFIX_PATTERN.test(prefix);
  assert(possible, `store prefix outside of the contract: ${JSON.stringify(prefix).slice(0, 100)}`);
}

/** @throws {AssertionError} for a range that no object could satisfy. */
export function assertRange(range: { offset: number; bytes: number } | undefined): void {
  if (range === undefined) return;
  assert(Number.isSafeInteger(range.offset) && range.offset >= 0, "store range: impossible offset");
  assert(Number.isSafeInteger(range.bytes) && range.bytes >= 1, "store range: must hold at least one byte");
}
