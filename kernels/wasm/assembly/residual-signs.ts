// Residual signs (kernels/residual-signs.ts, and `KvPool` and `PageScorer` in kernels/contract.ts): encoding of a block, queries, and scores of pages.
//
// A turned query is tables i8 [2 * tokenBytes - 1][16], an f32 scale in 16 bytes, and room to turn it in, i32 [headDim]. Table n has, of the sign bits of
// its four channels, what they make of the query's codes; a swizzle looks it up for the 16 tokens of a page at once. Exact: a table's entries are within 28, two
// rows' sums within 112, and a token's sum times its length within 444 * 7 * 15.
import { codes4Of, encode, isFinite4 } from "./summaries";
import { sumLanes4i } from "./vector";

/** Bytes of a token's signs and length. */
// @ts-ignore: decorator
@inline
export function tokenBytesOf(headDim: usize): usize {
  return (headDim * 7) >> 6;
}

/** Bytes of a turned query. */
// @ts-ignore: decorator
@inline
function turnedBytes(headDim: usize): usize {
  return (tokenBytesOf(headDim) << 5) + (headDim << 2);
}

/** Where a turned query has its scale. */
// @ts-ignore: decorator
@inline
function scaleAt(headDim: usize): usize {
  return (tokenBytesOf(headDim) << 5) - 16;
}

/** Writes the block's codes and scales. `keys` f32 [64][headDim]; `scratch` holds 2 * headDim f32 and 16 more. */
export function residualSigns(to: usize, keys: usize, headDim: usize, scratch: usize): void {
  const mean = scratch;
  const row = scratch + (headDim << 2);
  const lengths = row + (headDim << 2);
  const tokenBytes = tokenBytesOf(headDim);
  const signCount = (tokenBytes << 3) - 4;
  const lengthUnit = <f32>1 / <f32>((headDim & (0 - headDim)) * signCount);
  const scales = to + (headDim << 3);
  memory.fill(to, 0, headDim << 3);
  const meanScale = blockMean(to, mean, keys, headDim, row);
  for (let page: usize = 0; page < 4; page++) {
    const from = keys + page * headDim * 64;
    const codes = to + page * headDim * 2;
    const own = scales + (page << 3);
    let isFinite = isFinite4(from, headDim << 4);
    for (let token: usize = 0; token < 16 && isFinite; token++) {
      for (let at: usize = 0; at < headDim << 2; at += 16) {
        v128.store(row + at, f32x4.sub(v128.load(from + token * headDim * 4 + at), v128.load(mean + at)));
      }
      turnFloats(row, headDim);
      let sum: f32 = 0;
      for (let at = row; at < row + (signCount << 2); at += 4) sum += abs<f32>(load<f32>(at));
      const length = sum * lengthUnit;
      store<f32>(lengths + (token << 2), length);
      isFinite = length < Infinity;
      for (let byte: usize = 0; byte < tokenBytes; byte++) {
        const low = i32x4.bitmask(f32x4.lt(v128.load(row + (byte << 5)), f32x4.splat(0)));
        const high = byte + 1 < tokenBytes ? i32x4.bitmask(f32x4.lt(v128.load(row + (byte << 5), 16), f32x4.splat(0))) : 0;
        store<u8>(codes + (byte << 4) + token, <u8>(low | (high << 4)));
      }
    }
    if (!isFinite) {
      memory.fill(codes, 0, tokenBytes << 4);
      store<f32>(own, f32.NaN);
      store<f32>(own, f32.NaN, 4);
      continue;
    }
    store<f32>(own, meanScale);
    store<f32>(own, encodeLengths(codes + ((tokenBytes - 1) << 4), lengths), 4);
  }
}

/** The block's mean: its codes in their places, what they decode to in `mean` f32 [headDim]; returns their scale. `scratch` holds headDim bytes. */
function blockMean(to: usize, mean: usize, keys: usize, headDim: usize, scratch: usize): f32 {
  const exponent = i32x4.splat(0x7f800000);
  for (let at: usize = 0; at < headDim << 2; at += 16) {
    let sum = f32x4.splat(0);
    for (let token: usize = 0; token < 64; token++) {
      const key = v128.load(keys + at + token * headDim * 4);
      sum = f32x4.add(sum, v128.andnot(key, i32x4.eq(v128.and(key, exponent), exponent)));
    }
    v128.store(mean + at, f32x4.mul(sum, f32x4.splat(0.015625)));
  }
  const scale = encode(scratch, mean, headDim, false);
  const quarter = headDim >> 2;
  for (let page: usize = 0; page < 4; page++) {
    memory.copy(to + page * headDim * 2 + quarter * 7, scratch + page * quarter, quarter);
  }
  for (let channel: usize = 0; channel < headDim; channel += 4) {
    v128.store(mean + (channel << 2), f32x4.mul(f32x4.convert_i32x4_s(codes4Of(scratch + channel)), f32x4.splat(scale)));
  }
  return scale;
}

