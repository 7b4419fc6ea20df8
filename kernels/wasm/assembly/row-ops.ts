// Row-wise ops. A task is a run of rows (rmsNorm, gather) or of elements (siluMul).
import { arg, argAt, argF32, partStart } from "./control";
import { exp4, maxLanes, one4, sumLanes } from "./vector";

/**
 * out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. Sum of squares in f32: four lane sums by channel mod 4, then the lanes, then the tail.
 * args: out, x, weight, rows, width, parts, eps
 */
export function rmsNormTask(task: i32): void {
  const width = arg(4);
  const weight = argAt(2);
  const first = partStart(arg(3), task, arg(5));
  const end = partStart(arg(3), task + 1, arg(5));
  const rowBytes = (<usize>width) << 2;
  for (let row = first; row < end; row++) {
    rmsNormRow(argAt(0) + <usize>row * rowBytes, argAt(1) + <usize>row * rowBytes, weight, width, argF32(6));
  }
}

function rmsNormRow(out: usize, x: usize, weight: usize, width: i32, eps: f32): void {
  const vectorEnd = (<usize>(width & ~3)) << 2;
  const end = (<usize>width) << 2;
  let sums = f32x4.splat(0);
  for (let at: usize = 0; at < vectorEnd; at += 16) {
    const v = v128.load(x + at);
    sums = f32x4.add(sums, f32x4.mul(v, v));
  }
  let sum = sumLanes(sums);
  for (let at = vectorEnd; at < end; at += 4) sum += load<f32>(x + at) * load<f32>(x + at);
  const scale: f32 = <f32>1 / sqrt<f32>(sum / <f32>width + eps);
  const scales = f32x4.splat(scale);
  for (let at: usize = 0; at < vectorEnd; at += 16) {
    v128.store(out + at, f32x4.mul(f32x4.mul(v128.load(x + at), scales), v128.load(weight + at)));
  }
  for (let at = vectorEnd; at < end; at += 4) {
    store<f32>(out + at, load<f32>(x + at) * scale * load<f32>(weight + at));
  }
}

/** out[i] = gate[i] / (1 + e^-gate[i]) * up[i]; out may be gate. args: out, gate, up, elements, parts */
export function siluMulTask(task: i32): void {
  const first = partStart(arg(3), task, arg(4));
  const end = partStart(arg(3), task + 1, arg(4));
  const out = argAt(0);
  const gate = argAt(1);
  const up = argAt(2);
  let index = first;
  for (; index + 4 <= end; index += 4) {
    const at = (<usize>index) << 2;
    v128.store(out + at, f32x4.mul(silu4(v128.load(gate + at)), v128.load(up + at)));
  }
  for (; index < end; index++) {
    const at = (<usize>index) << 2;
    const silu = f32x4.extract_lane(silu4(f32x4.splat(load<f32>(gate + at))), 0);
    store<f32>(out + at, silu * load<f32>(up + at));
  }
}

// @ts-ignore: decorator
@inline
function silu4(gate: v128): v128 {
  return f32x4.div(gate, f32x4.add(one4(), exp4(f32x4.neg(gate))));
}

/** out[i] = x[indices[i]]. args: out, x, indices, count, width, parts */
export function gatherRowsTask(task: i32): void {
  const rowBytes = (<usize>arg(4)) << 2;
  const first = partStart(arg(3), task, arg(5));
  const end = partStart(arg(3), task + 1, arg(5));
  for (let row = first; row < end; row++) {
    const index = load<u32>(argAt(2) + ((<usize>row) << 2));
    memory.copy(argAt(0) + <usize>row * rowBytes, argAt(1) + <usize>index * rowBytes, rowBytes);
  }
}

/**
 * The index of a row's largest value, the lower of equals; NaN counts as -Infinity, and without a larger value the index is 0. Task = row.
 * args: addresses of the rows (each becomes the index), count
 */
export function argmaxTask(task: i32): void {
  const row = argAt(0) + ((<usize>task) << 2);
  const values = <usize>load<u32>(row);
  const count = arg(1);
  const end = values + (<usize>count << 2);
  const vectorEnd = values + (<usize>(count & ~7) << 2);
  let low = f32x4.splat(-Infinity), high = low;
  // pmax(a, b) keeps a unless a < b, so a NaN in b is passed over.
  for (let at = values; at < vectorEnd; at += 32) {
    low = f32x4.pmax(low, v128.load(at));
    high = f32x4.pmax(high, v128.load(at, 16));
  }
  let most = maxLanes(f32x4.pmax(low, high));
  for (let at = vectorEnd; at < end; at += 4) {
    const value = load<f32>(at);
    if (value > most) most = value;
  }
  store<u32>(row, most == -Infinity ? 0 : indexOf(values, vectorEnd, most));
}

/** The index of the first value that equals `value`; there is one. */
function indexOf(values: usize, vectorEnd: usize, value: f32): u32 {
  const wanted = f32x4.splat(value);
  let at = values;
  while (at < vectorEnd && !v128.any_true(v128.or(f32x4.eq(v128.load(at), wanted), f32x4.eq(v128.load(at, 16), wanted)))) at += 32;
  while (load<f32>(at) != value) at += 4;
  return <u32>((at - values) >> 2);
}
