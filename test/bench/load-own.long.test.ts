/** The load test against a stack of its own: the edge in a bare workerd, two engines, one of them killed on the way. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("bench load with engines killed", () => {
  it("loses no turn and changes no word", { timeout: 180_000 }, async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "load.json");
      const load = ["--users=4", "--duration=24", "--think=0.2", "--mix=100,0,0", "--abort=0.1", "--verify=4"];
      const stack = ["--engines=2", "--kill-every=8", "--threads=1", "--pool-bytes=64M", `--json=${path}`];
      const run = await runBench(["load", ...load, ...stack], { env: process.env });
      expect(run.err).toContain("killing an engine (1)");
      expect(run.code, run.out).toBe(0);
      const { totals } = JSON.parse(await readFile(path, "utf8"));
      expect(totals.engineKills).toBeGreaterThanOrEqual(2);
      expect(totals.turns).toMatchObject({ failed: 0 });
      expect(totals.turns.completed).toBeGreaterThan(5);
      expect(totals.verification).toMatchObject({ failed: 0, wrong: [] });
      expect(totals.verification.turnsCompared).toBeGreaterThan(0);
    });
  });
});
