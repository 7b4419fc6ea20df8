// int4 matrices. A panel is 8 outputs; a block is 32 inputs. [panel][block]{ 8 vectors of codes, 8 f32 scales } = 160 bytes a block.
// A word (16 bit) holds four signed nibbles. Word 2j+e of vector i: code(j, 4i+e), code(j+4, 4i+e), code(j, 4i+2+e), code(j+4, 4i+2+e)
// from the lowest nibble up, for j = 0..3 and e = 0..1. A shift left and an arithmetic shift right give each as a word, exactly.
// Inputs are the records of matmul-int8.ts; so are the sums: exact integers per block, blocks ascending in f32.
// Measured, one thread of a shared, busy AMD EPYC (AVX-512) core, Node 24.21: 64x2048x2048 45 GOP/s, 1x2048x2048 44 GOP/s (int8 then: 38, 55).
import { arg, argAt, partStart } from "./control";
import { scaled } from "./matmul-int8";
import { keepTouched, touchAhead } from "./prefetch";
import { matrixOf, put } from "./products";

const WEIGHT_BLOCK_BYTES: usize = 160;
const INPUT_BLOCK_BYTES: usize = 80;
const SCALES: usize = 128;
/** Steps of at most so many rows wait for weights. */
const ROWS_WAITING_MAX: i32 = 8;

/** Packs staged rows. args: out (first panel of these rows), x [rows, inWidth], rows, inWidth, parts */
export function packInt4Task(task: i32): void {
  const rows = arg(2);
  const inWidth = arg(3);
  const blocks = (inWidth + 31) >> 5;
  const panels = (rows + 7) >> 3;
  const end = partStart(panels, task + 1, arg(4));
  for (let panel = partStart(panels, task, arg(4)); panel < end; panel++) {
    for (let block = 0; block < blocks; block++) {
      const out = argAt(0) + (<usize>panel * <usize>blocks + <usize>block) * WEIGHT_BLOCK_BYTES;
      memory.fill(out, 0, SCALES);
      for (let lane = 0; lane < 8; lane++) {
        const row = panel * 8 + lane;
        const from = argAt(1) + (<usize>row * <usize>inWidth + <usize>(block * 32)) * 4;
        packBlock(out, lane, from, row < rows ? min(32, inWidth - block * 32) : 0);
      }
    }
  }
}

function packBlock(out: usize, lane: i32, from: usize, count: i32): void {
  const scale = blockScale(from, count);
  store<f32>(out + SCALES + ((<usize>lane) << 2), scale);
  for (let k = 0; k < count; k++) {
    const code = scale == 0 ? 0 : <i32>max<f32>(-8, min<f32>(7, nearest<f32>(load<f32>(from + ((<usize>k) << 2)) / scale)));
    const word = wordOf(out, lane, k);
    store<u16>(word, <u16>(load<u16>(word) | <u16>((code & 15) << shiftOf(lane, k))));
  }
}

/** The element of largest magnitude, the first of equals, becomes -8. */
function blockScale(from: usize, count: i32): f32 {
  let largest: f32 = 0;
  for (let k = 0; k < count; k++) {
    const value = load<f32>(from + ((<usize>k) << 2));
    if (abs<f32>(value) > abs<f32>(largest)) largest = value;
  }
  return largest / <f32>-8;
}

// @ts-ignore: decorator
@inline
function wordOf(block: usize, lane: i32, k: i32): usize {
  return block + <usize>((k >> 2) * 16 + ((lane & 3) * 2 + (k & 1)) * 2);
}

// @ts-ignore: decorator
@inline
function shiftOf(lane: i32, k: i32): i32 {
  return ((k >> 1) & 1) * 8 + (lane >> 2) * 4;
}

