// Small vector helpers. All are plain (not relaxed) SIMD: the same bits on every host.
import { EXP_TABLE } from "./control";

/** Sum of four lanes, in a fixed order. */
// @ts-ignore: decorator
@inline
export function sumLanes(v: v128): f32 {
  const pairs = f32x4.add(v, v128.shuffle<f32>(v, v, 2, 3, 0, 1));
  return f32x4.extract_lane(pairs, 0) + f32x4.extract_lane(pairs, 1);
}

/** Largest of four lanes. */
// @ts-ignore: decorator
@inline
export function maxLanes(v: v128): f32 {
  const pairs = f32x4.max(v, v128.shuffle<f32>(v, v, 2, 3, 0, 1));
  return max<f32>(f32x4.extract_lane(pairs, 0), f32x4.extract_lane(pairs, 1));
}

/**
 * The larger of each lane of two vectors of magnitudes (no sign bits); a NaN is larger than everything. One instruction, where f32x4.max
 * takes several.
 */
// @ts-ignore: decorator
@inline
export function larger4(a: v128, b: v128): v128 {
  return i32x4.max_s(a, b);
}

/** Lane i of the result is the sum of the lanes of the i-th argument, each in the order of {@link sumLanes}. */
// @ts-ignore: decorator
@inline
export function sumLanes4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

/** As {@link sumLanes4}, for integers. */
// @ts-ignore: decorator
@inline
export function sumLanes4i(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = i32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = i32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return i32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/**
 * Writes the constants of the exponential, the least and the largest code of 8 bits, and the lower halves of bytes, to where they are read. A
 * vector constant in the code costs the host's compiler several instructions at every use, a load that fills all lanes is one.
 */
export function writeExpTable(): void {
  store<f32>(EXP_TABLE, -87.0);
  store<f32>(EXP_TABLE, 88.0, 4);
  store<f32>(EXP_TABLE, 1.44269504088896341, 8);
  store<f32>(EXP_TABLE, 12582912.0, 12);
  store<f32>(EXP_TABLE, 0.693359375, 16);
  store<f32>(EXP_TABLE, -2.12194440e-4, 20);
  store<f32>(EXP_TABLE, 1.9875691500e-4, 24);
  store<f32>(EXP_TABLE, 1.3981999507e-3, 28);
  store<f32>(EXP_TABLE, 8.3334519073e-3, 32);
  store<f32>(EXP_TABLE, 4.1665795894e-2, 36);
  store<f32>(EXP_TABLE, 1.6666665459e-1, 40);
  store<f32>(EXP_TABLE, 5.0000001201e-1, 44);
  store<f32>(EXP_TABLE, 1.0, 48);
  store<i32>(EXP_TABLE, -127, 52);
  store<i32>(EXP_TABLE, 127, 56);
  store<i32>(EXP_TABLE, 0x0f0f0f0f, 60);
}

/** 1 in every lane, after {@link writeExpTable}. */
// @ts-ignore: decorator
@inline
export function one4(): v128 {
  return expConstant(12);
}

/** The least code of 8 bits, as integers of 32 bits. */
// @ts-ignore: decorator
@inline
export function codeLeast8(): v128 {
  return expConstant(13);
}
/** The largest. */
// @ts-ignore: decorator
@inline
export function codeMost8(): v128 {
  return expConstant(14);
}

/** The lower four bits of every byte. */
// @ts-ignore: decorator
@inline
export function byteHalves(): v128 {
  return expConstant(15);
}

// @ts-ignore: decorator
@inline
function expConstant(index: usize): v128 {
  return v128.load32_splat(EXP_TABLE + (index << 2));
}

/**
 * e^x per lane, relative error below 2e-7 (Cephes polynomial of degree 5). 0 below -87, e^88 above 88, NaN stays NaN, e^0 is exactly 1.
 */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const least = expConstant(0);
  const underflow = f32x4.lt(x, least);
  // pmin and pmax are one instruction each, min and max are several; a NaN in the first operand stays.
  const clamped = f32x4.pmin(f32x4.pmax(x, least), expConstant(1));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits, ready to become an exponent.
  const rounder = expConstant(3);
  const shifted = f32x4.add(f32x4.mul(clamped, expConstant(2)), rounder);
  const n = f32x4.sub(shifted, rounder);
  // ln 2 in two parts, so that the reduced argument is exact to the last bit.
  let r = f32x4.sub(clamped, f32x4.mul(n, expConstant(4)));
  r = f32x4.sub(r, f32x4.mul(n, expConstant(5)));
  let y = f32x4.add(f32x4.mul(expConstant(6), r), expConstant(7));
  y = f32x4.add(f32x4.mul(y, r), expConstant(8));
  y = f32x4.add(f32x4.mul(y, r), expConstant(9));
  y = f32x4.add(f32x4.mul(y, r), expConstant(10));
  y = f32x4.add(f32x4.mul(y, r), expConstant(11));
  const one = one4();
  y = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(y, r), r), r), one);
  const power = i32x4.add(i32x4.shl(shifted, 23), one);
  return v128.andnot(f32x4.mul(y, power), underflow);
}

