// Residual signs (kernels/residual-signs.ts, and `KvPool` in kernels/contract.ts): the encoding of a block.
import { codes4Of, encode, isFinite4 } from "./summaries";

/** Bytes of a token's signs and length. */
// @ts-ignore: decorator
@inline
export function tokenBytesOf(headDim: usize): usize {
  return (headDim * 7) >> 6;
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
  turnFrom<f32>(values, headDim, distance);
}

/** The steps of a turn from `distance` on, of f32 or i32. */
// @ts-ignore: decorator
@inline
export function turnFrom<T>(values: usize, headDim: usize, distance: usize): void {
  for (; distance < headDim; distance <<= 1) {
    const bytes = distance << 2;
    for (let first = values; first < values + (headDim << 2); first += bytes << 1) {
      let at = first;
      for (; at + 16 <= first + bytes; at += 16) {
        const a = v128.load(at);
        const b = v128.load(at + bytes);
        v128.store(at, v128.add<T>(a, b));
        v128.store(at + bytes, v128.sub<T>(a, b));
      }
      for (; at < first + bytes; at += 4) {
        const a = load<T>(at);
        const b = load<T>(at + bytes);
        store<T>(at, a + b);
        store<T>(at + bytes, a - b);
      }
    }
  }
}
