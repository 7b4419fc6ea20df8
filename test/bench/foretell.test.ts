import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openBenchModel } from "../../bench/decode/bench-model.ts";
import { contentOf, fillContext } from "../../bench/resume/content.ts";
import { either, Foretelling, meansOfPages } from "../../bench/resume/foretelling.ts";
import { decodeKeys, decodeValues } from "../../kernels/block-codec.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

const SELECTION = { policy: "quest+scope(layer)+group(64)", budgetTokens: 256 } as const;
const CONTEXT_TOKENS = 2048;

/** A turn to be foretold behind a context of the tiny shape; `change` may change its blocks before anything runs. */
async function withForetelling(
  run: (foretelling: Foretelling) => Promise<void>,
  change = (_shape: Parameters<typeof meansOfPages>[0], bytes: Uint8Array): Uint8Array => bytes,
): Promise<void> {
  const shape = { shape: "tiny", seed: 1, keys: "drift" } as const;
  const content = await contentOf(shape, CONTEXT_TOKENS);
  const model = await openBenchModel({
    ...{ ...shape, threads: 1, batch: 2, contextTokens: CONTEXT_TOKENS + 256 },
    ...{ summaryKinds: ["min-max"], kvEncoding: "f32" },
  });
  try {
    await fillContext(model, content, CONTEXT_TOKENS, SELECTION);
    const { pool } = model.runner;
    const { blockIds, blockCapacity } = model.blockTable();
    for (let layer = 0; layer < model.config.layerCount; layer++) {
      for (const id of blockIds.subarray(layer * blockCapacity, layer * blockCapacity + CONTEXT_TOKENS / 64))
        pool.writeBlock(id, change(pool.spec, await pool.readBlock(id)));
    }
    const turns = { promptTokens: 64, replyTokens: 4, contextTokens: CONTEXT_TOKENS, selection: SELECTION };
    await run(await Foretelling.open({ model, content, ...turns }));
  } finally {
    await model.close();
  }
}

describe("foretelling a turn's choice", () => {
  it("knows the first layer's, which nothing that is missing has touched, and not the next one's", () =>
    withForetelling(async (foretelling) => {
      const pass = { inPlace: "nothing", rows: 64, budgetTokens: 256 } as const;
      const guess = await foretelling.pass(pass);
      const { named, namedByLayer, inVain } = await foretelling.judge(guess);
      expect(namedByLayer[0]).toBe(1);
      expect(namedByLayer[1]).toBeLessThan(1);
      expect(named).toBeLessThan(1);
      expect(inVain).toBeGreaterThan(0);
      const all = either(guess, await foretelling.pass({ ...pass, budgetTokens: 2048 }));
      expect(await foretelling.judge(all)).toMatchObject({ named: 1, there: 1 });
    }));

  it("knows everything where tokens are the mean of their page, and so does who finds what it names", () =>
    withForetelling(async (foretelling) => {
      const pass = { rows: 64, budgetTokens: 256 } as const;
      const means = await foretelling.judge(await foretelling.pass({ ...pass, inPlace: "page means" }));
      expect(means).toMatchObject({ named: 1, inVain: 0, namedByLayer: [1, 1], there: 1 });
      const nothing = await foretelling.judge(await foretelling.pass({ ...pass, inPlace: "nothing" }));
      expect(nothing.named).toBeLessThan(1);
      const before = await foretelling.judge(foretelling.hottest(1));
      expect(before.named + before.inVain).toBeGreaterThan(0.5);
    }, meansOfPages));

  it("takes the mean of 16 tokens, keys and values, of each head", async () => {
    const shape = { kvHeadCount: 2, headDim: 4, encoding: "f32" } as const;
    const bytes = new Uint8Array(new Float32Array(2 * 2 * 64 * 4).map((_, index) => Math.sin(index)).buffer);
    const means = meansOfPages(shape, bytes);
    for (const decode of [decodeKeys, decodeValues]) {
      const [own, mean] = [decode(shape, bytes, 1), decode(shape, means, 1)];
      for (const token of [0, 15, 16, 63]) {
        const page = Math.floor(token / 16) * 16;
        const tokens = Array.from({ length: 16 }, (_, index) => own[(page + index) * 4 + 2]!);
        expect(mean[token * 4 + 2]).toBeCloseTo(tokens.reduce((a, b) => a + b) / 16);
      }
    }
  });
});

describe("bench foretell", () => {
  it("tells of every guess what it named, in a table and as JSON", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "foretell.json");
      const what = ["--shape=tiny", "--threads=1", "--context=1024", "--budget=256", "--tokens=2", `--json=${path}`];
      const run = await runBench(["foretell", ...what]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/guessed from .* named % {2}in vain % {2}there %/);
      const { rows } = JSON.parse(await readFile(path, "utf8")) as { rows: { named: number; guess: string }[] };
      expect(rows).toHaveLength(3 + 2 * (2 * 3 + 2 * 3));
      for (const { named, guess } of rows) {
        expect(named, guess).toBeGreaterThan(0);
        expect(named, guess).toBeLessThanOrEqual(1);
      }
    }));

  it.each([
    [["--context=1024"], /--context: must be more than --budget/],
    [["--policy=dense"], /--policy: must be one that scores pages/],
    [["--text=x.txt"], /--text: needs a --model/],
  ])("refuses %j with one clear line", async (args, message) => {
    const run = await runBench(["foretell", "--shape=tiny", ...args]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(message);
  });
});