/** Codes of 16 lengths into the upper halves of `codes`; returns their scale. */
function encodeLengths(codes: usize, lengths: usize): f32 {
  let largest: f32 = 0;
  for (let at = lengths; at < lengths + 64; at += 4) largest = max<f32>(largest, load<f32>(at));
  const scale = largest / <f32>15;
  if (scale == 0) return scale;
  for (let token: usize = 0; token < 16; token++) {
    const code = min<f32>(15, nearest<f32>(load<f32>(lengths + (token << 2)) / scale));
    store<u8>(codes + token, load<u8>(codes + token) | <u8>(<i32>code << 4));
  }
  return scale;
}

/** `turn` of kernels/residual-signs.ts. The first two steps of a power of two are within vectors. */
function turnFloats(values: usize, headDim: usize): void {
  let distance = headDim / (headDim & (0 - headDim));
  if (distance == 1) {
    // a + b and a + (-b), which is a - b to the bit.
    const second = i32x4(0, 0x80000000, 0, 0x80000000);
    const fourth = i32x4(0, 0, 0x80000000, 0x80000000);
    for (let at = values; at < values + (headDim << 2); at += 16) {
      let v = v128.load(at);
      v = f32x4.add(v128.shuffle<f32>(v, v, 0, 0, 2, 2), v128.xor(v128.shuffle<f32>(v, v, 1, 1, 3, 3), second));
      v = f32x4.add(v128.shuffle<f32>(v, v, 0, 1, 0, 1), v128.xor(v128.shuffle<f32>(v, v, 2, 3, 2, 3), fourth));
      v128.store(at, v);
    }
    distance = 4;
  }
  for (; distance < headDim; distance <<= 1) {
    const bytes = distance << 2;
    for (let first = values; first < values + (headDim << 2); first += bytes << 1) {
      let at = first;
      for (; at + 16 <= first + bytes; at += 16) {
        const a = v128.load(at);
        const b = v128.load(at + bytes);
        v128.store(at, f32x4.add(a, b));
        v128.store(at + bytes, f32x4.sub(a, b));
      }
      for (; at < first + bytes; at += 4) {
        const a = load<f32>(at);
        const b = load<f32>(at + bytes);
        store<f32>(at, a + b);
        store<f32>(at + bytes, a - b);
      }
    }
  }
}

/** Writes vector `vector`'s turned query to its place among `turned`. `codes`: i16 [headDim]. */
export function turnQuery(turned: usize, vector: usize, codes: usize, scale: f32, headDim: usize): void {
  const to = turned + vector * turnedBytes(headDim);
  const tokenBytes = tokenBytesOf(headDim);
  const scratch = to + (tokenBytes << 5);
  for (let channel: usize = 0; channel < headDim; channel += 4) {
    v128.store(scratch + (channel << 2), v128.load16x4_s(codes + (channel << 1)));
  }
  for (let distance = headDim / (headDim & (0 - headDim)); distance < headDim; distance <<= 1) {
    for (let first: usize = 0; first < headDim; first += distance << 1) {
      for (let at = scratch + (first << 2); at < scratch + ((first + distance) << 2); at += 4) {
        const a = load<i32>(at);
        const b = load<i32>(at + (distance << 2));
        store<i32>(at, a + b);
        store<i32>(at + (distance << 2), a - b);
      }
    }
  }
  const signCount = (tokenBytes << 3) - 4;
  let most: i32 = 0;
  for (let at = scratch; at < scratch + (signCount << 2); at += 4) most = max(most, abs<i32>(load<i32>(at)));
  memory.fill(to, 0, tokenBytes << 5);
  for (let channel: usize = 0; channel < signCount && most > 0; channel++) {
    const value = load<i32>(scratch + (channel << 2));
    const size = (14 * abs<i32>(value) + most) / (2 * most);
    const code = <i8>(value < 0 ? -size : size);
    const bit = i8x16.splat(<i8>(<i32>1 << <i32>(channel & 3)));
    const isNegative = i8x16.ne(v128.and(i8x16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), bit), i8x16.splat(0));
    const table = to + ((channel >> 2) << 4);
    v128.store(table, i8x16.add(v128.load(table), v128.bitselect(i8x16.splat(-code), i8x16.splat(code), isNegative)));
  }
  store<f32>(to + scaleAt(headDim), scale * (<f32>most / <f32>7));
}

/**
 * Scores of a block's four pages. `q`: the query's codes of 16 bits, `scale` theirs; `turned`, `vector`: as {@link turnQuery} wrote it; `weights`: the
 * radius weight in every lane.
 */
