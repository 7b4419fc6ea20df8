/** Tells the edge which prefixes lie on the device or in host memory, so that turns are sent to where their pages are. */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { PrefixFilter, type PrefixKey, prefixKeyOf, ROUTE_STRIDE_TOKENS } from "../../protocol/prefix-filter.ts";
import type { LogicalBlock } from "./logical-block.ts";

const STRIDE_BLOCKS = ROUTE_STRIDE_TOKENS / BLOCK_TOKENS;

/** A filter of the routing points whose block is here in all layers, base64; `blocks` are published, so keyed `namespace:chain`. */
export function residentPrefixes(blocks: Iterable<LogicalBlock>): string {
  const keys: PrefixKey[] = [];
  for (const { key, index, isHere } of blocks) {
    if (key === undefined || !isHere || (index + 1) % STRIDE_BLOCKS !== 0) continue;
    const [namespace = "", chain = ""] = key.split(":");
    const word = (at: number): number => Number.parseInt(chain.slice(at, at + 8), 16);
    keys.push(prefixKeyOf(namespace, word(0), word(8)));
  }
  return PrefixFilter.of(keys, LIMITS.prefixFilterBytesMax).encode();
}
