/** Comparisons that say where two arrays differ. */
import { expect } from "vitest";

/** Every element within `relative * scale[i] + absolute`; `scale` is by default |expected|. A NaN on one side only fails. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { relative, absolute = 0, scale }: { relative: number; absolute?: number; scale?: ArrayLike<number> },
  what = "",
): void {
  expect(actual.length, `${what}: length`).toBe(expected.length);
  for (let index = 0; index < expected.length; index++) {
    const bound = relative * Math.abs(scale?.[index] ?? expected[index]!) + absolute;
    const difference = Math.abs(actual[index]! - expected[index]!);
    if (difference <= bound || Object.is(actual[index], expected[index])) continue;
    expect.fail(
      `${what}[${index}]: ${actual[index]} instead of ${expected[index]}, off by ${difference}, allowed ${bound}`,
    );
  }
}

/** Every bit equal, NaN payloads and signs of zero too. */
export function expectSameBits(actual: ArrayBufferView, expected: ArrayBufferView, what = ""): void {
  const a = new Uint8Array(actual.buffer, actual.byteOffset, actual.byteLength);
  const b = new Uint8Array(expected.buffer, expected.byteOffset, expected.byteLength);
  expect(a.length, `${what}: bytes`).toBe(b.length);
  for (let index = 0; index < a.length; index++) {
    if (a[index] !== b[index]) expect.fail(`${what}: byte ${index} is ${a[index]} instead of ${b[index]}`);
  }
}

/** Whether every byte is equal. */
export function isSameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

/** No element is NaN or infinite: every one of a poisoned buffer was written. */
export function expectFinite(values: ArrayLike<number>, what = ""): void {
  for (let index = 0; index < values.length; index++) {
    if (!Number.isFinite(values[index])) expect.fail(`${what}[${index}] is ${values[index]}`);
  }
}

/** The largest |value|, or 1 where all are 0. */
export function magnitude(values: ArrayLike<number>): number {
  let max = 0;
  for (let index = 0; index < values.length; index++) max = Math.max(max, Math.abs(values[index]!));
  return max === 0 ? 1 : max;
}
