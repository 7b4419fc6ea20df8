/**
 * The names of a prompt's blocks, as engines compute them (`engine/kv/chain.ts` says how), for routing: `chain[b] = SHA256(chain[b-1] | 64 u32 |
 * ids u32[64] | provenance utf-8)`. Only whole blocks are named.
 */
import type { Span } from "./generate.ts";
import { Sha256 } from "./sha256.ts";

/** Tokens of a block (`BLOCK_TOKENS` of the kernels). */
const BLOCK_TOKENS = 64;
/** SHA-256 of the words that every chain starts with. */
const CHAIN_ROOT_WORDS = "quire chain 1";
const DENSE = "dense";
const utf8 = new TextEncoder();

/** A budget in a `how`: what lies below it is dense. */
function budgetOf(how: string): number {
  return how === DENSE ? Number.POSITIVE_INFINITY : Number(/:(\d+)@/.exec(how)?.[1]);
}

/**
 * The provenance of tokens `[from, to)` as text: runs `<offset of end>:<how>` joined by `;`, canonical: what a budget makes dense is called
 * dense, and neighbouring dense runs are one. `spans` ascend without holes.
 */
export function describeSpans(spans: readonly Span[], from: number, to: number): string {
  const runs: { end: number; how: string }[] = [];
  const push = (end: number, how: string): void => {
    const last = runs.at(-1);
    if (last && last.how === DENSE && how === DENSE) last.end = end - from;
    else runs.push({ end: end - from, how });
  };
  let start = 0;
  for (const { end, how } of spans) {
    const [first, last] = [Math.max(start, from), Math.min(end, to)];
    start = end;
    if (first >= last) continue;
    const denseEnd = budgetOf(how);
    if (first < denseEnd) push(Math.min(last, denseEnd), DENSE);
    if (last > denseEnd) push(last, how);
  }
  return runs.map((run) => `${run.end}:${run.how}`).join(";");
}

/** What one takes in memory: 64 ids, a chain, its provenance, and the objects around them. */
const NAMED_BLOCK_BYTES = 768;

interface NamedBlock {
  ids: Uint32Array;
  provenance: string;
  chain: Uint8Array;
}

/** Names blocks, and remembers those of the last prompt: the next one mostly goes on from it. */
export class BlockChain {
  readonly #sha = new Sha256();
  readonly #blocks: NamedBlock[] = [];
  readonly #root = this.#sha.digest(utf8.encode(CHAIN_ROOT_WORDS));

  /** Chains (32 bytes each) of the whole blocks of `ids`, at most `blockCountMax`; `spans` cover `ids`. */
  of(ids: Uint32Array, spans: readonly Span[], blockCountMax: number): Uint8Array[] {
    const count = Math.min(Math.floor(ids.length / BLOCK_TOKENS), blockCountMax);
    for (let index = 0; index < count; index++) {
      const block = ids.subarray(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS);
      const provenance = describeSpans(spans, index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS);
      const known = this.#blocks[index];
      if (known && known.provenance === provenance && known.ids.every((id, at) => id === block[at])) continue;
      this.#blocks.length = index;
      this.#blocks.push({ ids: block.slice(), provenance, chain: this.#next(block, provenance) });
    }
    return this.#blocks.slice(0, count).map(({ chain }) => chain);
  }

  /** What it remembers, about. */
  get bytes(): number {
    return this.#blocks.length * NAMED_BLOCK_BYTES;
  }

  #next(block: Uint32Array, provenance: string): Uint8Array {
    const previous = this.#blocks.at(-1)?.chain ?? this.#root;
    const count = new Uint8Array(Uint32Array.of(block.length).buffer);
    const bytes = new Uint8Array(block.buffer, block.byteOffset, block.byteLength);
    return this.#sha.digest(previous, count, bytes, utf8.encode(provenance));
  }
}
