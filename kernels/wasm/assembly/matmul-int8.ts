// int8 matrices. A panel is 8 outputs; a block is 32 inputs. [panel][block]{ 16 vectors of codes, 8 f32 scales } = 288 bytes a block.
// Vector i of a block holds inputs 2i and 2i+1: word 2j+e (16 bit) is code(j + 4, 2i+e) * 256 + code(j, 2i+e) + 128, for j = 0..3.
// A shift by 8 gives the upper code exactly; the lower one comes out of the whole word's dot product once per block:
// dot(lower) = dot(word) - 256 dot(upper) - 128 sum(x). All of it is exact in 32 bits, and one shift replaces three widenings.
// Measured, one thread of a shared AMD EPYC (AVX-512) core, Node 24.21: 64x2048x2048 65 GOP/s, 1x2048x2048 56 GOP/s.
// Inputs are quantized to records of 80 bytes a block: 32 codes (16 bit), f32 scale, 128 * sum of codes, 8 bytes of padding.
import { arg, argAt, partStart } from "./control";
import { keepTouched, touchAhead } from "./prefetch";
import { matrixOf, put } from "./products";
import { codeLeast8, codeMost8, larger4, nearestInt4 } from "./vector";

const WEIGHT_BLOCK_BYTES: usize = 288;
const INPUT_BLOCK_BYTES: usize = 80;
/** Steps of at most so many rows wait for weights. */
const ROWS_WAITING_MAX: i32 = 8;

/** Packs staged rows. args: out (first panel of these rows), x [rows, inWidth], rows, inWidth, parts */
export function packInt8Task(task: i32): void {
  const rows = arg(2);
  const inWidth = arg(3);
  const blocks = (inWidth + 31) >> 5;
  const panels = (rows + 7) >> 3;
  const end = partStart(panels, task + 1, arg(4));
  for (let panel = partStart(panels, task, arg(4)); panel < end; panel++) {
    for (let block = 0; block < blocks; block++) {
      const out = argAt(0) + (<usize>panel * <usize>blocks + <usize>block) * WEIGHT_BLOCK_BYTES;
      for (let at: usize = 0; at < 256; at += 2) store<u16>(out + at, 128);
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
  store<f32>(out + 256 + ((<usize>lane) << 2), scale);
  for (let k = 0; k < count; k++) {
    const code = codeOf(load<f32>(from + ((<usize>k) << 2)), scale);
    const word = out + <usize>(k >> 1) * 16 + <usize>(((lane & 3) * 2 + (k & 1)) * 2);
    const value = <i32>load<i16>(word) + (lane < 4 ? code : code << 8);
    store<i16>(word, <i16>value);
  }
}

function blockScale(from: usize, count: i32): f32 {
  let largest: f32 = 0;
  for (let k = 0; k < count; k++) largest = max<f32>(largest, abs<f32>(load<f32>(from + ((<usize>k) << 2))));
  return largest / <f32>127;
}

/** round-half-even(x / scale), -127..127; 0 where the scale is 0. */
export function codeOf(x: f32, scale: f32): i32 {
  if (scale == 0) return 0;
  const code = i32x4.extract_lane(i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.splat(x / scale))), 0);
  return min(127, max(-127, code));
}

/** out[i] = decoded table[tokens[i]]. args: out, table, tokens, count, width, parts */
export function embedInt8Task(task: i32): void {
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
      const word = <i32>load<i16>(block + <usize>((k & 31) >> 1) * 16 + <usize>(((lane & 3) * 2 + (k & 1)) * 2));
      const code = lane < 4 ? (word & 255) - 128 : word >> 8;
      store<f32>(out + ((<usize>k) << 2), <f32>code * load<f32>(block + 256 + ((<usize>lane) << 2)));
    }
  }
}

/** Quantizes input rows into records. args: out, x, rows, inWidth, parts */
export function quantizeRowsTask(task: i32): void {
  const inWidth = arg(3);
  const blocks = (inWidth + 31) >> 5;
  const end = partStart(arg(2), task + 1, arg(4));
  for (let row = partStart(arg(2), task, arg(4)); row < end; row++) {
    const x = argAt(1) + <usize>row * <usize>inWidth * 4;
    const out = argAt(0) + <usize>row * <usize>blocks * INPUT_BLOCK_BYTES;
    for (let block = 0; block < blocks; block++) {
      const count = min(32, inWidth - block * 32);
      const to = out + <usize>block * INPUT_BLOCK_BYTES;
      if (count == 32) quantizeBlock(to, x + <usize>block * 128);
      else quantizeShortBlock(to, x + <usize>block * 128, count);
    }
  }
}

