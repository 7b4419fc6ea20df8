import { assert } from "../../protocol/assert.ts";
import { decodeKeys, encodeBlockHead } from "../block-codec.ts";
import { BLOCK_TOKENS, NOT_RESIDENT, type StepSlice } from "../contract.ts";
import { summarizeKeys } from "../summary-codec.ts";
import { sealedByStep } from "../validate.ts";
import type { ReferencePool } from "./memory.ts";

/** Arrays of one `append`; rows are those of the whole step. */
export interface AppendArgs {
  pool: ReferencePool;
  layer: number;
  headCount: number;
  /** f32 `[rows, headCount, headDim]`, rotated in place. */
  q: Float32Array;
  /** f32 `[rows, kvHeadCount, headDim]`, not changed. */
  k: Float32Array;
  v: Float32Array;
  /** f32 `[positionCount, headDim / 2]`. */
  cos: Float32Array;
  sin: Float32Array;
  positionCount: number;
}

/** RoPE on q and k, k and v into the open slots, and completed blocks sealed. */
export function append(args: AppendArgs, slices: readonly StepSlice[]): void {
  let firstRow = 0;
  for (const slice of slices) {
    assert(slice.position + slice.rowCount <= args.positionCount, "a row lies beyond the RoPE table");
    appendRows(args, slice, firstRow);
    sealBlocks(args, slice);
    firstRow += slice.rowCount;
  }
}

function appendRows(args: AppendArgs, slice: StepSlice, firstRow: number): void {
  const { kvHeadCount, headDim } = args.pool.spec;
  const blockFirst = Math.floor(slice.position / BLOCK_TOKENS);
  for (let index = 0; index < slice.rowCount; index++) {
    const row = firstRow + index;
    const position = slice.position + index;
    const slot = slice.openSlots[Math.floor(position / BLOCK_TOKENS) - blockFirst] as number;
    const token = position % BLOCK_TOKENS;
    for (let head = 0; head < args.headCount; head++) {
      const at = (row * args.headCount + head) * headDim;
      const query = args.q.subarray(at, at + headDim);
      query.set(rotate(args, query, position));
    }
    for (let kvHead = 0; kvHead < kvHeadCount; kvHead++) {
      const at = (row * kvHeadCount + kvHead) * headDim;
      const key = rotate(args, args.k.subarray(at, at + headDim), position);
      args.pool.openKeys(slot, args.layer, kvHead).set(key, token * headDim);
      args.pool.openValues(slot, args.layer, kvHead).set(args.v.subarray(at, at + headDim), token * headDim);
    }
  }
}

/** Half-split RoPE: channel i pairs with i + headDim/2. Products and sums rounded to f32. */
function rotate({ cos, sin }: Pick<AppendArgs, "cos" | "sin">, x: Float32Array, position: number): Float32Array {
  const half = x.length / 2;
  const out = new Float32Array(x.length);
  for (let channel = 0; channel < half; channel++) {
    const c = cos[position * half + channel] as number;
    const s = sin[position * half + channel] as number;
    const low = x[channel] as number;
    const high = x[channel + half] as number;
    out[channel] = Math.fround(low * c) - Math.fround(high * s);
    out[channel + half] = Math.fround(high * c) + Math.fround(low * s);
  }
  return out;
}

function sealBlocks({ pool, layer }: AppendArgs, slice: StepSlice): void {
  const sealed = sealedByStep(slice);
  for (let block = sealed.first; block < sealed.end; block++) {
    const slot = slice.openSlots[block - sealed.first] as number;
    const bytes = pool.block(slice.blockIds[layer * slice.blockCapacity + block] as number);
    const summarySlot = slice.summarySlots[block] ?? NOT_RESIDENT;
    for (let kvHead = 0; kvHead < pool.spec.kvHeadCount; kvHead++) {
      encodeBlockHead(
        pool.spec,
        bytes,
        kvHead,
        pool.openKeys(slot, layer, kvHead),
        pool.openValues(slot, layer, kvHead),
      );
      if (summarySlot === NOT_RESIDENT) continue;
      const keys = decodeKeys(pool.spec, bytes, kvHead);
      for (const kind of pool.spec.summaryKinds) {
        const bytes = summarizeKeys(kind, keys, pool.spec.headDim);
        pool.setSummary(summarySlot, kind, { layer, kvHead, bytes });
      }
    }
  }
}
