import { describe, expect, it } from "vitest";
import { CHAIN_ROOT, extendChain } from "../../../engine/kv/chain.ts";
import { formatHow, groupStarts, isHow, parseHow, SpanList } from "../../../engine/kv/provenance.ts";
import { Sequence } from "../../../engine/sequence/sequence.ts";
import { BLOCK_TOKENS } from "../../../kernels/contract.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { request } from "../harness.ts";
import { uniform } from "../tiny-model.ts";

/** The slow way: one entry per token. */
class PlainSpans {
  readonly tokens: { how: string; run: number }[] = [];
  append(end: number, how: string, run: number): void {
    while (this.tokens.length < end) this.tokens.push({ how, run });
  }
  /** Runs of tokens with the same effective provenance; spans never merge unless both are dense. */
  describe(from: number, to: number): string {
    const runs: { end: number; how: string; run: number }[] = [];
    for (let position = from; position < to; position++) {
      const { how, run } = this.tokens[position]!;
      const budget = parseHow(how)?.budgetTokens ?? Number.POSITIVE_INFINITY;
      const name = position < budget ? "dense" : how;
      const last = runs.at(-1);
      if (last && last.how === name && (name === "dense" || last.run === run)) last.end = position + 1 - from;
      else runs.push({ end: position + 1 - from, how: name, run });
    }
    return runs.map((run) => `${run.end}:${run.how}`).join(";");
  }
}

describe("provenance", () => {
  it("is read back as it was written, and nothing else is read", () => {
    const how = { policy: "mean-deviation", version: 3, budgetTokens: 2048, groupTokens: 16, nonce: "ab12" };
    expect(parseHow(formatHow(how))).toEqual(how);
    expect(isHow("dense")).toBe(true);
    for (const bad of [
      "",
      "dense ",
      "quest",
      "quest.1:2048",
      "quest.1:2048@",
      "quest.1:2048@7",
      "quest.1:-1@16",
      "Quest.1:128@16",
      "quest.1:128@16~XY",
      "quest.1:128@16\n",
    ]) {
      expect(isHow(bad), JSON.stringify(bad)).toBe(false);
    }
  });

  it("describes any range as a list of single tokens does", () => {
    for (let seed = 0; seed < 300; seed++) {
      const next = uniform(seed);
      const spans = new SpanList();
      const plain = new PlainSpans();
      const hows = ["dense", "quest.1:128@16", "quest.1:128@1", "streaming.1:64@16"];
      for (let run = 0, end = 0; run < 6; run++) {
        end += Math.floor(next() * 90);
        const how = hows[Math.floor(next() * hows.length)]!;
        spans.append(end, how);
        plain.append(end, how, run);
      }
      for (let tries = 0; tries < 10 && spans.end > 1; tries++) {
        const from = Math.floor(next() * (spans.end - 1));
        const to = from + 1 + Math.floor(next() * (spans.end - from - 1));
        expect(spans.describe(from, to), `seed ${seed} [${from}, ${to})`).toBe(plain.describe(from, to));
        const until = spans.until(to);
        expect(until.at(-1)?.end).toBe(to);
        expect(new SpanList(until).describe(from, to)).toBe(spans.describe(from, to));
      }
    }
  });

  it("marks approximate tokens without touching dense ones", () => {
    const spans = new SpanList([
      { end: 100, how: "dense" },
      { end: 300, how: "quest.1:128@16" },
    ]);
    spans.markApproximate(90, 200, "ff");
    expect(spans.since(0)).toEqual([
      { end: 90, how: "dense" },
      { end: 100, how: "dense" },
      { end: 200, how: "quest.1:128@16~ff" },
      { end: 300, how: "quest.1:128@16" },
    ]);
    expect(spans.describe(0, 128)).toBe("128:dense");
    expect(spans.describe(128, 256)).toBe("72:quest.1:128@16~ff;128:quest.1:128@16");
  });

  it("knows groups of a page, of half a block and of a block, and where one would be cut", () => {
    for (const group of [1, 16, 32, 64]) expect(isHow(`quest.1:144@${group}`)).toBe(true);
    for (const group of [2, 8, 48, 128]) expect(isHow(`quest.1:144@${group}`)).toBe(false);
    expect([...groupStarts(70, 200, 64)]).toEqual([0, 58, 122]);
    const spans = new SpanList([
      { end: 150, how: "dense" },
      { end: 300, how: "quest+group(64).1:144@64" },
    ]);
    const cuts = [144, 150, 160, 176, 192, 208, 255, 256, 299, 300].filter((position) => spans.splitsGroup(position));
    expect(cuts).toEqual([160, 176, 208, 255, 299]);
    // What lies below the budget is dense, also inside of a group.
    const whole = new SpanList([{ end: 300, how: "quest+group(64).1:144@64" }]);
    expect([100, 144, 145, 160].filter((position) => whole.splitsGroup(position))).toEqual([145, 160]);
  });

  it("begins a query group at the first row and at every page", () => {
    expect([...groupStarts(5, 40, 16)]).toEqual([0, 11, 27]);
    expect([...groupStarts(32, 48, 16)]).toEqual([0]);
    expect([...groupStarts(3, 6, 1)]).toEqual([0, 1, 2]);
  });
});

/** Chain after each whole block of a log of `tokenCount` tokens, as a sequence that goes on from it has them. */
function blockChains(ids: Uint32Array, tokenCount: number, spans: SpanList): string[] {
  const tokens = idsToBytes([...ids.subarray(0, tokenCount), 0]);
  const sequence = new Sequence({
    request: request({ tokens, turnStart: tokenCount, spans: spans.until(tokenCount) }),
    selection: { policy: "dense", version: 1, groupTokens: 16, budgetTokens: 0, exact: true },
    sink: { token() {}, done() {}, failed() {} },
    layerCount: 2,
    nowMs: 0,
  });
  return Array.from({ length: Math.floor(tokenCount / BLOCK_TOKENS) }, (_, index) => sequence.chain(index));
}

describe("chain", () => {
  const ids = Uint32Array.from({ length: 200 }, (_, index) => index);

  it("names whole blocks, and differs by token, by provenance and by what came before", () => {
    const dense = new SpanList([{ end: 200, how: "dense" }]);
    const chains = blockChains(ids, 200, dense);
    expect(chains).toHaveLength(3);
    expect(chains[0]).toBe(extendChain(CHAIN_ROOT, ids.subarray(0, BLOCK_TOKENS), "64:dense"));
    const changed = ids.slice();
    changed[70] = 7;
    expect(blockChains(changed, 200, dense).map((chain, index) => chain === chains[index])).toEqual([
      true,
      false,
      false,
    ]);
    const selected = new SpanList([
      { end: 140, how: "dense" },
      { end: 200, how: "quest.1:128@16" },
    ]);
    expect(blockChains(ids, 200, selected).map((chain, index) => chain === chains[index])).toEqual([true, true, false]);
  });

  it("calls KV below a budget what it is: dense", () => {
    const below = new SpanList([{ end: 200, how: "quest.1:192@16" }]);
    expect(blockChains(ids, 192, below)).toEqual(blockChains(ids, 192, new SpanList([{ end: 192, how: "dense" }])));
  });

  it("is the same in every process: a golden value", () => {
    expect(extendChain(CHAIN_ROOT, Uint32Array.of(1, 2, 3), "3:dense")).toMatchInlineSnapshot(
      `"996901887c63589616253429f905f025547ab581e5380d10e492e2c8d7ccace4"`,
    );
  });
});
