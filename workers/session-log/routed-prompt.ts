/** What the fleet is told of a prompt, so that the turn goes to where its pages are. */
import { BlockChain } from "../../protocol/block-chain.ts";
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { type PrefixKey, packPrefixKeys, prefixKeyOf, ROUTE_STRIDE_TOKENS } from "../../protocol/prefix-filter.ts";
import type { RoutedPrompt } from "../fleet-table.ts";

const STRIDE_BLOCKS = ROUTE_STRIDE_TOKENS / 64;

/** A prompt as a turn is about to send it. */
export interface PromptToRoute {
  namespace: string;
  tokens: Uint32Array;
  /** Tokens of earlier turns, which `spans` cover. */
  turnStart: number;
  spans: readonly Span[];
  turnAgeMs: number | undefined;
}

/** Names a session's prompts for routing; remembers the names, so that a turn pays for what is new. */
export class PromptRouter {
  /** Made when there is a prompt to name: most turns go where the last one went. */
  #chain: BlockChain | undefined;

  /** Of what is remembered. */
  get bytes(): number {
    return this.#chain?.bytes ?? 0;
  }

  /** Engines compute a first turn densely; of later turns only the log has names that are known before they run. */
  describe({ namespace, tokens, turnStart, spans, turnAgeMs }: PromptToRoute): RoutedPrompt {
    const isFirst = turnStart === 0;
    const named = isFirst ? tokens : tokens.subarray(0, turnStart);
    const how = isFirst ? [{ end: tokens.length, how: "dense" }] : spans;
    const keys: PrefixKey[] = [];
    this.#chain ??= new BlockChain();
    for (const [index, chain] of this.#chain.of(named, how, LIMITS.routedBlockCountMax).entries()) {
      if ((index + 1) % STRIDE_BLOCKS !== 0) continue;
      const words = new DataView(chain.buffer, chain.byteOffset);
      keys.push(prefixKeyOf(namespace, words.getUint32(0), words.getUint32(4)));
    }
    return { tokenCount: tokens.length, loggedTokens: turnStart, prefixKeys: packPrefixKeys(keys), turnAgeMs };
  }
}
