/** The laboratory: rules against what can be worked out by hand, and the whole of it against the model as it is. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { AblationFigures } from "../../../bench/eval/lab/ablation.ts";
import { meanRule, questRule } from "../../../bench/eval/lab/page-rules.ts";
import { type HeadBlock, outputOf, scoresOf } from "../../../bench/eval/lab/row-attention.ts";
import type { PageDigest, RowChoice, RowView } from "../../../bench/eval/lab/rule.ts";
import { runRule } from "../../../bench/eval/lab/run-rules.ts";
import { reuseRule, voteRule } from "../../../bench/eval/lab/token-rules.ts";
import { withTempFolder } from "../../cli/run-quire.ts";
import { runBench } from "../run-bench.ts";

/** Position 319 is in page 19, the fourth of block 4. At 128 tokens: sink page 0, recent pages 16 to 19, so three of pages 1 to 15 are chosen. */
const POSITION = 319;
const BUDGET = 128;

/** A row whose heads (two for each of two KV heads) score tokens as `score` says. */
function rowOf(score: (head: number, token: number) => number, more: Partial<RowView> = {}): RowView {
  return {
    ...{ layer: 0, position: POSITION, headCount: 4, kvHeadCount: 2, headDim: 4 },
    ...{ plainQuery: Float32Array.of(1, 0), query: new Float32Array(16).fill(1) },
    scores: [0, 1, 2, 3].map((head) => Float64Array.from({ length: POSITION + 1 }, (_, token) => score(head, token))),
    blocks: () => {
      throw new Error("not asked for");
    },
    digest: () => {
      throw new Error("not asked for");
    },
    ...more,
  };
}

/** Attended tokens of pages 1 to 15. */
function chosen(choice: RowChoice | undefined, kvHead = 0): number[] {
  const tokens = [...(choice?.attended[kvHead] ?? []).keys()].filter(
    (token) => choice?.attended[kvHead]?.[token] === 1,
  );
  expect(tokens.filter((token) => token < 16 || token >= 256)).toHaveLength(16 + 64);
  return tokens.filter((token) => token >= 16 && token < 256);
}
const run = (from: number, count: number) => Array.from({ length: count }, (_, index) => from + index);

describe("votes for tokens", () => {
  // Head 0 is loud and likes tokens 32 to 79, the others all like 100 to 147 a little, and all but head 0 loathe what it likes.
  const row = rowOf((head, token) => {
    if (token >= 32 && token < 80) return head === 0 ? 100 : -20;
    return token >= 100 && token < 148 ? (head === 0 ? 0 : 3) : 0;
  });

  it("raw: the loudest head decides", () => {
    expect(chosen(voteRule("raw", BUDGET).start()(row))).toEqual(run(32, 48));
  });
  it("hard and soft: three heads of four do", () => {
    expect(chosen(voteRule("hard", BUDGET).start()(row))).toEqual(run(100, 48));
    expect(chosen(voteRule("soft", BUDGET).start()(row))).toEqual(run(100, 48));
  });
  it("soft tells how sure a head is, hard does not", () => {
    // Two heads hardly prefer 32 to 79, one is certain of 100 to 147.
    const unsure = rowOf((head, token) => {
      if (head < 2) return token >= 32 && token < 80 ? 0.01 : 0;
      return head === 2 && token >= 100 && token < 148 ? 50 : 0;
    });
    expect(chosen(voteRule("hard", BUDGET).start()(unsure))).toEqual(run(32, 48));
    expect(chosen(voteRule("soft", BUDGET).start()(unsure))).toEqual(run(100, 48));
  });
  it("within the budget nothing is chosen", () => {
    expect(voteRule("soft", 320).start()(row)).toBeUndefined();
  });
});

describe("a choice that is kept", () => {
  const preferring = (first: number, plainQuery: readonly number[]) =>
    rowOf((_, token) => (token >= first && token < first + 48 ? 9 : 0), { plainQuery: Float32Array.from(plainQuery) });

  it("while the query is like the one that chose, layer by layer", () => {
    const heard: boolean[] = [];
    const rule = reuseRule(0.9, BUDGET, (isReused) => heard.push(isReused)).start();
    expect(chosen(rule(preferring(32, [1, 0])))).toEqual(run(32, 48));
    // cos 0.98, then 0.6 with the first one; the layer behind chooses for itself.
    expect(chosen(rule(preferring(100, [1, 0.2])))).toEqual(run(32, 48));
    expect(chosen(rule({ ...preferring(100, [1, 0]), layer: 1 }))).toEqual(run(100, 48));
    expect(chosen(rule(preferring(100, [3, 4])))).toEqual(run(100, 48));
    expect(heard).toEqual([false, true, false, false]);
  });
  it("never without a threshold", () => {
    const rule = reuseRule(undefined, BUDGET, () => undefined).start();
    rule(preferring(32, [1, 0]));
    expect(chosen(rule(preferring(100, [1, 0])))).toEqual(run(100, 48));
  });
});

