// f32 and bf16 matrices (T: f32, or u16 for the upper half of an f32): panels of 8 outputs, [panel][inWidth][8], missing outputs are zero. Every output is one sum over inputs, ascending,
// each product and each sum rounded: the same bits whichever tile computes it.
// Measured, one thread of a shared AMD EPYC (AVX-512) core, Node 24.21: 64x512x512 45 GFLOP/s, 1x2048x2048 27 GFLOP/s (54 GB/s).
// bf16 on a busy core: 64x2048x2048 20 GFLOP/s (f32 then: 23), 1x2048x2048 21 GFLOP/s (41 GB/s; f32 then: 28 GFLOP/s).
import { arg, argAt, partStart } from "./control";
import { matrixOf, put } from "./products";

/** Packs staged rows. args: out (first panel of these rows), x [rows, inWidth], rows, inWidth, parts */
export function packFloatTask<T>(task: i32): void {
  const rows = arg(2);
  const inWidth = arg(3);
  const panels = (rows + 7) >> 3;
  const end = partStart(panels, task + 1, arg(4));
  for (let panel = partStart(panels, task, arg(4)); panel < end; panel++) {
    const out = argAt(0) + <usize>panel * <usize>inWidth * (sizeof<T>() * 8);
    for (let lane = 0; lane < 8; lane++) {
      const row = panel * 8 + lane;
      const from = argAt(1) + <usize>row * <usize>inWidth * 4;
      for (let k: usize = 0; k < <usize>inWidth; k++) {
        const value: f32 = row < rows ? load<f32>(from + k * 4) : 0;
        const to = out + (k * 8 + <usize>lane) * sizeof<T>();
        if (sizeof<T>() == 4) store<f32>(to, value);
        else store<u16>(to, bf16Of(value));
      }
    }
  }
}

