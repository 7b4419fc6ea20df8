// Summaries of a page: centre and radius in f32, then 8 bits each (see `KvPool` in kernels/contract.ts, and kernels/summary-codec.ts).
import { codes4 } from "./matmul-int8";
import { maxLanes } from "./vector";

/** Bytes of the summaries of one KV head of one block. */
// @ts-ignore: decorator
@inline
export function summaryHeadBytes(headDim: usize): usize {
  return (headDim << 3) + 32;
}

/**
 * Writes the summaries of the four pages of a block in one KV head. `keys` f32 [64][headDim]; `scratch` holds 2 * headDim f32;
 * kind 0: min-max, 1: mean-deviation.
 */
export function summarizeBlock(to: usize, keys: usize, headDim: usize, kind: i32, scratch: usize): void {
  const radius = scratch + (headDim << 2);
  for (let page: usize = 0; page < 4; page++) {
    const from = keys + page * headDim * 64;
    const codes = to + page * headDim * 2;
    const scales = to + (headDim << 3) + (page << 3);
    if (kind == 0) minMax(scratch, radius, from, headDim);
    else meanDeviation(scratch, radius, from, headDim);
    const scale = encode(codes, scratch, headDim, false);
    store<f32>(scales, scale);
    if (kind == 0) widen(radius, scratch, codes, scale, headDim);
    store<f32>(scales, encode(codes + headDim, radius, headDim, kind == 0), 4);
  }
}

/** Codes to nearest (halves to even) or upwards, 0 where the scale is 0 or the quotient is not a number; returns the scale. */
function encode(codes: usize, values: usize, headDim: usize, upwards: bool): f32 {
  let largest = f32x4.splat(0);
  for (let at: usize = 0; at < headDim << 2; at += 16) largest = f32x4.max(largest, f32x4.abs(v128.load(values + at)));
  const scale = maxLanes(largest) / <f32>127;
  const scales = f32x4.splat(scale);
  const zero = f32x4.eq(scales, f32x4.splat(0));
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    const x = v128.load(values + at);
    const wide = upwards
      ? i32x4.min_s(i32x4.trunc_sat_f32x4_s(f32x4.ceil(f32x4.div(x, scales))), i32x4.splat(127))
      : codes4(x, scales);
    const kept = v128.andnot(wide, zero);
    const narrow = i16x8.narrow_i32x4_s(kept, kept);
    v128.store32_lane(codes + (at >> 2), i8x16.narrow_i16x8_s(narrow, narrow), 0);
  }
  return scale;
}

/** Adds to each radius what its centre lost to rounding. */
function widen(radius: usize, centre: usize, codes: usize, scale: f32, headDim: usize): void {
  const scales = f32x4.splat(scale);
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    const code = i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(codes + (at >> 2))));
    const lost = f32x4.sub(v128.load(centre + at), f32x4.mul(f32x4.convert_i32x4_s(code), scales));
    v128.store(radius + at, f32x4.add(v128.load(radius + at), f32x4.abs(lost)));
  }
}

/** centre = (max + min) / 2, radius = (max - min) / 2 over 16 tokens. */
function minMax(centre: usize, radius: usize, keys: usize, headDim: usize): void {
  const half = f32x4.splat(0.5);
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    let low = v128.load(keys + at);
    let high = low;
    for (let token: usize = 1; token < 16; token++) {
      const key = v128.load(keys + at + token * headDim * 4);
      low = f32x4.min(low, key);
      high = f32x4.max(high, key);
    }
    v128.store(centre + at, f32x4.mul(f32x4.add(high, low), half));
    v128.store(radius + at, f32x4.mul(f32x4.sub(high, low), half));
  }
}

/** centre = mean, radius = population standard deviation over 16 tokens, two passes, tokens ascending. */
function meanDeviation(centre: usize, radius: usize, keys: usize, headDim: usize): void {
  const sixteenth = f32x4.splat(0.0625);
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    let sum = f32x4.splat(0);
    for (let token: usize = 0; token < 16; token++) sum = f32x4.add(sum, v128.load(keys + at + token * headDim * 4));
    const mean = f32x4.mul(sum, sixteenth);
    let squares = f32x4.splat(0);
    for (let token: usize = 0; token < 16; token++) {
      const difference = f32x4.sub(v128.load(keys + at + token * headDim * 4), mean);
      squares = f32x4.add(squares, f32x4.mul(difference, difference));
    }
    v128.store(centre + at, mean);
    v128.store(radius + at, f32x4.sqrt(f32x4.mul(squares, sixteenth)));
  }
}
