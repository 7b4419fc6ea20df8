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
