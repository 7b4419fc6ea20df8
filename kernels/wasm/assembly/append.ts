// RoPE on the way into the open slots, and the sealing of full blocks.
import { arg, argAt, partStart, scratchOf } from "./control";
import { decodeKeys } from "./kv-decode";
import { codes4 } from "./matmul-int8";
import { blockCentreBytes, summarizeBlock, summaryHeadBytes, writeBlockCentre } from "./summaries";
import { larger4 } from "./vector";

/**
 * Rotates q in place and k into the open slot of its row, copies v there. args: q, k, v, cos, sin, rows {position, slot}, rowCount,
 * headCount, kvHeadCount, headDim, open slots, slot bytes, offset of the layer's keys in a slot, the same for values, parts
 */
export function ropeTask(task: i32): void {
  const headCount = arg(7);
  const kvHeadCount = arg(8);
  const headBytes = (<usize>arg(9)) << 2;
  const end = partStart(arg(6), task + 1, arg(14));
  for (let row = partStart(arg(6), task, arg(14)); row < end; row++) {
    const position = load<u32>(argAt(5) + ((<usize>row) << 3));
    const slot = load<u32>(argAt(5) + ((<usize>row) << 3), 4);
    const cos = argAt(3) + <usize>position * (headBytes >> 1);
    const sin = argAt(4) + <usize>position * (headBytes >> 1);
    for (let head = 0; head < headCount; head++) {
      const q = argAt(0) + <usize>(row * headCount + head) * headBytes;
      rotate(q, q, cos, sin, headBytes >> 1);
    }
    const open = argAt(10) + <usize>slot * argAt(11) + <usize>(position & 63) * headBytes;
    for (let head = 0; head < kvHeadCount; head++) {
      const from = <usize>(row * kvHeadCount + head) * headBytes;
      const to = open + <usize>head * 64 * headBytes;
      rotate(to + argAt(12), argAt(1) + from, cos, sin, headBytes >> 1);
      memory.copy(to + argAt(13), argAt(2) + from, headBytes);
    }
  }
}

/** out[i] = x[i] cos[i] - x[i+h] sin[i]; out[i+h] = x[i+h] cos[i] + x[i] sin[i]. */
function rotate(out: usize, x: usize, cos: usize, sin: usize, halfBytes: usize): void {
  let at: usize = 0;
  for (; at + 16 <= halfBytes; at += 16) {
    const a = v128.load(x + at);
    const b = v128.load(x + at + halfBytes);
    const c = v128.load(cos + at);
    const s = v128.load(sin + at);
    v128.store(out + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)));
    v128.store(out + at + halfBytes, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)));
  }
  for (; at < halfBytes; at += 4) {
    const a = load<f32>(x + at);
    const b = load<f32>(x + at + halfBytes);
    const c = load<f32>(cos + at);
    const s = load<f32>(sin + at);
    store<f32>(out + at, a * c - b * s);
    store<f32>(out + at + halfBytes, b * c + a * s);
  }
}

/**
 * Encodes one KV head of one full block and writes its summaries. Task = block * kvHeadCount + kvHead.
 * args: blocks {open keys, open values, device block (addresses of the layer, head 0), summary slot (-1: none)}, kvHeadCount, headDim,
 * int8?, rounded?, offsets in a block: key scales, values, value scales; bytes from one KV head's summaries to the next one's, kind count, the same
 * bytes for centres of blocks, then of every kind its index in SUMMARY_KINDS of kernels/contract.ts, its summaries, and its centres of blocks (of
 * the layer, head 0, slot 0; 0: none)
 */
export function sealTask(task: i32, thread: i32): void {
  const kvHeadCount = arg(1);
  const record = argAt(0) + <usize>(task / kvHeadCount) * 16;
  const head = <usize>(task % kvHeadCount);
  const headDim = <usize>arg(2);
  const isRounded = arg(4) != 0;
  let keys = <usize>load<u32>(record) + head * headDim * 256;
  const values = <usize>load<u32>(record, 4) + head * headDim * 256;
  const block = <usize>load<u32>(record, 8);
  if (arg(3) == 0) {
    const sealedKeys = block + head * headDim * 256;
    const sealedValues = sealedKeys + argAt(6);
    memory.copy(sealedKeys, keys, headDim * 256);
    memory.copy(sealedValues, values, headDim * 256);
    if (isRounded) {
      roundToHalves(sealedKeys, headDim * 64);
      roundToHalves(sealedValues, headDim * 64);
      keys = sealedKeys;
    }
  } else {
    const codes = block + head * headDim * 64;
    const scales = block + argAt(5) + head * headDim * 4;
    for (let channel: usize = 0; channel < headDim; channel += 4) encodeKeys4(codes + channel, scales + channel * 4, keys + channel * 4, headDim);
    const valueCodes = block + argAt(6) + head * 64 * headDim;
    for (let token: usize = 0; token < 64; token++) {
      encodeValue(valueCodes + token * headDim, block + argAt(7) + (head * 64 + token) * 4, values + token * headDim * 4, headDim);
    }
    if (isRounded) {
      for (let channel: usize = 0; channel < headDim; channel++) roundCodes(codes + channel, headDim, 64);
      for (let token: usize = 0; token < 64; token++) roundCodes(valueCodes + token * headDim, 1, headDim);
    }
    keys = scratchOf(thread);
    decodeKeys(keys, codes, scales, headDim, 0, 64);
  }
  const slot = load<i32>(record, 12);
  if (slot < 0) return;
  const scratch = scratchOf(thread) + headDim * 256;
  for (let index = 0; index < arg(9); index++) {
    const to = argAt(12 + 3 * index) + head * argAt(8) + <usize>slot * summaryHeadBytes(headDim);
    summarizeBlock(to, keys, headDim, arg(11 + 3 * index), scratch);
    const centres = argAt(13 + 3 * index);
    if (centres != 0) writeBlockCentre(centres + head * argAt(10) + <usize>slot * blockCentreBytes(headDim), to, headDim, scratch);
  }
}

