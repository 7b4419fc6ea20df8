/** Codebooks by k-means: what product quantization replaces parts of a vector with (Jégou et al. 2011; for keys, PQCache, arXiv 2407.12820). */
import { drawInteger, type Random } from "../../random.ts";

const ROUNDS = 12;

/** Centroids of the rows of `rows`, f32 `[count][width]`: `[size][width]`, from starts drawn with `random`; an empty one stays where it was. */
export function codebookOf(rows: Float32Array, width: number, size: number, random: Random): Float32Array {
  const count = rows.length / width;
  const centroids = new Float32Array(size * width);
  for (let code = 0; code < size; code++) {
    const row = drawInteger(random, { min: 0, max: count - 1 });
    centroids.set(rows.subarray(row * width, (row + 1) * width), code * width);
  }
  for (let round = 0; round < ROUNDS; round++) {
    const sums = new Float64Array(size * width);
    const counts = new Uint32Array(size);
    for (let row = 0; row < count; row++) {
      const code = nearest(rows, row * width, centroids, width);
      counts[code]! += 1;
      for (let at = 0; at < width; at++) sums[code * width + at]! += rows[row * width + at] as number;
    }
    for (let code = 0; code < size; code++) {
      const of = counts[code] as number;
      for (let at = 0; at < width && of > 0; at++)
        centroids[code * width + at] = (sums[code * width + at] as number) / of;
    }
  }
  return centroids;
}

/** Index of the centroid next to the vector at `from`, the first of equals. */
export function nearest(values: Float32Array, from: number, centroids: Float32Array, width: number): number {
  let [best, least] = [0, Number.POSITIVE_INFINITY];
  for (let code = 0; code * width < centroids.length; code++) {
    let distance = 0;
    for (let at = 0; at < width; at++) {
      const difference = (values[from + at] as number) - (centroids[code * width + at] as number);
      distance += difference * difference;
    }
    if (distance < least) [best, least] = [code, distance];
  }
  return best;
}