function quantizeBlock(to: usize, x: usize): void {
  let largest = f32x4.abs(v128.load(x));
  for (let at: usize = 16; at < 128; at += 16) largest = larger4(largest, f32x4.abs(v128.load(x + at)));
  largest = larger4(largest, v128.shuffle<f32>(largest, largest, 2, 3, 0, 1));
  largest = larger4(largest, v128.shuffle<f32>(largest, largest, 1, 0, 3, 2));
  // 0 / 0 is no number, its code so is 0.
  const scales = f32x4.div(largest, f32x4.splat(127));
  const ones = i16x8.splat(1);
  let sums = i32x4.splat(0);
  for (let at: usize = 0; at < 128; at += 32) {
    const codes = i16x8.narrow_i32x4_s(codes4(v128.load(x + at), scales), codes4(v128.load(x + at, 16), scales));
    sums = i32x4.add(sums, i32x4.dot_i16x8_s(codes, ones));
    v128.store(to + (at >> 1), codes);
  }
  v128.store32_lane(to, scales, 0, 64);
  sums = i32x4.add(sums, v128.shuffle<i32>(sums, sums, 2, 3, 0, 1));
  sums = i32x4.add(sums, v128.shuffle<i32>(sums, sums, 1, 0, 3, 2));
  v128.store32_lane(to, i32x4.shl(sums, 7), 0, 68);
}

/**
 * Four codes, -127..127; a quotient that is no number becomes 0. `scales` come from the largest of what is divided, so quotients are small
 * (denormal scales round, to 190 at most).
 */
// @ts-ignore: decorator
@inline
export function codes4(x: v128, scales: v128): v128 {
  const quotients = f32x4.div(x, scales);
  const codes = v128.and(nearestInt4(quotients), f32x4.eq(quotients, quotients));
  return i32x4.min_s(i32x4.max_s(codes, codeLeast8()), codeMost8());
}

function quantizeShortBlock(to: usize, x: usize, count: i32): void {
  const scale = blockScale(x, count);
  let sum = 0;
  for (let k = 0; k < 32; k++) {
    const code = k < count ? codeOf(load<f32>(x + ((<usize>k) << 2)), scale) : 0;
    sum += code;
    store<i16>(to + ((<usize>k) << 1), <i16>code);
  }
  store<f32>(to, scale, 64);
  store<i32>(to, sum << 7, 68);
}

