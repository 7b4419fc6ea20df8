/** Symmetric matrices on the host, in doubles: for bases that the laboratory fits to queries and keys. Matrices are row-major `[size][size]`. */
import { assert } from "../../../protocol/assert.ts";

const SWEEPS_MAX = 60;

/** Eigenvalues, descending, and row by row the unit vectors that belong to them. */
export interface Spectrum {
  values: Float64Array;
  vectors: Float64Array;
}

/** The spectrum of a symmetric matrix, which is kept (cyclic Jacobi rotations until what is off the diagonal is below 1e-12 of it). */
export function spectrumOf(matrix: Float64Array, size: number): Spectrum {
  assert(matrix.length === size * size, "a square matrix");
  const left = matrix.slice();
  const vectors = new Float64Array(size * size);
  for (let i = 0; i < size; i++) vectors[i * size + i] = 1;
  for (let sweep = 0; sweep < SWEEPS_MAX && !isDiagonal(left, size); sweep++) {
    for (let p = 0; p < size; p++) for (let q = p + 1; q < size; q++) rotate(left, vectors, size, p, q);
  }
  const order = Array.from({ length: size }, (_, i) => i).sort(
    (a, b) => valueAt(left, size, b) - valueAt(left, size, a),
  );
  const sorted = new Float64Array(size * size);
  for (const [rank, i] of order.entries()) sorted.set(vectors.subarray(i * size, (i + 1) * size), rank * size);
  return { values: Float64Array.from(order, (i) => valueAt(left, size, i)), vectors: sorted };
}

/** A positive matrix to a power; eigenvalues below 1e-7 of the largest count as that, so that a negative power exists. */
export function powerOf(matrix: Float64Array, size: number, power: number): Float64Array {
  const { values, vectors } = spectrumOf(matrix, size);
  const least = (values[0] as number) * 1e-7;
  const scaled = vectors.map((value, at) => value * Math.max(values[Math.floor(at / size)] as number, least) ** power);
  return product(transposed(vectors, size), scaled, size);
}

/** `a b`. */
export function product(a: Float64Array, b: Float64Array, size: number): Float64Array {
  const out = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < size; k++) {
      const factor = a[i * size + k] as number;
      for (let j = 0; j < size; j++) out[i * size + j]! += factor * (b[k * size + j] as number);
    }
  }
  return out;
}

/** The matrix with rows for columns. */
export function transposed(a: Float64Array, size: number): Float64Array {
  return a.map((_, at) => a[(at % size) * size + Math.floor(at / size)] as number);
}

/** Mean of `x x^T` over the rows of `rows`, f32 `[count][size]`, each less `centre`. */
export function secondMoment(rows: Float32Array, size: number, centre: Float64Array): Float64Array {
  const count = rows.length / size;
  const out = new Float64Array(size * size);
  const x = new Float64Array(size);
  for (let row = 0; row < count; row++) {
    for (let i = 0; i < size; i++) x[i] = (rows[row * size + i] as number) - (centre[i] as number);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) out[i * size + j]! += (x[i] as number) * (x[j] as number);
    }
  }
  return out.map((sum) => sum / count);
}

function valueAt(matrix: Float64Array, size: number, i: number): number {
  return matrix[i * size + i] as number;
}

function isDiagonal(matrix: Float64Array, size: number): boolean {
  let [on, off] = [0, 0];
  for (let at = 0; at < matrix.length; at++) {
    const square = (matrix[at] as number) ** 2;
    if (at % (size + 1) === 0) on += square;
    else off += square;
  }
  return off <= on * 1e-24;
}

/** One Jacobi rotation, which makes element (p, q) zero; rows of `vectors` turn along. */
function rotate(matrix: Float64Array, vectors: Float64Array, size: number, p: number, q: number): void {
  const off = matrix[p * size + q] as number;
  if (off === 0) return;
  const theta = (valueAt(matrix, size, q) - valueAt(matrix, size, p)) / (2 * off);
  const tangent = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const cosine = 1 / Math.sqrt(tangent * tangent + 1);
  const sine = tangent * cosine;
  for (let k = 0; k < size; k++) {
    turn(matrix, k * size + p, k * size + q, cosine, sine);
  }
  for (let k = 0; k < size; k++) {
    turn(matrix, p * size + k, q * size + k, cosine, sine);
    turn(vectors, p * size + k, q * size + k, cosine, sine);
  }
}

function turn(values: Float64Array, a: number, b: number, cosine: number, sine: number): void {
  const [x, y] = [values[a] as number, values[b] as number];
  values[a] = cosine * x - sine * y;
  values[b] = sine * x + cosine * y;
}
