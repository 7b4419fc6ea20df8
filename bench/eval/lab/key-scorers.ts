/**
 * Scores of tokens from fewer bits than their keys have: chosen channels (Double Sparsity, arXiv 2408.07092), principal
 * directions (Loki, 2406.02542), one bit for each channel after a rotation (RaBitQ, 2405.12497), codebooks (PQCache, 2407.12820). All without training.
 */
import { BLOCK_TOKENS, PAGE_TOKENS } from "../../../kernels/contract.ts";
import { seededRandom } from "../../random.ts";
import { codebookOf, nearest } from "./codebook.ts";
import type { HeadSample, Scorer } from "./scorer.ts";
import { powerOf, product, secondMoment, spectrumOf, transposed } from "./symmetric.ts";

/** Keys and queries in coordinates of which the first say most about their dot products. */
export interface Basis {
  /** Subtracted from keys first; a softmax does not notice. */
  centre: Float64Array;
  /** Row-major `[width][headDim]`. */
  ofKeys: Float64Array;
  ofQueries: Float64Array;
  width: number;
}

/** What keys look like once their codes are read, f32 `[tokenCount][width]`, in place. */
type Coder = (values: Float32Array, width: number) => void;

/** What a page is worth by its tokens: the logarithm of the sum of their exponentials, or the best one's, which a device has in integers. */
export type PageWorth = "sum" | "best";

/** A scorer of tokens, taken one by one or in pages. */
export function keyScorer(options: {
  name: string;
  unitTokens: number;
  bytesPerToken: number;
  basis: Basis;
  code: Coder;
  worth?: PageWorth;
}): Scorer {
  const { name, unitTokens, bytesPerToken, basis, code, worth } = options;
  const { width } = basis;
  return {
    ...{ name, unitTokens, bytesPerToken, combine: "softmax-sum" },
    index: (keys, headDim) => {
      const decoded = projectedKeys(keys, headDim, basis);
      code(decoded, width);
      return (query) =>
        unitScores(decoded, projected(query, 0, headDim, basis.ofQueries, width), { headDim, unitTokens, worth });
    },
  };
}

/** The channels in which `|q_i| |k_i|` is largest on average, `count` of them. */
export function channelBasis({ keys, queries }: HeadSample, headDim: number, count: number): Basis {
  const centre = meanOf(keys, headDim);
  const strength = Float64Array.from({ length: headDim }, (_, channel) => {
    return meanDistance(keys, headDim, channel, centre[channel] as number) * meanDistance(queries, headDim, channel, 0);
  });
  const channels = [...strength.keys()].sort((a, b) => (strength[b] as number) - (strength[a] as number) || a - b);
  const matrix = new Float64Array(count * headDim);
  for (let row = 0; row < count; row++) matrix[row * headDim + (channels[row] as number)] = 1;
  return { centre, ofKeys: matrix, ofQueries: matrix, width: count };
}

/** The directions in which keys differ most, `count` of them. */
export function principalBasis({ keys }: HeadSample, headDim: number, count: number): Basis {
  const centre = meanOf(keys, headDim);
  const matrix = spectrumOf(secondMoment(keys, headDim, centre), headDim).vectors.slice(0, count * headDim);
  return { centre, ofKeys: matrix, ofQueries: matrix, width: count };
}

/**
 * The directions in which dot products of queries and keys differ most: singular vectors of `Q^1/2 K^1/2`, second moments. Coordinates of queries have
 * a mean square of 1, so that an error in any coordinate of a key costs as much as one in any other.
 */
export function jointBasis({ keys, queries }: HeadSample, headDim: number, count: number): Basis {
  const centre = meanOf(keys, headDim);
  const ofQuery = secondMoment(queries, headDim, new Float64Array(headDim));
  const ofKey = secondMoment(keys, headDim, centre);
  const rootQuery = powerOf(ofQuery, headDim, 0.5);
  // The left singular vectors U of Q^1/2 K^1/2 are the eigenvectors of Q^1/2 K Q^1/2. Keys become U^T Q^1/2 k, queries U^T Q^-1/2 q.
  const { vectors } = spectrumOf(product(product(rootQuery, ofKey, headDim), rootQuery, headDim), headDim);
  const all = {
    ...{ centre, width: headDim },
    ofKeys: product(vectors, rootQuery, headDim),
    ofQueries: product(vectors, powerOf(ofQuery, headDim, -0.5), headDim),
  };
  return narrowed(all, headDim, count);
}

