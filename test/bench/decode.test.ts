import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openBenchModel, tokensThatFit } from "../../bench/decode/bench-model.ts";
import { fillRandom } from "../../bench/decode/fill-random.ts";
import { type DecodeRow, measureDecode } from "../../bench/decode/measure-decode.ts";
import { shapeConfig } from "../../bench/shapes.ts";
import { summaryScalesAt } from "../../kernels/layout.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

interface DecodeJson {
  ok: boolean;
  rows: DecodeRow[];
  memory: Record<string, number>;
}

async function runDecode(args: readonly string[]) {
  return withTempFolder(async (folder) => {
    const path = join(folder, "decode.json");
    const run = await runBench(["decode", "--shape=tiny", "--threads=1", `--json=${path}`, ...args]);
    return { ...run, json: JSON.parse(await readFile(path, "utf8")) as DecodeJson };
  });
}

describe("bench decode", () => {
  it("has a row per context, policy and budget, with times and the bytes that were read", async () => {
    const flags = ["--contexts=0,1000", "--policies=dense,quest,streaming", "--budget=128,256", "--tokens=4"];
    const { code, out, json } = await runDecode(flags);
    expect(code).toBe(0);
    expect(out).toMatch(/\ncontext {2}policy +budget {2}ms\/token p50 +min {2}tokens\/s {2}KV MB\/token/);
    expect(json.rows.map((row) => [row.contextTokens, row.policy, row.budgetTokens])).toEqual(
      [0, 1000].flatMap((context) => [
        [context, "dense", undefined],
        ...["quest", "streaming"].flatMap((policy) => [128, 256].map((budget) => [context, policy, budget])),
      ]),
    );
    for (const row of json.rows) {
      expect(row.tokenCount).toBe(4);
      expect(row.msPerToken.min).toBeGreaterThan(0);
      expect(row.msPerToken.p50).toBeGreaterThanOrEqual(row.msPerToken.min);
      expect(row.tokensPerS).toBeCloseTo(1000 / row.msPerToken.p50);
    }
    const dense = json.rows.find(({ contextTokens, policy }) => contextTokens === 1000 && policy === "dense");
    // Positions 1000 to 1003 attend to 15 sealed blocks of int8 (codes, scales) and to 41 to 44 open tokens in f32; 2 layers, 2 heads of 16.
    const sealed = 15 * (2 * 64 * 16 + 16 * 4 + 64 * 4);
    expect(dense?.kvBytesPerToken).toBe(2 * 2 * (sealed + 42.5 * 2 * 16 * 4));
    expect(dense).toMatchObject({ metadataBytesPerToken: 0, pagesShare: 1 });
    const [small, large] = json.rows.filter(
      ({ contextTokens, policy }) => contextTokens === 1000 && policy === "quest",
    );
    expect(small?.pagesShare).toBeCloseTo(8 / 63);
    expect(large?.pagesShare).toBeCloseTo(16 / 63);
    expect(small?.kvBytesPerToken).toBeLessThan((dense?.kvBytesPerToken ?? 0) / 4);
    expect(small?.metadataBytesPerToken).toBeGreaterThan(0);
    const streaming = json.rows.filter(({ policy }) => policy === "streaming");
    expect(streaming.every(({ metadataBytesPerToken }) => metadataBytesPerToken === 0)).toBe(true);
    const { rssBytes, weightBytes, poolBytes, aboveBytes, startBytes, heapGrowthBytes, restBytes } = json.memory;
    expect(aboveBytes).toBe(rssBytes! - weightBytes! - poolBytes!);
    expect(startBytes! + heapGrowthBytes! + restBytes!).toBe(aboveBytes);
    expect(startBytes).toBeGreaterThan(20e6);
    expect(out).toMatch(/above them resident\nabove them: \d+ MB the program before/);
  });

  it("scores pages once for the tokens that share a choice, and reads as many", async () => {
    const flags = ["--contexts=1024", "--policies=quest,quest+reuse(4)", "--budget=256", "--tokens=8"];
    const [each, fourth] = (await runDecode(flags)).json.rows;
    expect(fourth?.metadataBytesPerToken).toBe((each?.metadataBytesPerToken ?? 0) / 4);
    expect(fourth?.pagesShare).toBe(each?.pagesShare);
    expect(fourth?.msPerToken.min).toBeGreaterThan(0);
  });

  it.each([
    [["--contexts=131072"], /^a context of 131104 tokens does not fit: at most 131072 do .*131072 positions\)$/],
    [
      ["--contexts=65536", "--memory=16M"],
      /^a context of 65568 tokens does not fit: at most \d+ do \(16 MiB of memory/,
    ],
    [["--contexts=64,64"], /^--contexts: must not name anything twice/],
    [["--policies=best"], /^--policies: "best": expected a policy: dense, [^"]*$/],
    [["--budget=100"], /^--budget: must be a multiple of 16 and at least 128, not "100"$/],
  ])("refuses %j with one clear line", async (args, message) => {
    const run = await runBench(["decode", "--shape=tiny", ...args]);
    expect(run.code).toBe(1);
    expect(run.err.replace(/^bench: |\n$/g, "")).toMatch(message);
  });
});

describe("a model for one sequence", () => {
  const how = { shape: "tiny", seed: 1, threads: 1, kvEncoding: "int8", summaryKinds: ["min-max"] } as const;

  it("holds as many tokens as it says, and no more", async () => {
    const memoryBytesMax = 16 * 2 ** 20;
    const fits = tokensThatFit(shapeConfig("tiny"), how, memoryBytesMax);
    expect(fits).toBeGreaterThan(10_000);
    const model = await openBenchModel({ ...how, memoryBytesMax, contextTokens: fits });
    try {
      await fillRandom(model, 1, fits);
      const tokens = Uint32Array.of(5);
      const step = { position: fits - 1, tokens, plan: { kind: "dense" }, groupTokens: 16, samples: true } as const;
      expect((await model.step(step)).sample?.tokenId).toBeLessThan(512);
    } finally {
      await model.close();
    }
    const more = openBenchModel({ ...how, memoryBytesMax, contextTokens: fits + 1 });
    await expect(more).rejects.toThrow(`at most ${fits} do`);
  });

  it("says that 64K tokens of the shape that peers are compared at fit into one memory, with two kinds of summaries", () => {
    const kinds = { kvEncoding: "int8", summaryKinds: ["min-max", "mean-deviation"] } as const;
    expect(tokensThatFit(shapeConfig("bench-213m"), kinds, 2 ** 32 - 65_536)).toBeGreaterThan(65_536 + 4096);
  });

  it("hears a stop while it decodes: steps by themselves leave no turn to anybody", async () => {
    const tokenCount = 4_000;
    const model = await openBenchModel({ ...how, contextTokens: tokenCount });
    const life = new AbortController();
    try {
      setTimeout(() => life.abort(), 50);
      const item = { contextTokens: 0, policy: "dense", budgetTokens: undefined } as const;
      const row = await measureDecode(model, item, { tokenCount, signal: life.signal });
      expect(row.tokenCount).toBeLessThan(tokenCount);
    } finally {
      await model.close();
    }
  });

  it("is filled with the same bytes by the same seed; no two blocks are equal", async () => {
    const contents: string[][] = [];
    for (const seed of [3, 3, 4]) {
      const model = await openBenchModel({ ...how, contextTokens: 1024 });
      try {
        await fillRandom(model, seed, 1024);
        const { blockIds, blockCapacity } = model.blockTable();
        const hex: string[] = [];
        for (let layer = 0; layer < 2; layer++) {
          for (let block = 0; block < 16; block++) {
            const id = blockIds[layer * blockCapacity + block]!;
            hex.push(Buffer.from(await model.runner.pool.readBlock(id)).toString("hex"));
          }
        }
        const summary = await model.runner.pool.readSummary(15, "min-max");
        const { headDim } = shapeConfig("tiny");
        const scales = new Float32Array(summary.buffer, summaryScalesAt(headDim), 8);
        expect(scales.every((scale) => Number.isFinite(scale) && scale > 0)).toBe(true);
        contents.push(hex);
      } finally {
        await model.close();
      }
    }
    expect(new Set(contents[0]).size).toBe(32);
    expect(contents[1]).toEqual(contents[0]);
    expect(contents[2]).not.toEqual(contents[0]);
  });
});
