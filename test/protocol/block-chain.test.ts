import { describe, expect, it } from "vitest";
import { CHAIN_ROOT, extendChain } from "../../engine/kv/chain.ts";
import { SpanList } from "../../engine/kv/provenance.ts";
import { BlockChain } from "../../protocol/block-chain.ts";
import type { Span } from "../../protocol/generate.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const ids = (count: number, seed = 1): Uint32Array =>
  Uint32Array.from({ length: count }, (_, index) => (index * 2_654_435_761 * seed) % 50_000);

/** As an engine names the blocks of a sequence. */
function engineChains(tokens: Uint32Array, spans: readonly Span[]): string[] {
  const list = new SpanList(spans);
  const chains: string[] = [];
  for (let end = 64; end <= tokens.length; end += 64) {
    const provenance = list.describe(end - 64, end);
    chains.push(extendChain(chains.at(-1) ?? CHAIN_ROOT, tokens.subarray(end - 64, end), provenance));
  }
  return chains;
}

describe("BlockChain", () => {
  it.each<[string, Span[]]>([
    ["dense", [{ end: 1_000, how: "dense" }]],
    [
      "selected from a budget on",
      [
        { end: 300, how: "dense" },
        { end: 1_000, how: "quest.1:512@16" },
      ],
    ],
    [
      "many spans, with modifiers and a nonce",
      [
        { end: 70, how: "dense" },
        { end: 71, how: "quest.1:128@1" },
        { end: 400, how: "quest+sink(64).1:128@16" },
        { end: 430, how: "quest.1:128@1~ab12" },
        { end: 1_000, how: "tokenselect.2:2048@16" },
      ],
    ],
  ])("names blocks as engines do: %s", (_, spans) => {
    const tokens = ids(1_000);
    const expected = engineChains(tokens, spans);
    expect(expected).toHaveLength(15);
    expect(new BlockChain().of(tokens, spans, 100).map(hex)).toEqual(expected);
    expect(new BlockChain().of(tokens, spans, 4).map(hex)).toEqual(expected.slice(0, 4));
  });

  it("goes on from what it named before, and forgets what has changed", () => {
    const chain = new BlockChain();
    const tokens = ids(640);
    const dense: Span[] = [{ end: 640, how: "dense" }];
    const quest: Span[] = [
      { end: 200, how: "dense" },
      { end: 640, how: "quest.1:128@16" },
    ];
    const changed = tokens.slice();
    changed[300] = 7;
    for (const [all, spans] of [
      [tokens.subarray(0, 200), dense],
      [tokens, dense],
      [changed, dense],
      [changed, quest],
      [tokens.subarray(0, 100), dense],
      [tokens, quest],
    ] as const) {
      expect(chain.of(all, spans, 100).map(hex)).toEqual(engineChains(all, spans));
    }
  });
});