/** Rounding int4 of `KvPool`: codes under one scale, `count` of them `stride` bytes apart, to 16 steps of their own range. */
function roundCodes(codes: usize, stride: usize, count: usize): void {
  let least: i32 = 127;
  let largest: i32 = -127;
  const end = codes + stride * count;
  for (let at = codes; at < end; at += stride) {
    const code = <i32>load<i8>(at);
    least = min(least, code);
    largest = max(largest, code);
  }
  const step = max(1, (largest - least + 14) / 15);
  for (let at = codes; at < end; at += stride) {
    const steps = (2 * (<i32>load<i8>(at) - least) + step) / (2 * step);
    store<i8>(at, <i8>min(127, least + step * steps));
  }
}

/** Rounding f16 of `KvPool`, in place. */
function roundToHalves(values: usize, count: usize): void {
  const end = values + (count << 2);
  for (let at = values; at < end; at += 4) {
    const value = load<f32>(at);
    const magnitude = abs<f32>(value);
    if (!(magnitude < <f32>Infinity)) continue;
    store<f32>(at, copysign<f32>(min<f32>(65504, nearestHalf(magnitude)), value));
  }
}

function nearestHalf(magnitude: f32): f32 {
  // Below 2^-14 the steps are 2^-24 wide; above, ten bits of the mantissa stay.
  if (magnitude < <f32>0.00006103515625) return nearest<f32>(magnitude * 16777216) * <f32>5.9604644775390625e-8;
  const bits = reinterpret<u32>(magnitude);
  return reinterpret<f32>((bits + 0xfff + ((bits >> 13) & 1)) & ~(<u32>0x1fff));
}

/**
 * Centres of a block whose summaries were written. Task = KV head, of all layers.
 * args: summaries of the slot (layer 0, head 0), bytes from one KV head's to the next one's; the same two of what is made; headDim
 */
export function blockCentresTask(task: i32, thread: i32): void {
  const head = <usize>task;
  writeBlockCentre(argAt(2) + head * argAt(3), argAt(0) + head * argAt(1), argAt(4), scratchOf(thread));
}

/** Four channels of the keys: one scale per channel over 64 tokens. */
function encodeKeys4(codes: usize, scales: usize, keys: usize, headDim: usize): void {
  let largest = f32x4.splat(0);
  for (let token: usize = 0; token < 64; token++) {
    largest = larger4(largest, f32x4.abs(v128.load(keys + token * headDim * 4)));
  }
  const scale = scaleOf(largest);
  v128.store(scales, scale);
  for (let token: usize = 0; token < 64; token++) {
    storeCodes4(codes + token * headDim, v128.load(keys + token * headDim * 4), scale);
  }
}

/** One value vector: one scale. */
function encodeValue(codes: usize, scaleAt: usize, value: usize, headDim: usize): void {
  let largest = f32x4.splat(0);
  for (let at: usize = 0; at < headDim * 4; at += 16) largest = larger4(largest, f32x4.abs(v128.load(value + at)));
  largest = larger4(largest, v128.shuffle<f32>(largest, largest, 2, 3, 0, 1));
  const scales = scaleOf(larger4(largest, v128.shuffle<f32>(largest, largest, 1, 0, 3, 2)));
  v128.store32_lane(scaleAt, scales, 0);
  for (let channel: usize = 0; channel < headDim; channel += 4) storeCodes4(codes + channel, v128.load(value + channel * 4), scales);
}

/** The largest magnitude over 127; one and the same NaN, whichever there was. */
// @ts-ignore: decorator
@inline
function scaleOf(largest: v128): v128 {
  return v128.bitselect(f32x4.div(largest, f32x4.splat(127)), f32x4.splat(NaN), f32x4.eq(largest, largest));
}

/** Stores four codes of 8 bits; 0 where the scale is 0. */
// @ts-ignore: decorator
@inline
function storeCodes4(to: usize, x: v128, scales: v128): void {
  const wide = v128.andnot(codes4(x, scales), f32x4.eq(scales, f32x4.splat(0)));
  const narrow = i16x8.narrow_i32x4_s(wide, wide);
  v128.store32_lane(to, i8x16.narrow_i16x8_s(narrow, narrow), 0);
}
