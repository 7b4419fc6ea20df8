import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { PrefillRow } from "../../bench/prefill/measure-prefill.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("bench prefill", () => {
  it("has a row per context, policy and budget; selection reads less", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "prefill.json");
      const what = ["--contexts=0,2000", "--policies=dense,quest", "--budget=256", "--tokens=600"];
      const run = await runBench(["prefill", "--shape=tiny", "--threads=1", ...what, `--json=${path}`]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/\ncontext {2}policy {2}budget {2}tokens +ms +tokens\/s\n +0 {2}dense +- +600/);
      const { rows } = JSON.parse(await readFile(path, "utf8")) as { rows: PrefillRow[] };
      expect(rows.map((row) => [row.contextTokens, row.policy, row.budgetTokens ?? "-"])).toEqual([
        [0, "dense", "-"],
        [0, "quest", 256],
        [2000, "dense", "-"],
        [2000, "quest", 256],
      ]);
      for (const row of rows) expect(row.tokensPerS).toBeCloseTo((600 / row.ms) * 1000);
      const [, , dense, quest] = rows;
      // The last chunk has 88 rows. Dense reads once for all of them, quest once for each of 6 groups, but a tenth of the pages.
      expect(quest!.kvBytesLastChunk / 6).toBeLessThan(dense!.kvBytesLastChunk / 4);
      expect(dense!.metadataBytesLastChunk).toBe(0);
      expect(quest!.metadataBytesLastChunk).toBeGreaterThan(0);
    });
  });
});
