// Attention over f32 values: tokens in ascending order, every product and every sum rounded, whatever tile computes them.

/** Bytes from one query's weights to the next one's. */
const WEIGHT_BYTES: usize = 256;

/**
 * output[query] += weight[query][token] * values[token], tokens [first, end) ascending. `output` f32 [queryCount][headDim], `weights` f32
 * [queryCount][64], `values` f32 [64][headDim].
 */
export function addValues(
  output: usize,
  weights: usize,
  queryCount: i32,
  values: usize,
  first: usize,
  end: usize,
  headDim: usize,
): void {
  const headBytes = headDim << 2;
  const from = values + first * headBytes;
  const valuesEnd = values + end * headBytes;
  weights += first << 2;
  for (let query = 0; query < queryCount; query += 2) {
    let d: usize = 0;
    if (query + 1 < queryCount) {
      for (; d + 64 <= headBytes; d += 64) addSixteen2(output + d, headBytes, weights, from + d, valuesEnd + d, headBytes);
      for (; d < headBytes; d += 16) {
        addFour(output + d, weights, from + d, valuesEnd + d, headBytes);
        addFour(output + headBytes + d, weights + WEIGHT_BYTES, from + d, valuesEnd + d, headBytes);
      }
    } else {
      for (; d + 64 <= headBytes; d += 64) addSixteen(output + d, weights, from + d, valuesEnd + d, headBytes);
      for (; d < headBytes; d += 16) addFour(output + d, weights, from + d, valuesEnd + d, headBytes);
    }
    output += headBytes << 1;
    weights += WEIGHT_BYTES << 1;
  }
}

function addFour(output: usize, weights: usize, from: usize, end: usize, step: usize): void {
  let a = v128.load(output);
  for (let at = from; at < end; at += step) {
    a = f32x4.add(a, f32x4.mul(v128.load(at), v128.load32_splat(weights)));
    weights += 4;
  }
  v128.store(output, a);
}

function addSixteen(output: usize, weights: usize, from: usize, end: usize, step: usize): void {
  let a = v128.load(output), b = v128.load(output, 16), c = v128.load(output, 32), d = v128.load(output, 48);
  for (let at = from; at < end; at += step) {
    const w = v128.load32_splat(weights);
    a = f32x4.add(a, f32x4.mul(v128.load(at), w));
    b = f32x4.add(b, f32x4.mul(v128.load(at, 16), w));
    c = f32x4.add(c, f32x4.mul(v128.load(at, 32), w));
    d = f32x4.add(d, f32x4.mul(v128.load(at, 48), w));
    weights += 4;
  }
  v128.store(output, a);
  v128.store(output, b, 16);
  v128.store(output, c, 32);
  v128.store(output, d, 48);
}

function addSixteen2(output: usize, outputBytes: usize, weights: usize, from: usize, end: usize, step: usize): void {
  const second = output + outputBytes;
  let a = v128.load(output), b = v128.load(output, 16), c = v128.load(output, 32), d = v128.load(output, 48);
  let e = v128.load(second), f = v128.load(second, 16), g = v128.load(second, 32), h = v128.load(second, 48);
  for (let at = from; at < end; at += step) {
    const w = v128.load32_splat(weights);
    const x = v128.load32_splat(weights, WEIGHT_BYTES);
    let v = v128.load(at);
    a = f32x4.add(a, f32x4.mul(v, w));
    e = f32x4.add(e, f32x4.mul(v, x));
    v = v128.load(at, 16);
    b = f32x4.add(b, f32x4.mul(v, w));
    f = f32x4.add(f, f32x4.mul(v, x));
    v = v128.load(at, 32);
    c = f32x4.add(c, f32x4.mul(v, w));
    g = f32x4.add(g, f32x4.mul(v, x));
    v = v128.load(at, 48);
    d = f32x4.add(d, f32x4.mul(v, w));
    h = f32x4.add(h, f32x4.mul(v, x));
    weights += 4;
  }
  v128.store(output, a);
  v128.store(output, b, 16);
  v128.store(output, c, 32);
  v128.store(output, d, 48);
  v128.store(second, e);
  v128.store(second, f, 16);
  v128.store(second, g, 32);
  v128.store(second, h, 48);
}
