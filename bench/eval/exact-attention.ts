/** Attention over everything, on the host and in doubles, from the keys and values that a device holds: what selections are judged by. */
import { decodeKeys, decodeValues } from "../../kernels/block-codec.ts";
import { BLOCK_TOKENS, type KvPool, PAGE_TOKENS, type StepSlice } from "../../kernels/contract.ts";

/** Keys and values of one block and layer: f32 `[64][headDim]` per KV head. */
interface HeadBlocks {
  keys: Float32Array[];
  values: Float32Array[];
}

/** One query row's attention in one layer. */
export interface LayerAttention {
  /** Softmax weights, `[headCount][tokenCount]`; each sums to 1. */
  weights: Float64Array[];
  /** Mean weight of the heads of a KV head per page, `[kvHeadCount][pageCount]`; each sums to 1. */
  pageMass: Float64Array[];
}

/** What a head attends to: ascending pages, and for token plans which of their tokens. */
export interface AttendedPages {
  pages: readonly number[];
  /** Bit t of entry i: token t of `pages[i]`; absent: all. */
  tokenMasks?: readonly number[] | undefined;
}

/** The keys and values up to one row of a sequence whose blocks are all resident. Sealed blocks are read and decoded once. */
export class ExactAttention {
  readonly #pool: KvPool;
  readonly #sealed = new Map<number, HeadBlocks>();
  /** The row's own block, per layer. */
  #own: HeadBlocks[] = [];
  #slice: StepSlice | undefined;

  constructor(pool: KvPool) {
    this.#pool = pool;
  }

  /** Goes to a row; `slice` is of this one row. */
  async moveTo(slice: StepSlice): Promise<void> {
    const { layerCount, kvHeadCount, headDim } = this.#pool.spec;
    this.#slice = slice;
    const ownBlock = Math.floor(slice.position / BLOCK_TOKENS);
    for (let layer = 0; layer < layerCount; layer++) {
      for (let block = 0; block < ownBlock; block++) await this.#readSealed(layer * slice.blockCapacity + block);
    }
    const tokenCount = slice.position - ownBlock * BLOCK_TOKENS + 1;
    const bytes = await this.#pool.readOpen(slice.openSlots[0] as number, tokenCount);
    const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const each = tokenCount * headDim;
    const half = layerCount * kvHeadCount * each;
    const heads = (layer: number, from: number) =>
      Array.from({ length: kvHeadCount }, (_, head) => {
        const at = from + (layer * kvHeadCount + head) * each;
        return floats.subarray(at, at + each);
      });
    this.#own = Array.from({ length: layerCount }, (_, layer) => ({
      keys: heads(layer, 0),
      values: heads(layer, half),
    }));
  }

  /** The attention of the row's queries `[headCount, headDim]` in a layer. */
  attend(layer: number, queries: Float32Array): LayerAttention {
    const { headDim, kvHeadCount } = this.#pool.spec;
    const headCount = queries.length / headDim;
    const group = headCount / kvHeadCount;
    const weights = Array.from({ length: headCount }, (_, head) => {
      const query = queries.subarray(head * headDim, (head + 1) * headDim);
      return softmax(this.#scores(layer, Math.floor(head / group), query));
    });
    const pageCount = Math.ceil((weights[0] as Float64Array).length / PAGE_TOKENS);
    const pageMass = Array.from({ length: kvHeadCount }, () => new Float64Array(pageCount));
    weights.forEach((row, head) => {
      const mass = pageMass[Math.floor(head / group)] as Float64Array;
      row.forEach((weight, token) => {
        mass[Math.floor(token / PAGE_TOKENS)]! += weight / group;
      });
    });
    return { weights, pageMass };
  }

  /** The output of one head over some tokens alone, `[headDim]`; all of them without `attended`. */
  output(layer: number, kvHead: number, weights: Float64Array, attended?: AttendedPages): Float64Array {
    const { headDim } = this.#pool.spec;
    const output = new Float64Array(headDim);
    let total = 0;
    for (const token of attended === undefined ? weights.keys() : attendedTokens(attended, weights.length)) {
      const weight = weights[token] as number;
      const values = this.#block(layer, Math.floor(token / BLOCK_TOKENS)).values[kvHead] as Float32Array;
      const at = (token % BLOCK_TOKENS) * headDim;
      total += weight;
      for (let channel = 0; channel < headDim; channel++) {
        output[channel]! += weight * (values[at + channel] as number);
      }
    }
    return output.map((value) => value / total);
  }

  #scores(layer: number, kvHead: number, query: Float32Array): Float64Array {
    const { headDim } = this.#pool.spec;
    const tokenCount = (this.#slice as StepSlice).position + 1;
    const scores = new Float64Array(tokenCount);
    for (let token = 0; token < tokenCount; token += BLOCK_TOKENS) {
      const keys = this.#block(layer, token / BLOCK_TOKENS).keys[kvHead] as Float32Array;
      const end = Math.min(BLOCK_TOKENS, tokenCount - token);
      for (let row = 0; row < end; row++) {
        let dot = 0;
        for (let channel = 0; channel < headDim; channel++) {
          dot += (query[channel] as number) * (keys[row * headDim + channel] as number);
        }
        scores[token + row] = dot / Math.sqrt(headDim);
      }
    }
    return scores;
  }

  #block(layer: number, block: number): HeadBlocks {
    const { position, blockCapacity } = this.#slice as StepSlice;
    const isOwn = block === Math.floor(position / BLOCK_TOKENS);
    return (isOwn ? this.#own[layer] : this.#sealed.get(layer * blockCapacity + block)) as HeadBlocks;
  }

  async #readSealed(index: number): Promise<void> {
    if (this.#sealed.has(index)) return;
    const { spec } = this.#pool;
    const bytes = await this.#pool.readBlock((this.#slice as StepSlice).blockIds[index] as number);
    const heads = Array.from({ length: spec.kvHeadCount }, (_, head) => head);
    this.#sealed.set(index, {
      keys: heads.map((head) => decodeKeys(spec, bytes, head)),
      values: heads.map((head) => decodeValues(spec, bytes, head)),
    });
  }
}

/** Tokens below `tokenCount` that are attended, ascending. */
export function* attendedTokens({ pages, tokenMasks }: AttendedPages, tokenCount: number): Generator<number> {
  for (const [index, page] of pages.entries()) {
    const mask = tokenMasks?.[index] ?? 0xffff;
    for (let bit = 0; bit < PAGE_TOKENS; bit++) {
      const token = page * PAGE_TOKENS + bit;
      if ((mask >> bit) & 1 && token < tokenCount) yield token;
    }
  }
}

/** Weights that sum to 1. */
export function softmax(scores: Float64Array): Float64Array {
  const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const weights = scores.map((score) => Math.exp(score - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}