export function scoreResidualSigns(
  q: usize, scale: f32, turned: usize, vector: usize, weights: v128, summary: usize, headDim: usize,
): v128 {
  const own = turned + vector * turnedBytes(headDim);
  const pageBytes = headDim << 1;
  const towards = f32x4.splat(<f32>dotMean(q, summary, headDim));
  const a = bestOf(own, summary, headDim);
  const b = bestOf(own, summary + pageBytes, headDim);
  const c = bestOf(own, summary + 2 * pageBytes, headDim);
  const d = bestOf(own, summary + 3 * pageBytes, headDim);
  const ab = i32x4.max_s(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = i32x4.max_s(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  const bests = i32x4.max_s(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
  const scales = summary + (headDim << 3);
  const firsts = v128.load(scales);
  const lasts = v128.load(scales, 16);
  const meanUnits = f32x4.mul(f32x4.splat(scale), v128.shuffle<f32>(firsts, lasts, 0, 2, 4, 6));
  const lengthScales = v128.shuffle<f32>(firsts, lasts, 1, 3, 5, 7);
  const lengthUnits = f32x4.mul(v128.load32_splat(own + scaleAt(headDim)), lengthScales);
  return f32x4.add(
    f32x4.mul(meanUnits, towards),
    f32x4.mul(f32x4.mul(lengthUnits, weights), f32x4.convert_i32x4_s(bests)),
  );
}

/** The query's codes times those of the block's mean, a quarter of which lies with every page. */
function dotMean(q: usize, summary: usize, headDim: usize): i32 {
  const quarter = headDim >> 2;
  let sums = i32x4.splat(0);
  for (let page: usize = 0; page < 4; page++) {
    const codes = summary + page * headDim * 2 + quarter * 7;
    const x = q + page * (quarter << 1);
    let i: usize = 0;
    for (; i + 8 <= quarter; i += 8) sums = i32x4.add(sums, i32x4.dot_i16x8_s(v128.load(x + (i << 1)), v128.load8x8_s(codes + i)));
    // Four more codes are loaded than there are, of the same slot; they meet zeros.
    if (i < quarter) sums = i32x4.add(sums, i32x4.dot_i16x8_s(v128.load64_zero(x + (i << 1)), v128.load8x8_s(codes + i)));
  }
  return i32x4.extract_lane(sumLanes4i(sums, sums, sums, sums), 0);
}

/** Of every fourth of a page's tokens, the largest length times sum. */
// @ts-ignore: decorator
@inline
function bestOf(tables: usize, codes: usize, headDim: usize): v128 {
  const last = tokenBytesOf(headDim) - 1;
  const lowHalf = i8x16.splat(15);
  let first = i16x8.splat(0);
  let second = i16x8.splat(0);
  let byte: usize = 0;
  for (; byte + 2 <= last; byte += 2) {
    const a = v128.load(codes + (byte << 4));
    const b = v128.load(codes + (byte << 4), 16);
    const at = tables + (byte << 5);
    const sums = i8x16.add(
      i8x16.add(i8x16.swizzle(v128.load(at), v128.and(a, lowHalf)), i8x16.swizzle(v128.load(at, 16), upperHalf(a, lowHalf))),
      i8x16.add(i8x16.swizzle(v128.load(at, 32), v128.and(b, lowHalf)), i8x16.swizzle(v128.load(at, 48), upperHalf(b, lowHalf))),
    );
    first = i16x8.add(first, i16x8.extend_low_i8x16_s(sums));
    second = i16x8.add(second, i16x8.extend_high_i8x16_s(sums));
  }
  const end = v128.load(codes + (last << 4));
  let sums = i8x16.swizzle(v128.load(tables + (last << 5)), v128.and(end, lowHalf));
  if (byte < last) {
    const a = v128.load(codes + (byte << 4));
    const at = tables + (byte << 5);
    sums = i8x16.add(sums, i8x16.add(i8x16.swizzle(v128.load(at), v128.and(a, lowHalf)), i8x16.swizzle(v128.load(at, 16), upperHalf(a, lowHalf))));
  }
  first = i16x8.add(first, i16x8.extend_low_i8x16_s(sums));
  second = i16x8.add(second, i16x8.extend_high_i8x16_s(sums));
  const lengths = upperHalf(end, lowHalf);
  const low = i16x8.extend_low_i8x16_u(lengths);
  const high = i16x8.extend_high_i8x16_u(lengths);
  const a = i32x4.max_s(i32x4.extmul_low_i16x8_s(first, low), i32x4.extmul_high_i16x8_s(first, low));
  const b = i32x4.max_s(i32x4.extmul_low_i16x8_s(second, high), i32x4.extmul_high_i16x8_s(second, high));
  return i32x4.max_s(a, b);
}

/** The upper four bits of every byte. */
// @ts-ignore: decorator
@inline
function upperHalf(v: v128, lowHalf: v128): v128 {
  return v128.and(i16x8.shr_u(v, 4), lowHalf);
}