/** out[i] = decoded table[tokens[i]]. args: out, table, tokens, count, width, parts */
export function embedInt4Task(task: i32): void {
  const width = arg(4);
  const blocks = (width + 31) >> 5;
  const end = partStart(arg(3), task + 1, arg(5));
  for (let row = partStart(arg(3), task, arg(5)); row < end; row++) {
    const token = load<u32>(argAt(2) + ((<usize>row) << 2));
    const panel = argAt(1) + <usize>(token >> 3) * <usize>blocks * WEIGHT_BLOCK_BYTES;
    const lane = <i32>(token & 7);
    const out = argAt(0) + <usize>row * <usize>width * 4;
    for (let k = 0; k < width; k++) {
      const block = panel + <usize>(k >> 5) * WEIGHT_BLOCK_BYTES;
      const word = <i32>load<u16>(wordOf(block, lane, k & 31));
      const code = (word << (28 - shiftOf(lane, k & 31))) >> 28;
      store<f32>(out + ((<usize>k) << 2), <f32>code * load<f32>(block + SCALES + ((<usize>lane) << 2)));
    }
  }
}

/** Panels [panelFirst, panelEnd) of a product for rows [rowFirst, rowEnd); see products.ts. */
export function runInt4Panels(product: i32, panelFirst: i32, panelEnd: i32, rowFirst: i32, rowEnd: i32): void {
  const panelBytes = ((<usize>arg(2) + 31) >> 5) * WEIGHT_BLOCK_BYTES;
  const end = matrixOf(product) + <usize>panelEnd * panelBytes;
  const isAhead = arg(1) <= ROWS_WAITING_MAX;
  let touched = 0;
  for (let panel = panelFirst; panel < panelEnd; panel++) {
    if (isAhead) touched += touchAhead(matrixOf(product) + <usize>panel * panelBytes, panelBytes, end);
    if (arg(1) == 1) {
      rowTimesPanel(product, panel);
      continue;
    }
    for (let row = rowFirst; row < rowEnd; row += 4) fourRowsTimesPanel(product, row, rowEnd, panel);
  }
  keepTouched(touched);
}

function rowTimesPanel(product: i32, panel: i32): void {
  const blocks = (<usize>arg(2) + 31) >> 5;
  let w = matrixOf(product) + <usize>panel * blocks * WEIGHT_BLOCK_BYTES;
  let x = argAt(0);
  const xEnd = x + blocks * INPUT_BLOCK_BYTES;
  let low = f32x4.splat(0), high = f32x4.splat(0);
  for (; x < xEnd; x += INPUT_BLOCK_BYTES) {
    let low0 = i32x4.splat(0), high0 = i32x4.splat(0), low1 = i32x4.splat(0), high1 = i32x4.splat(0);
    for (let i: usize = 0; i < 8; i++) {
      const v = v128.load(w + i * 16);
      const first = v128.load32_splat(x + i * 8);
      const second = v128.load32_splat(x + i * 8, 4);
      low0 = i32x4.add(low0, i32x4.dot_i16x8_s(i16x8.shr_s(i16x8.shl(v, 12), 12), first));
      high0 = i32x4.add(high0, i32x4.dot_i16x8_s(i16x8.shr_s(i16x8.shl(v, 8), 12), first));
      low1 = i32x4.add(low1, i32x4.dot_i16x8_s(i16x8.shr_s(i16x8.shl(v, 4), 12), second));
      high1 = i32x4.add(high1, i32x4.dot_i16x8_s(i16x8.shr_s(v, 12), second));
    }
    const inputScale = v128.load32_splat(x, 64);
    low = f32x4.add(low, scaled(i32x4.add(low0, low1), v128.load(w + SCALES), inputScale));
    high = f32x4.add(high, scaled(i32x4.add(high0, high1), v128.load(w + SCALES, 16), inputScale));
    w += WEIGHT_BLOCK_BYTES;
  }
  put(product, 0, panel, low, high);
}