/** Rounded to nearest even; a NaN stays one. */
function bf16Of(value: f32): u16 {
  const bits = reinterpret<u32>(value);
  if (value != value) return <u16>((bits >> 16) | 64);
  return <u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/** Outputs 0..3 of the eight weights at `at`. */
// @ts-ignore: decorator
@inline
function lowWeights<T>(at: usize): v128 {
  return sizeof<T>() == 4 ? v128.load(at) : i32x4.shl(v128.load_ext<u16>(at), 16);
}

/** Outputs 4..7. */
// @ts-ignore: decorator
@inline
function highWeights<T>(at: usize): v128 {
  return sizeof<T>() == 4 ? v128.load(at, 16) : i32x4.shl(v128.load_ext<u16>(at, 8), 16);
}

/** out[i] = table[tokens[i]]. args: out, table, tokens, count, width, parts */
export function embedFloatTask<T>(task: i32): void {
  const width = <usize>arg(4);
  const end = partStart(arg(3), task + 1, arg(5));
  for (let row = partStart(arg(3), task, arg(5)); row < end; row++) {
    const token = load<u32>(argAt(2) + ((<usize>row) << 2));
    const from = argAt(1) + (<usize>(token >> 3) * width * 8 + <usize>(token & 7)) * sizeof<T>();
    const out = argAt(0) + <usize>row * width * 4;
    for (let k: usize = 0; k < width; k++) {
      const at = from + k * (sizeof<T>() * 8);
      store<f32>(out + k * 4, sizeof<T>() == 4 ? load<f32>(at) : reinterpret<f32>(<u32>load<u16>(at) << 16));
    }
  }
}

/** Panels [panelFirst, panelEnd) of a product for rows [rowFirst, rowEnd); see products.ts. */
export function runFloatPanels<T>(product: i32, panelFirst: i32, panelEnd: i32, rowFirst: i32, rowEnd: i32): void {
  if (arg(1) == 1) {
    rowTimesPanels<T>(product, panelFirst, panelEnd);
    return;
  }
  for (let panel = panelFirst; panel < panelEnd; panel++) {
    for (let row = rowFirst; row < rowEnd; row += 4) fourRowsTimesPanel<T>(product, row, rowEnd, panel);
  }
}

/** One row against panels, four at a time so that the additions of one sum do not wait for each other. */
function rowTimesPanels<T>(product: i32, panelFirst: i32, panelEnd: i32): void {
  const x = argAt(0);
  const inWidth = <usize>arg(2);
  const panelBytes = inWidth * (sizeof<T>() * 8);
  let panel = panelFirst;
  for (; panel + 4 <= panelEnd; panel += 4) {
    const w0 = matrixOf(product) + <usize>panel * panelBytes;
    const w1 = w0 + panelBytes;
    const w2 = w1 + panelBytes;
    const w3 = w2 + panelBytes;
    let a0 = f32x4.splat(0), b0 = f32x4.splat(0), a1 = f32x4.splat(0), b1 = f32x4.splat(0);
    let a2 = f32x4.splat(0), b2 = f32x4.splat(0), a3 = f32x4.splat(0), b3 = f32x4.splat(0);
    for (let k: usize = 0; k < inWidth; k++) {
      const at = k * (sizeof<T>() * 8);
      const xs = v128.load32_splat(x + k * 4);
      a0 = f32x4.add(a0, f32x4.mul(lowWeights<T>(w0 + at), xs));
      b0 = f32x4.add(b0, f32x4.mul(highWeights<T>(w0 + at), xs));
      a1 = f32x4.add(a1, f32x4.mul(lowWeights<T>(w1 + at), xs));
      b1 = f32x4.add(b1, f32x4.mul(highWeights<T>(w1 + at), xs));
      a2 = f32x4.add(a2, f32x4.mul(lowWeights<T>(w2 + at), xs));
      b2 = f32x4.add(b2, f32x4.mul(highWeights<T>(w2 + at), xs));
      a3 = f32x4.add(a3, f32x4.mul(lowWeights<T>(w3 + at), xs));
      b3 = f32x4.add(b3, f32x4.mul(highWeights<T>(w3 + at), xs));
    }
    put(product, 0, panel, a0, b0);
    put(product, 0, panel + 1, a1, b1);
    put(product, 0, panel + 2, a2, b2);
    put(product, 0, panel + 3, a3, b3);
  }
  for (; panel < panelEnd; panel++) {
    const w = matrixOf(product) + <usize>panel * panelBytes;
    let a = f32x4.splat(0), b = f32x4.splat(0);
    for (let k: usize = 0; k < inWidth; k++) {
      const xs = v128.load32_splat(x + k * 4);
      a = f32x4.add(a, f32x4.mul(lowWeights<T>(w + k * (sizeof<T>() * 8)), xs));
      b = f32x4.add(b, f32x4.mul(highWeights<T>(w + k * (sizeof<T>() * 8)), xs));
    }
    put(product, 0, panel, a, b);
  }
}

/** Rows row..row+3 against one panel; rows from rowEnd on are computed as copies of the last one and not stored. */
function fourRowsTimesPanel<T>(product: i32, row: i32, rowEnd: i32, panel: i32): void {
  const inWidth = <usize>arg(2);
  const rowBytes = inWidth << 2;
  const x0 = argAt(0) + <usize>row * rowBytes;
  const x1 = row + 1 < rowEnd ? x0 + rowBytes : x0;
  const x2 = row + 2 < rowEnd ? x1 + rowBytes : x1;
  const x3 = row + 3 < rowEnd ? x2 + rowBytes : x2;
  let w = matrixOf(product) + <usize>panel * inWidth * (sizeof<T>() * 8);
  let a0 = f32x4.splat(0), b0 = f32x4.splat(0), a1 = f32x4.splat(0), b1 = f32x4.splat(0);
  let a2 = f32x4.splat(0), b2 = f32x4.splat(0), a3 = f32x4.splat(0), b3 = f32x4.splat(0);
  for (let at: usize = 0; at < rowBytes; at += 4) {
    const wa = lowWeights<T>(w);
    const wb = highWeights<T>(w);
    w += sizeof<T>() * 8;
    let xs = v128.load32_splat(x0 + at);
    a0 = f32x4.add(a0, f32x4.mul(wa, xs));
    b0 = f32x4.add(b0, f32x4.mul(wb, xs));
    xs = v128.load32_splat(x1 + at);
    a1 = f32x4.add(a1, f32x4.mul(wa, xs));
    b1 = f32x4.add(b1, f32x4.mul(wb, xs));
    xs = v128.load32_splat(x2 + at);
    a2 = f32x4.add(a2, f32x4.mul(wa, xs));
    b2 = f32x4.add(b2, f32x4.mul(wb, xs));
    xs = v128.load32_splat(x3 + at);
    a3 = f32x4.add(a3, f32x4.mul(wa, xs));
    b3 = f32x4.add(b3, f32x4.mul(wb, xs));
  }
  put(product, row, panel, a0, b0);
  if (row + 1 < rowEnd) put(product, row + 1, panel, a1, b1);
  if (row + 2 < rowEnd) put(product, row + 2, panel, a2, b2);
  if (row + 3 < rowEnd) put(product, row + 3, panel, a3, b3);
}
