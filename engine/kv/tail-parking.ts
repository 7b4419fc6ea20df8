/** Moves the unsealed end of a finished turn between its sequence and the idle tails. */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { detached } from "../../protocol/detached.ts";
import type { Sequence } from "../sequence/sequence.ts";
import type { OpenBlocks } from "./open-blocks.ts";

/** Keeps the last open block of a sequence for the next turn. */
export function parkTail(sequence: Sequence, opens: OpenBlocks): void {
  const index = Math.floor(sequence.computedCount / BLOCK_TOKENS);
  const open = sequence.opens.get(index);
  if (!open) return;
  sequence.opens.delete(index);
  const { spans } = sequence;
  const from = index * BLOCK_TOKENS;
  opens.park(tailKey(sequence, index), {
    slot: open.slot,
    owner: sequence.sessionKey && detached(sequence.sessionKey),
    ids: sequence.ids.slice(from, from + open.tokenCount),
    describe: (tokenCount) => spans.describeWhole(from, tokenCount),
  });
}

/** Takes over the tail that follows block `index - 1`, for at most `limit` tokens of the sequence. */
export function claimTail(sequence: Sequence, opens: OpenBlocks, options: { index: number; limit: number }): void {
  const from = options.index * BLOCK_TOKENS;
  const describe = (tokenCount: number) => sequence.spans.describeWhole(from, tokenCount);
  const ids = sequence.ids.subarray(from, from + BLOCK_TOKENS);
  const open = opens.claim(tailKey(sequence, options.index), ids, describe, options.limit);
  if (open) sequence.opens.set(options.index, open);
}

function tailKey(sequence: Sequence, index: number): string {
  return `${sequence.namespace}:${sequence.chain(index - 1)}`;
}