/** Panels [panelFirst, panelEnd) of a product for rows [rowFirst, rowEnd); see products.ts. */
export function runInt8Panels(product: i32, panelFirst: i32, panelEnd: i32, rowFirst: i32, rowEnd: i32): void {
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

/** f32(dot) * (scaleW * scaleX) of four outputs. */
// @ts-ignore: decorator
@inline
export function scaled(dot: v128, weightScales: v128, inputScale: v128): v128 {
  return f32x4.mul(f32x4.convert_i32x4_s(dot), f32x4.mul(weightScales, inputScale));
}

/** The lower codes' dot products out of the words' and the upper codes'. */
// @ts-ignore: decorator
@inline
function lowerDot(word: v128, upper: v128, inputs: usize): v128 {
  return i32x4.sub(i32x4.sub(word, i32x4.shl(upper, 8)), v128.load32_splat(inputs, 68));
}

function rowTimesPanel(product: i32, panel: i32): void {
  const blocks = (<usize>arg(2) + 31) >> 5;
  let w = matrixOf(product) + <usize>panel * blocks * WEIGHT_BLOCK_BYTES;
  let x = argAt(0);
  const xEnd = x + blocks * INPUT_BLOCK_BYTES;
  let low = f32x4.splat(0), high = f32x4.splat(0);
  for (; x < xEnd; x += INPUT_BLOCK_BYTES) {
    let word0 = i32x4.splat(0), upper0 = i32x4.splat(0), word1 = i32x4.splat(0), upper1 = i32x4.splat(0);
    for (let i: usize = 0; i < 16; i += 4) {
      const codes = w + i * 16;
      const inputs = x + i * 4;
      let v = v128.load(codes);
      let xs = v128.load32_splat(inputs);
      word0 = i32x4.add(word0, i32x4.dot_i16x8_s(v, xs));
      upper0 = i32x4.add(upper0, i32x4.dot_i16x8_s(i16x8.shr_s(v, 8), xs));
      v = v128.load(codes, 16);
      xs = v128.load32_splat(inputs, 4);
      word1 = i32x4.add(word1, i32x4.dot_i16x8_s(v, xs));
      upper1 = i32x4.add(upper1, i32x4.dot_i16x8_s(i16x8.shr_s(v, 8), xs));
      v = v128.load(codes, 32);
      xs = v128.load32_splat(inputs, 8);
      word0 = i32x4.add(word0, i32x4.dot_i16x8_s(v, xs));
      upper0 = i32x4.add(upper0, i32x4.dot_i16x8_s(i16x8.shr_s(v, 8), xs));
      v = v128.load(codes, 48);
      xs = v128.load32_splat(inputs, 12);
      word1 = i32x4.add(word1, i32x4.dot_i16x8_s(v, xs));
      upper1 = i32x4.add(upper1, i32x4.dot_i16x8_s(i16x8.shr_s(v, 8), xs));
    }
    const upper = i32x4.add(upper0, upper1);
    const inputScale = v128.load32_splat(x, 64);
    low = f32x4.add(low, scaled(lowerDot(i32x4.add(word0, word1), upper, x), v128.load(w, 256), inputScale));
    high = f32x4.add(high, scaled(upper, v128.load(w, 272), inputScale));
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
    let word0 = i32x4.splat(0), upper0 = i32x4.splat(0), word1 = i32x4.splat(0), upper1 = i32x4.splat(0);
    let word2 = i32x4.splat(0), upper2 = i32x4.splat(0), word3 = i32x4.splat(0), upper3 = i32x4.splat(0);
    for (let i: usize = 0; i < 16; i += 2) {
      const codes = w + i * 16;
      const p0 = x0 + i * 4, p1 = x1 + i * 4, p2 = x2 + i * 4, p3 = x3 + i * 4;
      let v = v128.load(codes);
      let u = i16x8.shr_s(v, 8);
      let xs = v128.load32_splat(p0);
      word0 = i32x4.add(word0, i32x4.dot_i16x8_s(v, xs));
      upper0 = i32x4.add(upper0, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p1);
      word1 = i32x4.add(word1, i32x4.dot_i16x8_s(v, xs));
      upper1 = i32x4.add(upper1, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p2);
      word2 = i32x4.add(word2, i32x4.dot_i16x8_s(v, xs));
      upper2 = i32x4.add(upper2, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p3);
      word3 = i32x4.add(word3, i32x4.dot_i16x8_s(v, xs));
      upper3 = i32x4.add(upper3, i32x4.dot_i16x8_s(u, xs));
      v = v128.load(codes, 16);
      u = i16x8.shr_s(v, 8);
      xs = v128.load32_splat(p0, 4);
      word0 = i32x4.add(word0, i32x4.dot_i16x8_s(v, xs));
      upper0 = i32x4.add(upper0, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p1, 4);
      word1 = i32x4.add(word1, i32x4.dot_i16x8_s(v, xs));
      upper1 = i32x4.add(upper1, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p2, 4);
      word2 = i32x4.add(word2, i32x4.dot_i16x8_s(v, xs));
      upper2 = i32x4.add(upper2, i32x4.dot_i16x8_s(u, xs));
      xs = v128.load32_splat(p3, 4);
      word3 = i32x4.add(word3, i32x4.dot_i16x8_s(v, xs));
      upper3 = i32x4.add(upper3, i32x4.dot_i16x8_s(u, xs));
    }
    const lowScales = v128.load(w, 256);
    const highScales = v128.load(w, 272);
    low0 = f32x4.add(low0, scaled(lowerDot(word0, upper0, x0), lowScales, v128.load32_splat(x0, 64)));
    high0 = f32x4.add(high0, scaled(upper0, highScales, v128.load32_splat(x0, 64)));
    low1 = f32x4.add(low1, scaled(lowerDot(word1, upper1, x1), lowScales, v128.load32_splat(x1, 64)));
    high1 = f32x4.add(high1, scaled(upper1, highScales, v128.load32_splat(x1, 64)));
    low2 = f32x4.add(low2, scaled(lowerDot(word2, upper2, x2), lowScales, v128.load32_splat(x2, 64)));
    high2 = f32x4.add(high2, scaled(upper2, highScales, v128.load32_splat(x2, 64)));
    low3 = f32x4.add(low3, scaled(lowerDot(word3, upper3, x3), lowScales, v128.load32_splat(x3, 64)));
    high3 = f32x4.add(high3, scaled(upper3, highScales, v128.load32_splat(x3, 64)));
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
