/** Weights in f16: every pattern, and everything between two of them. */
import { expect, it } from "vitest";
import { f16Bits, roundToF16 } from "../../kernels/reference/quantize-rows.ts";

/** The value of a pattern, by its definition. */
function f16Value(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const magnitude = exponent === 0 ? (bits & 1023) * 2 ** -24 : (1024 + (bits & 1023)) * 2 ** (exponent - 25);
  return bits < 0x8000 ? magnitude : -magnitude;
}

const POSITIVE = Array.from({ length: 0x7c00 }, (_, bits) => bits);

it("every finite f16 is left as it is, and has its own bits", () => {
  const patterns = [...POSITIVE, ...POSITIVE.map((bits) => bits | 0x8000)];
  const values = Float32Array.from(patterns, f16Value);
  expect(roundToF16(values)).toEqual(values);
  expect([...f16Bits(values)]).toEqual(patterns);
});

it("what lies between two goes to the nearer, from the middle to the even one", () => {
  for (const part of [0.25, 0.5, 0.75]) {
    const between = POSITIVE.slice(0, -1).map((bits) => f16Value(bits) + part * (f16Value(bits + 1) - f16Value(bits)));
    const expected = POSITIVE.slice(0, -1).map((bits) =>
      part < 0.5 || (part === 0.5 && bits % 2 === 0) ? bits : bits + 1,
    );
    expect([...f16Bits(roundToF16(Float32Array.from(between)))]).toEqual(expected);
    expect([...f16Bits(roundToF16(Float32Array.from(between, (value) => -value)))]).toEqual(
      expected.map((bits) => bits | 0x8000),
    );
  }
});

it("what is too large stays finite; infinities and NaN stay what they are", () => {
  const values = Float32Array.of(65_519, 65_520, -1e30, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN);
  const rounded = roundToF16(values);
  expect([...rounded]).toEqual([
    65_504,
    65_504,
    -65_504,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    Number.NaN,
  ]);
  expect([...f16Bits(rounded)]).toEqual([0x7bff, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00]);
});