describe("pages", () => {
  const digestOf = (most: number, mean = most): PageDigest => ({
    least: new Float32Array(4).fill(-1),
    most: new Float32Array(4).fill(most),
    meanKey: new Float32Array(4).fill(mean),
    meanValue: new Float32Array(4),
  });

  it("of 64 tokens hide a needle behind neighbours that are all fair", () => {
    // Pages 5, 10 and 14 hold needles; block 3 (12 to 15) is otherwise poor, block 1 (4 to 7) too; page 9 is second.
    const worth: Record<number, number> = { 5: 9, 10: 8, 14: 7 };
    const row = rowOf(() => 0, { digest: (_, page) => digestOf(worth[page] ?? 0) });
    expect(chosen(questRule(1, BUDGET).start()(row))).toEqual([...run(80, 16), ...run(160, 16), ...run(224, 16)]);
    // Three pages are fewer than a block, of which the first candidates have three only (page 0 is a sink).
    const first = rowOf(() => 0, { digest: (_, page) => digestOf(page === 2 ? 10 : (worth[page] ?? 0)) });
    expect(chosen(questRule(4, BUDGET).start()(first))).toEqual(run(16, 48));
    // A block that does not fit is not taken in part.
    expect(chosen(questRule(4, BUDGET).start()(row))).toEqual([]);
  });

  it("that are kept: to the end of the run, and by each KV head only while its query is like the one that chose", () => {
    // Three pages from `best` on are good; KV head 0 has the first half of the query before RoPE, KV head 1 the other.
    const at = (position: number, best: number, plainQuery: readonly number[]) =>
      rowOf(() => 0, {
        ...{ position, plainQuery: Float32Array.from(plainQuery) },
        digest: (_, page) => digestOf(page >= best && page < best + 3 ? 5 : 0),
      });
    const heard: boolean[] = [];
    const pages = (choice: RowChoice | undefined) =>
      [0, 1].map((kvHead) => run(1, 15).find((page) => choice?.attended[kvHead]?.[page * 16] === 1));
    const rule = runRule({ runTokens: 4, cosineMin: 0.9 }, BUDGET, (isReused) => heard.push(isReused)).start();
    expect(pages(rule(at(316, 2, [1, 0, 1, 0])))).toEqual([2, 2]);
    // cos 0.98 and 0.6: only the second KV head chooses again, and is held to that from then on.
    expect(pages(rule(at(317, 9, [1, 0.2, 3, 4])))).toEqual([2, 9]);
    expect(pages(rule(at(318, 12, [1, 0.2, 3, 4])))).toEqual([2, 9]);
    expect(heard).toEqual([false, false, true, false, true, true]);
    const blind = runRule({ runTokens: 2, cosineMin: -1 }, BUDGET, () => undefined).start();
    expect(pages(blind(at(316, 2, [1, 0, 1, 0])))).toEqual([2, 2]);
    expect(pages(blind(at(317, 9, [-1, 0, -1, 0])))).toEqual([2, 2]);
    expect(pages(blind(at(318, 9, [1, 0, 1, 0])))).toEqual([9, 9]);
  });

  it("that are left out are estimated, and only they", () => {
    const row = rowOf(() => 0, { digest: (_, page) => digestOf(0, page === 3 || page === 7 || page === 8 ? 5 : 0) });
    const choice = meanRule(BUDGET, true).start()(row);
    expect(chosen(choice)).toEqual([...run(48, 16), ...run(112, 32)]);
    expect(choice?.estimates?.map((list) => list.length)).toEqual([12, 12]);
    expect(meanRule(BUDGET, false).start()(row)).not.toHaveProperty("estimates");
  });
});

describe("attention", () => {
  it("over an estimate is exact where all keys and values of a page are equal", () => {
    const query = Float32Array.of(0.3, -1, 2, 0.5);
    const block: HeadBlock = { keys: new Float32Array(256), values: new Float32Array(256) };
    for (let at = 0; at < 256; at++) {
      // Page 2 is constant.
      const isPage2 = at >= 128 && at < 192;
      block.keys[at] = isPage2 ? [0.5, 0.2, 0.9, -1][at % 4]! : Math.sin(at);
      block.values[at] = isPage2 ? [3, -2, 1, 0.5][at % 4]! : Math.cos(at * 3);
    }
    const scores = scoresOf(query, [block], 64);
    const tokens = new Uint8Array(64).fill(1).fill(0, 32, 48);
    const estimates = [{ key: block.keys.slice(128, 132), value: block.values.slice(128, 132), tokenCount: 16 }];
    const exact = outputOf(scores, [block], 4);
    const estimated = outputOf(scores, [block], 4, { tokens, query, estimates });
    const leftOut = outputOf(scores, [block], 4, { tokens, query });
    for (const [channel, value] of exact.output.entries()) expect(estimated.output[channel]).toBeCloseTo(value, 9);
    expect(Math.abs(leftOut.output[0]! - exact.output[0]!)).toBeGreaterThan(0.1);
    expect(leftOut.weight).toBeLessThan(exact.weight);
  });
});

describe("npm run eval -- --ablation", () => {
  it("answers a question under every rule, and writes what came out", async () => {
    await withTempFolder(async (folder) => {
      const flags = ["--ablation", "votes,page-size", "--contexts", "320", "--budgets", "128"];
      const more = ["--cases", "1", "--kinds", "single", "--threads", "1", "--out", folder];
      const { code, out } = await runBench(["eval", ...flags, ...more]);
      expect(code).toBe(0);
      expect(out).toContain("votes: soft vote: ");
      const { ablations } = JSON.parse(await readFile(join(folder, "ablations.json"), "utf8"));
      const figures = ablations as AblationFigures[];
      expect(figures.map(({ ablation }) => ablation)).toEqual([
        ...Array(3).fill("votes"),
        ...Array(2).fill("page-size"),
      ]);
      // The model can do it densely: the laboratory's forward pass is the model's.
      expect(figures.map(({ cases, denseRight }) => [cases, denseRight])).toEqual(figures.map(() => [1, 1]));
      for (const { mass, outputError, rule } of figures) {
        expect(mass, rule).toBeGreaterThan(0.3);
        expect(mass, rule).toBeLessThan(1);
        expect(outputError, rule).toBeGreaterThan(0);
      }
    });
  }, 120_000);
});