/** e^x of one number, the same bits as a lane of {@link exp4}. */
// @ts-ignore: decorator
@inline
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

/** Nearest integers, ties to even, of numbers below 2^22; a NaN becomes some integer. */
// @ts-ignore: decorator
@inline
export function nearestInt4(x: v128): v128 {
  // 1.5 * 2^23 as a number, and its bits as an integer.
  const rounder = expConstant(3);
  return i32x4.sub(f32x4.add(x, rounder), rounder);
}

/**
 * Replaces 16 numbers by e^(x - shift), with the bits of {@link exp4}, and adds these to `sums` vector by vector. No number is above `shift`, but for a NaN in
 * place of either. Four vectors side by side, because one alone is a chain of operations that wait for each other; loops over the constants, because
 * without them the compiler puts the four one behind the other again.
 */
export function weigh16(at: usize, shift: v128, sums: v128): v128 {
  const least = expConstant(0);
  let a = f32x4.pmax(f32x4.sub(v128.load(at), shift), least);
  let b = f32x4.pmax(f32x4.sub(v128.load(at, 16), shift), least);
  let c = f32x4.pmax(f32x4.sub(v128.load(at, 32), shift), least);
  let d = f32x4.pmax(f32x4.sub(v128.load(at, 48), shift), least);
  const rounder = expConstant(3);
  const inverse = expConstant(2);
  const powerA = f32x4.add(f32x4.mul(a, inverse), rounder);
  const powerB = f32x4.add(f32x4.mul(b, inverse), rounder);
  const powerC = f32x4.add(f32x4.mul(c, inverse), rounder);
  const powerD = f32x4.add(f32x4.mul(d, inverse), rounder);
  for (let part: usize = 16; part < 24; part += 4) {
    const ln2 = v128.load32_splat(EXP_TABLE + part);
    a = f32x4.sub(a, f32x4.mul(f32x4.sub(powerA, rounder), ln2));
    b = f32x4.sub(b, f32x4.mul(f32x4.sub(powerB, rounder), ln2));
    c = f32x4.sub(c, f32x4.mul(f32x4.sub(powerC, rounder), ln2));
    d = f32x4.sub(d, f32x4.mul(f32x4.sub(powerD, rounder), ln2));
  }
  let yA = expConstant(6), yB = yA, yC = yA, yD = yA;
  for (let coefficient: usize = 28; coefficient < 48; coefficient += 4) {
    const next = v128.load32_splat(EXP_TABLE + coefficient);
    yA = f32x4.add(f32x4.mul(yA, a), next);
    yB = f32x4.add(f32x4.mul(yB, b), next);
    yC = f32x4.add(f32x4.mul(yC, c), next);
    yD = f32x4.add(f32x4.mul(yD, d), next);
  }
  sums = f32x4.add(sums, weigh4(at, shift, a, yA, powerA));
  sums = f32x4.add(sums, weigh4(at + 16, shift, b, yB, powerB));
  sums = f32x4.add(sums, weigh4(at + 32, shift, c, yC, powerC));
  return f32x4.add(sums, weigh4(at + 48, shift, d, yD, powerD));
}

/** The end of {@link exp4}: from the reduced argument, the polynomial, and what has the exponent in its low bits. */
// @ts-ignore: decorator
@inline
function weigh4(at: usize, shift: v128, r: v128, y: v128, shifted: v128): v128 {
  const one = one4();
  const power = i32x4.add(i32x4.shl(shifted, 23), one);
  const whole = f32x4.mul(f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(y, r), r), r), one), power);
  const weight = v128.andnot(whole, f32x4.lt(f32x4.sub(v128.load(at), shift), expConstant(0)));
  v128.store(at, weight);
  return weight;
}

/** Stores the first `count` (1..8) of eight f32. */
export function storeUpTo8(to: usize, low: v128, high: v128, count: i32): void {
  if (count >= 8) {
    v128.store(to, low);
    v128.store(to, high, 16);
    return;
  }
  let rest = low;
  let left = count;
  let at = to;
  if (left >= 4) {
    v128.store(at, low);
    rest = high;
    left -= 4;
    at += 16;
  }
  if (left > 0) store<f32>(at, f32x4.extract_lane(rest, 0));
  if (left > 1) store<f32>(at, f32x4.extract_lane(rest, 1), 4);
  if (left > 2) store<f32>(at, f32x4.extract_lane(rest, 2), 8);
}