/** The first `count` directions of a basis. */
export function narrowed(basis: Basis, headDim: number, count: number): Basis {
  const cut = (matrix: Float64Array): Float64Array => matrix.slice(0, count * headDim);
  return { centre: basis.centre, ofKeys: cut(basis.ofKeys), ofQueries: cut(basis.ofQueries), width: count };
}

/** All directions, turned at random: what is in few channels is then in all. */
export function rotatedBasis({ keys }: HeadSample, headDim: number, seed: number): Basis {
  const random = seededRandom(seed);
  const noise = Float64Array.from({ length: headDim * headDim }, () => random() + random() + random() - 1.5);
  // The orthogonal factor of a random matrix: (N N^T)^-1/2 N.
  const turned = product(powerOf(product(noise, transposed(noise, headDim), headDim), headDim, -0.5), noise, headDim);
  return { centre: meanOf(keys, headDim), ofKeys: turned, ofQueries: turned, width: headDim };
}

/** `2^bits` even steps from the least to the largest value of each coordinate within a block. */
export function evenSteps(bits: number): Coder {
  return (values, width) => {
    const blockLength = BLOCK_TOKENS * width;
    for (let from = 0; from < values.length; from += blockLength) {
      const end = Math.min(values.length, from + blockLength);
      for (let coordinate = 0; coordinate < width; coordinate++) {
        let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
        for (let at = from + coordinate; at < end; at += width) {
          least = Math.min(least, values[at] as number);
          most = Math.max(most, values[at] as number);
        }
        const step = (most - least) / (2 ** bits - 1);
        for (let at = from + coordinate; at < end && step > 0; at += width) {
          values[at] = least + Math.round(((values[at] as number) - least) / step) * step;
        }
      }
    }
  };
}

/** `2^bits` even steps over two standard deviations to either side, for each coordinate those of the sample: nothing is stored beside the codes. */
export function fixedSteps(bits: number, basis: Basis, { keys }: HeadSample, headDim: number): Coder {
  const sample = projectedKeys(keys, headDim, basis);
  const { width } = basis;
  const steps = Float64Array.from({ length: width }, (_, coordinate) => {
    let squares = 0;
    for (let at = coordinate; at < sample.length; at += width) squares += (sample[at] as number) ** 2;
    return (4 * Math.sqrt(squares / (sample.length / width))) / 2 ** bits;
  });
  const half = 2 ** (bits - 1);
  return (values) => {
    for (let at = 0; at < values.length; at++) {
      const step = steps[at % width] as number;
      const code = Math.max(-half, Math.min(half - 1, Math.floor((values[at] as number) / step)));
      values[at] = (code + 0.5) * step;
    }
  };
}

/**
 * The sign of every coordinate, times a length for each token, 8 bits of the largest of its page: the length at which the signs' dot product with the
 * vector itself is right.
 */
export function signs(): Coder {
  return (values, width) => {
    const lengths = Float64Array.from({ length: values.length / width }, (_, token) => {
      let [squares, sum] = [0, 0];
      for (let at = token * width; at < (token + 1) * width; at++) {
        squares += (values[at] as number) ** 2;
        sum += Math.abs(values[at] as number);
      }
      return sum === 0 ? 0 : squares / sum;
    });
    for (let token = 0; token < lengths.length; token++) {
      const page = Math.floor(token / PAGE_TOKENS) * PAGE_TOKENS;
      const scale = Math.max(...lengths.subarray(page, page + PAGE_TOKENS)) / 255;
      const length = scale === 0 ? 0 : Math.round((lengths[token] as number) / scale) * scale;
      for (let at = token * width; at < (token + 1) * width; at++)
        values[at] = (values[at] as number) < 0 ? -length : length;
    }
  };
}

