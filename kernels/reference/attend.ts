import { decodeKeys, decodeValues } from "../block-codec.ts";
import {
  BLOCK_TOKENS,
  NOT_RESIDENT,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SliceTraffic,
  SPLIT_TOKENS,
  type StepSlice,
} from "../contract.ts";
import { groupKvBytes } from "../traffic.ts";
import type { ReferencePool } from "./memory.ts";
import type { GroupSelection } from "./select.ts";

/** Arrays of one `attend`; rows are those of the whole step. */
export interface AttendArgs {
  pool: ReferencePool;
  layer: number;
  headCount: number;
  /** f32 `[rows, headCount, headDim]`, post-RoPE. */
  q: Float32Array;
  /** As `q`. */
  out: Float32Array;
}

/** Softmax-weighted values seen so far: `output` is the sum of `exp(score - max) * value`, `sum` that of the weights. All f32. */
interface Partial {
  max: number;
  sum: number;
  output: Float32Array;
}

/** Keys and values of one block and KV head as rows may read them. */
interface BlockView {
  block: number;
  /** Tokens of the block that are attended as far as causality allows, ascending. */
  tokens: number[];
  /** Decoded; undefined where the block is not resident, or is not sealed before the last row. */
  sealed?: { keys: Float32Array; values: Float32Array };
  /** The open slot's; undefined for blocks before the slice. */
  open?: { keys: Float32Array; values: Float32Array };
}

/** Causal attention of every query group over what `select` chose. Adds the bytes of K and V to `traffic`. */
export function attend(
  args: AttendArgs,
  slices: readonly StepSlice[],
  selections: readonly GroupSelection[],
  traffic: readonly SliceTraffic[],
): void {
  for (const selection of selections) {
    const slice = slices[selection.sliceIndex] as StepSlice;
    const blocks = blockViews(args, slice, selection);
    const isResident = (block: number): boolean => blockIdOf(args, slice, block) !== NOT_RESIDENT;
    (traffic[selection.sliceIndex] as SliceTraffic).kvBytes += groupKvBytes(
      args.pool.spec,
      selection.group,
      selection,
      isResident,
    );
    const headsPerKvHead = args.headCount / args.pool.spec.kvHeadCount;
    const scratch = { scores: new Float32Array(BLOCK_TOKENS), output: new Float64Array(args.pool.spec.headDim) };
    for (let index = 0; index < selection.group.rowCount; index++) {
      for (let head = 0; head < headsPerKvHead; head++) {
        const at =
          ((selection.firstRow + index) * args.headCount + selection.kvHead * headsPerKvHead + head) *
          args.pool.spec.headDim;
        const query = args.q.subarray(at, at + args.pool.spec.headDim);
        args.out.set(attendRow(query, selection.group.positionFirst + index, blocks, scratch), at);
      }
    }
  }
}

/** Blocks merge into splits of {@link SPLIT_TOKENS} positions, splits into the result, both ascending. No attended token: zeros. */
function attendRow(
  query: Float32Array,
  position: number,
  blocks: readonly BlockView[],
  scratch: BlockScratch,
): Float32Array {
  const ownBlock = Math.floor(position / BLOCK_TOKENS);
  const total = emptyPartial(query.length);
  let split = emptyPartial(query.length);
  let splitIndex = 0;
  for (const view of blocks) {
    if (view.block > ownBlock) break;
    const source = view.block === ownBlock ? view.open : view.sealed;
    if (source === undefined) continue;
    const viewSplit = Math.floor((view.block * BLOCK_TOKENS) / SPLIT_TOKENS);
    if (viewSplit !== splitIndex) {
      merge(total, split);
      split = emptyPartial(query.length);
      splitIndex = viewSplit;
    }
    const tokenEnd = view.block === ownBlock ? (position % BLOCK_TOKENS) + 1 : BLOCK_TOKENS;
    merge(split, attendBlock(query, source, { tokens: view.tokens, tokenEnd }, scratch));
  }
  merge(total, split);
  return total.output.map((value) => (total.sum > 0 ? value / total.sum : 0));
}

/** What one block after the other is computed in. */
interface BlockScratch {
  /** `[BLOCK_TOKENS]` */
  scores: Float32Array;
  /** `[headDim]` */
  output: Float64Array;
}