/** Rows row..row+3 against one panel; rows from rowEnd on are computed as copies of the last one and not stored. */
function fourRowsTimesPanel(product: i32, row: i32, rowEnd: i32, panel: i32): void {
  const blocks = (<usize>arg(2) + 31) >> 5;
  const rowBytes = blocks * INPUT_BLOCK_BYTES;
  let w = matrixOf(product) + <usize>panel * blocks * WEIGHT_BLOCK_BYTES;
  let x0 = argAt(0) + <usize>row * rowBytes;
  let x1 = row + 1 < rowEnd ? x0 + rowBytes : x0;
  let x2 = row + 2 < rowEnd ? x1 + rowBytes : x1;
  let x3 = row + 3 < rowEnd ? x2 + rowBytes : x2;
  let low0 = f32x4.splat(0), high0 = f32x4.splat(0), low1 = f32x4.splat(0), high1 = f32x4.splat(0);
  let low2 = f32x4.splat(0), high2 = f32x4.splat(0), low3 = f32x4.splat(0), high3 = f32x4.splat(0);
  for (let block: usize = 0; block < blocks; block++) {
    let a0 = i32x4.splat(0), b0 = i32x4.splat(0), a1 = i32x4.splat(0), b1 = i32x4.splat(0);
    let a2 = i32x4.splat(0), b2 = i32x4.splat(0), a3 = i32x4.splat(0), b3 = i32x4.splat(0);
    for (let i: usize = 0; i < 8; i++) {
      const v = v128.load(w + i * 16);
      let lower = i16x8.shr_s(i16x8.shl(v, 12), 12);
      let upper = i16x8.shr_s(i16x8.shl(v, 8), 12);
      let xs = v128.load32_splat(x0 + i * 8);
      a0 = i32x4.add(a0, i32x4.dot_i16x8_s(lower, xs));
      b0 = i32x4.add(b0, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x1 + i * 8);
      a1 = i32x4.add(a1, i32x4.dot_i16x8_s(lower, xs));
      b1 = i32x4.add(b1, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x2 + i * 8);
      a2 = i32x4.add(a2, i32x4.dot_i16x8_s(lower, xs));
      b2 = i32x4.add(b2, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x3 + i * 8);
      a3 = i32x4.add(a3, i32x4.dot_i16x8_s(lower, xs));
      b3 = i32x4.add(b3, i32x4.dot_i16x8_s(upper, xs));
      lower = i16x8.shr_s(i16x8.shl(v, 4), 12);
      upper = i16x8.shr_s(v, 12);
      xs = v128.load32_splat(x0 + i * 8, 4);
      a0 = i32x4.add(a0, i32x4.dot_i16x8_s(lower, xs));
      b0 = i32x4.add(b0, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x1 + i * 8, 4);
      a1 = i32x4.add(a1, i32x4.dot_i16x8_s(lower, xs));
      b1 = i32x4.add(b1, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x2 + i * 8, 4);
      a2 = i32x4.add(a2, i32x4.dot_i16x8_s(lower, xs));
      b2 = i32x4.add(b2, i32x4.dot_i16x8_s(upper, xs));
      xs = v128.load32_splat(x3 + i * 8, 4);
      a3 = i32x4.add(a3, i32x4.dot_i16x8_s(lower, xs));
      b3 = i32x4.add(b3, i32x4.dot_i16x8_s(upper, xs));
    }
    const lowScales = v128.load(w + SCALES);
    const highScales = v128.load(w + SCALES, 16);
    low0 = f32x4.add(low0, scaled(a0, lowScales, v128.load32_splat(x0, 64)));
    high0 = f32x4.add(high0, scaled(b0, highScales, v128.load32_splat(x0, 64)));
    low1 = f32x4.add(low1, scaled(a1, lowScales, v128.load32_splat(x1, 64)));
    high1 = f32x4.add(high1, scaled(b1, highScales, v128.load32_splat(x1, 64)));
    low2 = f32x4.add(low2, scaled(a2, lowScales, v128.load32_splat(x2, 64)));
    high2 = f32x4.add(high2, scaled(b2, highScales, v128.load32_splat(x2, 64)));
    low3 = f32x4.add(low3, scaled(a3, lowScales, v128.load32_splat(x3, 64)));
    high3 = f32x4.add(high3, scaled(b3, highScales, v128.load32_splat(x3, 64)));
    w += WEIGHT_BLOCK_BYTES;
    x0 += INPUT_BLOCK_BYTES;
    x1 += INPUT_BLOCK_BYTES;
    x2 += INPUT_BLOCK_BYTES;
    x3 += INPUT_BLOCK_BYTES;
  }
  put(product, row, panel, low0, high0);
  if (row + 1 < rowEnd) put(product, row + 1, panel, low1, high1);
  if (row + 2 < rowEnd) put(product, row + 2, panel, low2, high2);
  if (row + 3 < rowEnd) put(product, row + 3, panel, low3, high3);
}
