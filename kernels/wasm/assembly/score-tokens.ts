// Token scores of selection: raw q.k against the decoded keys of kept pages. The unit record is described in units.ts.
import { arg, argAt, scratchOf } from "./control";
import { scoreTokens } from "./dot";
import { decodeKeys } from "./kv-decode";
import { at, UNIT_BYTES, word } from "./units";

/**
 * Raw scores q.k of the tokens of kept pages, all of them resident. Task = unit * chunks + chunk of kept pages.
 * args: units, chunks, pages of a chunk, headCount, heads per KV head, headDim, blocks, block bytes, int8?, offset of key scales,
 * KV head count, q, layer
 */
export function scoreTokensTask(task: i32, thread: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const pageCount = word(unit, 24) >> 4;
  const blockIds = at(unit, 104) + (<usize>arg(12) * at(unit, 108) << 2);
  const first = (task % arg(1)) * arg(2);
  const end = min(pageCount, first + arg(2));
  for (let index = first; index < end; index++) {
    const page = at(at(unit, 64) + ((<usize>index) << 2), 0);
    const id = at(blockIds + ((page >> 2) << 2), 0);
    for (let head = 0; head < arg(10); head++) scorePageTokens(unit, index, <usize>(page & 3) * 16, id, head, thread);
  }
}

function scorePageTokens(unit: usize, index: i32, token: usize, id: usize, kvHead: i32, thread: i32): void {
  const headDim = <usize>arg(5);
  const group = arg(4);
  const heads = word(unit, 12);
  const stride = at(unit, 40) << 2;
  const block = argAt(6) + id * argAt(7);
  let keys = block + (<usize>kvHead * 64 + token) * headDim * 4;
  if (arg(8) != 0) {
    const scales = block + argAt(9) + <usize>kvHead * headDim * 4;
    decodeKeys(scratchOf(thread), block + <usize>kvHead * 64 * headDim, scales, headDim, token, token + 16);
    keys = scratchOf(thread) + token * headDim * 4;
  }
  const queryFirst = word(unit, 4);
  const queryEnd = queryFirst + word(unit, 8);
  const raw = at(unit, 32) + ((<usize>index) << 6);
  for (let row = queryFirst / heads; row * heads < queryEnd; row++) {
    const first = max(queryFirst, row * heads + kvHead * group);
    const end = min(queryEnd, row * heads + (kvHead + 1) * group);
    if (first >= end) continue;
    const q = argAt(11) + (at(unit, 0) + <usize>(row * arg(3) + first - row * heads)) * headDim * 4;
    scoreTokens(raw + <usize>(first - queryFirst) * stride, stride, q, end - first, keys, 16, headDim, 1);
  }
}
