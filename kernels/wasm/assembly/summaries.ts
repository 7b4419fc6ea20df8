// Summaries of a page: two vectors in f32, then 8 bits each; or signs (residual-signs.ts has those of residuals; see `KvPool` in kernels/contract.ts, and kernels/summary-codec.ts).
import { codes4 } from "./matmul-int8";
import { residualSigns } from "./residual-signs";
import { maxLanes, sumLanes4i } from "./vector";

/** Bytes of the summaries of one KV head of one block. */
// @ts-ignore: decorator
@inline
export function summaryHeadBytes(headDim: usize): usize {
  return (headDim << 3) + 32;
}

/**
 * Writes the summaries of the four pages of a block in one KV head. `keys` f32 [64][headDim]; `scratch` holds 5 * headDim f32;
 * `kind`: index in SUMMARY_KINDS of kernels/contract.ts.
 */
export function summarizeBlock(to: usize, keys: usize, headDim: usize, kind: i32, scratch: usize): void {
  if (kind == 5) {
    residualSigns(to, keys, headDim, scratch);
    return;
  }
  const radius = scratch + (headDim << 2);
  for (let page: usize = 0; page < 4; page++) {
    const from = keys + page * headDim * 64;
    const codes = to + page * headDim * 2;
    const scales = to + (headDim << 3) + (page << 3);
    if (kind >= 3) {
      if (!isFinite4(from, headDim << 4)) {
        memory.fill(codes, 0, headDim << 1);
        store<f32>(scales, f32.NaN);
        store<f32>(scales, f32.NaN, 4);
      } else if (kind == 3) representatives(codes, scales, from, headDim, scratch);
      else signBits(codes, scales, from, headDim);
      continue;
    }
    if (kind == 0) minMax(scratch, radius, from, headDim);
    else if (kind == 1) meanDeviation(scratch, radius, from, headDim);
    else centreDeviation(scratch, radius, from, headDim);
    const scale = encode(codes, scratch, headDim, false);
    store<f32>(scales, scale);
    if (kind == 0) widen(radius, scratch, codes, scale, headDim);
    store<f32>(scales, encode(codes + headDim, radius, headDim, kind == 0), 4);
  }
}

/** Bytes of a block's own centre in one KV head. */
// @ts-ignore: decorator
@inline
export function blockCentreBytes(headDim: usize): usize {
  return headDim + 4;
}

/** A block's own centre, encoded, from the summaries of its pages (`blockCentre` in kernels/summary-codec.ts). `scratch` holds headDim f32. */
export function writeBlockCentre(to: usize, summary: usize, headDim: usize, scratch: usize): void {
  const scales = summary + (headDim << 3);
  for (let channel: usize = 0; channel < headDim; channel += 4) {
    let sum = f32x4.splat(0);
    for (let page: usize = 0; page < 4; page++) {
      const codes = f32x4.convert_i32x4_s(codes4Of(summary + page * headDim * 2 + channel));
      sum = f32x4.add(sum, f32x4.mul(codes, v128.load32_splat(scales + (page << 3))));
    }
    v128.store(scratch + (channel << 2), f32x4.mul(sum, f32x4.splat(0.25)));
  }
  store<f32>(to + headDim, encode(to, scratch, headDim, false));
}

/** Codes to nearest (halves to even) or upwards, 0 where the scale is 0 or the quotient is not a number; returns the scale. */
export function encode(codes: usize, values: usize, headDim: usize, upwards: bool): f32 {
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
    const code = codes4Of(codes + (at >> 2));
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

/** centre = (max + min) / 2, radius = mean of |key - centre| over 16 tokens, tokens ascending. */
function centreDeviation(centre: usize, radius: usize, keys: usize, headDim: usize): void {
  minMax(centre, radius, keys, headDim);
  const sixteenth = f32x4.splat(0.0625);
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    const middle = v128.load(centre + at);
    let distances = f32x4.splat(0);
    for (let token: usize = 0; token < 16; token++) {
      distances = f32x4.add(distances, f32x4.abs(f32x4.sub(v128.load(keys + at + token * headDim * 4), middle)));
    }
    v128.store(radius + at, f32x4.mul(distances, sixteenth));
  }
}

/** True when all of `count` (a multiple of 4) f32 are finite. */
export function isFinite4(values: usize, count: usize): bool {
  let broken = i32x4.splat(0);
  const exponent = i32x4.splat(0x7f800000);
  for (let at: usize = 0; at < count << 2; at += 16) {
    broken = v128.or(broken, i32x4.eq(v128.and(v128.load(values + at), exponent), exponent));
  }
  return !v128.any_true(broken);
}

/**
 * The two keys of a page that are most like all of it, encoded. `scratch`: codes i8 [16][headDim], sums of codes i32 [headDim]. Sums and weights are
 * exact: at most 16 * 127 and 127 * 16 * 127 * 512.
 */
function representatives(codes: usize, scales: usize, keys: usize, headDim: usize, scratch: usize): void {
  const sums = scratch + (headDim << 4);
  encode(scratch, keys, headDim << 4, false);
  memory.fill(sums, 0, headDim << 2);
  for (let token: usize = 0; token < 16; token++) {
    for (let channel: usize = 0; channel < headDim; channel += 4) {
      const to = sums + (channel << 2);
      v128.store(to, i32x4.add(v128.load(to), codes4Of(scratch + token * headDim + channel)));
    }
  }
  let first: usize = 0;
  let second: usize = 0;
  let most: i32 = i32.MIN_VALUE;
  let next: i32 = i32.MIN_VALUE;
  for (let token: usize = 0; token < 16; token++) {
    let weights = i32x4.splat(0);
    for (let channel: usize = 0; channel < headDim; channel += 4) {
      const code = codes4Of(scratch + token * headDim + channel);
      weights = i32x4.add(weights, i32x4.mul(code, v128.load(sums + (channel << 2))));
    }
    const weight = sumLanes4i(weights, weights, weights, weights);
    const value = i32x4.extract_lane(weight, 0);
    if (value > most) {
      second = first;
      next = most;
      first = token;
      most = value;
    } else if (value > next) {
      second = token;
      next = value;
    }
  }
  store<f32>(scales, encode(codes, keys + first * headDim * 4, headDim, false));
  store<f32>(scales, encode(codes + headDim, keys + second * headDim * 4, headDim, false), 4);
}

/** Four codes in 32 bits each. */
// @ts-ignore: decorator
@inline
export function codes4Of(codes: usize): v128 {
  return i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(codes)));
}

/** [headDim / 8][16 tokens] bytes of sign bits, and the scales 1 and 0. */
function signBits(codes: usize, scales: usize, keys: usize, headDim: usize): void {
  for (let chunk: usize = 0; chunk < headDim >> 3; chunk++) {
    for (let token: usize = 0; token < 16; token++) {
      const key = keys + (token * headDim + (chunk << 3)) * 4;
      const low = i32x4.bitmask(v128.load(key));
      const high = i32x4.bitmask(v128.load(key, 16));
      store<u8>(codes + (chunk << 4) + token, <u8>(low | (high << 4)));
    }
  }
  store<f32>(scales, 1);
  store<f32>(scales, 0, 4);
}