/** `parts` codes of one of `size` centroids each, of coordinates dealt out like cards, so that every part has strong and weak ones. */
export function codebooks(options: {
  parts: number;
  size: number;
  basis: Basis;
  sample: HeadSample;
  headDim: number;
  seed: number;
}): Coder {
  const { parts, size, basis, sample, headDim, seed } = options;
  const partWidth = basis.width / parts;
  const known = projectedKeys(sample.keys, headDim, basis);
  const books = Array.from({ length: parts }, (_, part) =>
    codebookOf(dealt(known, basis.width, parts, part), partWidth, size, seededRandom(seed, part)),
  );
  return (values, width) => {
    for (const [part, book] of books.entries()) {
      const own = dealt(values, width, parts, part);
      for (let token = 0; token < values.length / width; token++) {
        const code = nearest(own, token * partWidth, book, partWidth);
        for (let at = 0; at < partWidth; at++)
          values[token * width + at * parts + part] = book[code * partWidth + at] as number;
      }
    }
  };
}

/** Coordinates `part`, `part + parts`, ... of every row. */
function dealt(values: Float32Array, width: number, parts: number, part: number): Float32Array {
  const partWidth = width / parts;
  return Float32Array.from({ length: values.length / parts }, (_, at) => {
    return values[Math.floor(at / partWidth) * width + (at % partWidth) * parts + part] as number;
  });
}

/** `log sum exp(q.k / sqrt(headDim))` of each unit's tokens, or their largest; the last unit may be short. `rows`: f32 `[tokenCount][query.length]`. */
export function unitScores(
  rows: Float32Array,
  query: Float64Array | Float32Array,
  { headDim, unitTokens, worth = "sum" }: { headDim: number; unitTokens: number; worth?: PageWorth | undefined },
): Float64Array {
  const width = query.length;
  const tokenCount = rows.length / width;
  const scale = 1 / Math.sqrt(headDim);
  const tokens = new Float64Array(tokenCount);
  for (let token = 0; token < tokenCount; token++) {
    let dot = 0;
    for (let at = 0; at < width; at++) dot += (query[at] as number) * (rows[token * width + at] as number);
    tokens[token] = dot * scale;
  }
  if (unitTokens === 1) return tokens;
  return Float64Array.from({ length: Math.ceil(tokenCount / unitTokens) }, (_, unit) => {
    const own = tokens.subarray(unit * unitTokens, (unit + 1) * unitTokens);
    const max = own.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    return worth === "best" ? max : max + Math.log(own.reduce((sum, score) => sum + Math.exp(score - max), 0));
  });
}

function projectedKeys(keys: Float32Array, headDim: number, { centre, ofKeys, width }: Basis): Float32Array {
  const out = new Float32Array((keys.length / headDim) * width);
  const offset = projected(centre, 0, headDim, ofKeys, width);
  for (let row = 0; row < keys.length / headDim; row++) {
    const own = projected(keys, row * headDim, headDim, ofKeys, width);
    for (let at = 0; at < width; at++) out[row * width + at] = (own[at] as number) - (offset[at] as number);
  }
  return out;
}

function projected(
  values: Float32Array | Float64Array,
  from: number,
  headDim: number,
  matrix: Float64Array,
  width: number,
): Float64Array {
  const out = new Float64Array(width);
  for (let row = 0; row < width; row++) {
    let dot = 0;
    for (let at = 0; at < headDim; at++) dot += (matrix[row * headDim + at] as number) * (values[from + at] as number);
    out[row] = dot;
  }
  return out;
}

/** Mean of each channel, f32 `[count][headDim]`. */
export function meanOf(rows: Float32Array, headDim: number): Float64Array {
  const sums = new Float64Array(headDim);
  for (let at = 0; at < rows.length; at++) sums[at % headDim]! += rows[at] as number;
  return sums.map((sum) => sum / (rows.length / headDim));
}

function meanDistance(rows: Float32Array, headDim: number, channel: number, centre: number): number {
  let sum = 0;
  for (let at = channel; at < rows.length; at += headDim) sum += Math.abs((rows[at] as number) - centre);
  return sum / (rows.length / headDim);
}
