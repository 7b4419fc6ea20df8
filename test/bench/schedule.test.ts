import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

type Summary = Record<"count" | "p50" | "p95", number>;

describe("bench interference", () => {
  it("measures times between tokens without and with a prompt beside them", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "interference.json");
      const what = ["--streams=2", "--stream-tokens=64", "--quiet=1", "--prompt=2048", `--json=${path}`];
      const run = await runBench(["interference", "--shape=tiny", "--threads=1", ...what]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/p95 with \/ without: \d+\.\d\d; 2048 prompt tokens at \d+\/s after/);
      const result = JSON.parse(await readFile(path, "utf8"));
      expect(result.isWhole).toBe(true);
      const { withoutMs, withMs } = result as Record<"withoutMs" | "withMs", Summary>;
      for (const { count, p50, p95 } of [withoutMs, withMs]) {
        expect(count).toBeGreaterThan(10);
        expect(p50).toBeGreaterThan(0);
        expect(p95).toBeGreaterThanOrEqual(p50);
      }
      expect(result.p95Ratio).toBeCloseTo(withMs.p95 / withoutMs.p95, 9);
    });
  });
});

describe("bench batching", () => {
  it("compares counts of sequences that decode together", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "batching.json");
      const what = ["--counts=1,3", "--context=32", "--seconds=1", `--json=${path}`];
      const run = await runBench(["batching", "--shape=tiny", "--threads=1", ...what]);
      expect(run.code).toBe(0);
      const { rows } = JSON.parse(await readFile(path, "utf8")) as { rows: Record<string, number>[] };
      expect(rows.map(({ sequenceCount }) => sequenceCount)).toEqual([1, 3]);
      expect(rows[0]!.ratio).toBe(1);
      for (const { tokensPerS, deviceMsPerStep, hostMsPerStep, sequenceCount } of rows) {
        expect(Math.min(tokensPerS!, deviceMsPerStep!, hostMsPerStep!)).toBeGreaterThan(0);
        // Every step has a token of each sequence.
        const fromSteps = (1000 * sequenceCount!) / (deviceMsPerStep! + hostMsPerStep!);
        expect(Math.abs(tokensPerS! / fromSteps - 1)).toBeLessThan(0.05);
      }
    });
  });
});

describe("bench speculation", () => {
  it("compares decoding with and without guesses, and the texts", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "speculation.json");
      const what = ["--prompt=64", "--tokens=60", "--rounds=2", `--json=${path}`];
      const run = await runBench(["speculation", "--shape=tiny", "--threads=1", ...what]);
      expect(run.code).toBe(0);
      expect(run.out).toContain("texts identical");
      const { rows, isSame } = JSON.parse(await readFile(path, "utf8")) as {
        rows: Record<string, number>[];
        isSame: boolean;
      };
      expect([isSame, rows.length]).toEqual([true, 2]);
      expect(rows.reduce((sum, { drafted }) => sum + drafted!, 0)).toBeGreaterThan(0);
    });
  });
});
