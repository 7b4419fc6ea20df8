import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CorrectnessRow } from "../../bench/gpu/correctness.ts";
import type { StepRow } from "../../bench/gpu/speed.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { runBench } from "./run-bench.ts";

const hasAdapter = (await adapterForTests()) !== undefined;

describe.skipIf(!hasAdapter)("bench gpu", () => {
  it("says that the device is right, and times every case", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "gpu.json");
      const run = await runBench(["gpu", "--size=tiny", "--ms=1", `--json=${path}`]);
      expect(run.out).toContain("14 of 14 ops as the reference computes them");
      expect(run.code).toBe(0);
      const json = JSON.parse(await readFile(path, "utf8")) as {
        correctness: CorrectnessRow[];
        rows: StepRow[];
        failures: string[];
      };
      expect(json.failures).toEqual([]);
      expect(json.correctness.every(({ error, allowed }) => error <= allowed)).toBe(true);
      expect(json.rows.map(({ name }) => name.split(",")[0])).toEqual([
        "copy 0.0625 MiB",
        ...["int4 64 to 96", "int4 64 to 96", "int4 64 to 96", "int8 64 to 96", "int8 64 to 96", "int8 64 to 96"],
        ...["bf16 64 to 96", "bf16 64 to 96", "bf16 64 to 96", "attention", "attention", "decode step", "decode step"],
      ]);
      for (const row of json.rows) {
        expect(row.ms, row.name).toBeGreaterThan(0);
        expect(row.bytes, row.name).toBeGreaterThan(0);
      }
      const [dense, quest] = json.rows.filter(({ name }) => name.startsWith("attention"));
      expect(quest!.bytes, "selection reads less").toBeLessThan(dense!.bytes);
    });
  }, 600_000);
});