function attendBlock(
  query: Float32Array,
  { keys, values }: { keys: Float32Array; values: Float32Array },
  { tokens, tokenEnd }: { tokens: readonly number[]; tokenEnd: number },
  { scores, output }: BlockScratch,
): Partial {
  const headDim = query.length;
  const root = Math.sqrt(headDim);
  let max = Number.NEGATIVE_INFINITY;
  for (const token of tokens) {
    if (token >= tokenEnd) break;
    const at = token * headDim;
    let dot = 0;
    for (let channel = 0; channel < headDim; channel++) {
      dot += (query[channel] as number) * (keys[at + channel] as number);
    }
    const score = Math.fround(dot / root);
    scores[token] = score;
    if (score > max) max = score;
  }
  const partial = emptyPartial(headDim);
  if (max === Number.NEGATIVE_INFINITY) return partial;
  output.fill(0);
  let sum = 0;
  for (const token of tokens) {
    if (token >= tokenEnd) break;
    const at = token * headDim;
    const weight = Math.fround(Math.exp((scores[token] as number) - max));
    sum += weight;
    for (let channel = 0; channel < headDim; channel++) {
      output[channel] = (output[channel] as number) + weight * (values[at + channel] as number);
    }
  }
  partial.max = max;
  partial.sum = Math.fround(sum);
  partial.output.set(output);
  return partial;
}

function emptyPartial(headDim: number): Partial {
  return { max: Number.NEGATIVE_INFINITY, sum: 0, output: new Float32Array(headDim) };
}

/** Adds `next` to `into`; an empty partial changes nothing, not even by rounding. */
function merge(into: Partial, next: Partial): void {
  if (next.max === Number.NEGATIVE_INFINITY) return;
  const max = Math.max(into.max, next.max);
  const keep = Math.fround(Math.exp(into.max - max));
  const add = Math.fround(Math.exp(next.max - max));
  into.max = max;
  into.sum = Math.fround(Math.fround(into.sum * keep) + Math.fround(next.sum * add));
  for (let channel = 0; channel < into.output.length; channel++) {
    into.output[channel] =
      Math.fround((into.output[channel] as number) * keep) + Math.fround((next.output[channel] as number) * add);
  }
}

function blockIdOf({ layer }: AttendArgs, slice: StepSlice, block: number): number {
  return slice.blockIds[layer * slice.blockCapacity + block] ?? NOT_RESIDENT;
}

/** The blocks that hold something attended, ascending, decoded once for all rows and heads of the group. */
function blockViews(
  args: AttendArgs,
  slice: StepSlice,
  { group, kvHead, pages, tokenMasks }: GroupSelection,
): BlockView[] {
  const { pool, layer } = args;
  const sliceBlock = Math.floor(slice.position / BLOCK_TOKENS);
  const lastBlock = Math.floor(group.positionLast / BLOCK_TOKENS);
  const views = new Map<number, BlockView>();
  const pageCount = pages?.length ?? Math.floor(group.positionLast / PAGE_TOKENS) + 1;
  for (let index = 0; index < pageCount; index++) {
    const page = pages?.[index] ?? index;
    const mask = tokenMasks?.[index] ?? 0xffff;
    const block = Math.floor(page / PAGES_PER_BLOCK);
    const view = views.get(block) ?? { block, tokens: [] };
    views.set(block, view);
    for (let token = 0; token < PAGE_TOKENS; token++) {
      if ((mask >> token) & 1) view.tokens.push((page % PAGES_PER_BLOCK) * PAGE_TOKENS + token);
    }
  }
  for (const view of views.values()) {
    const blockId = blockIdOf(args, slice, view.block);
    if (view.block < lastBlock && blockId !== NOT_RESIDENT) {
      const bytes = pool.block(blockId);
      view.sealed = { keys: decodeKeys(pool.spec, bytes, kvHead), values: decodeValues(pool.spec, bytes, kvHead) };
    }
    if (view.block >= sliceBlock) {
      const slot = slice.openSlots[view.block - sliceBlock] as number;
      view.open = { keys: pool.openKeys(slot, layer, kvHead), values: pool.openValues(slot, layer, kvHead) };
    }
  }
  return [...views.values()];
}
