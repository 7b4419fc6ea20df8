import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("npm run bench -- guard", () => {
  it(
    "times each guard in a workerd of its own",
    () =>
      withTempFolder(async (folder) => {
        const path = join(folder, "guard.json");
        const run = await runBench(["guard", "--requests=20", "--keys=3", `--json=${path}`]);
        expect(run).toMatchObject({ code: 0 });
        const { rows, wholeMs } = JSON.parse(await readFile(path, "utf8")) as {
          rows: { name: string; p50Ms: number; addedP10Ms: number }[];
          wholeMs: number;
        };
        expect(rows).toHaveLength(7);
        for (const row of rows) expect(row.p50Ms).toBeGreaterThan(0);
        expect(rows[0]?.addedP10Ms).toBe(0);
        expect(Number.isFinite(wholeMs)).toBe(true);
      }),
    60_000,
  );
});
