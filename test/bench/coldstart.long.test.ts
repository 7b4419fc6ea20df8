import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("npm run bench -- coldstart", () => {
  it(
    "starts an engine through the hook and splits the time to the first token of a resumed session",
    () =>
      withTempFolder(async (folder) => {
        const path = join(folder, "coldstart.json");
        const run = await runBench(["coldstart", "--rounds=1", `--json=${path}`]);
        expect(run).toMatchObject({ code: 0 });
        const { turns } = JSON.parse(await readFile(path, "utf8")) as { turns: Record<string, number>[] };
        const [turn = {}] = turns;
        const { totalMs = 0, cachedTokens = 0, promptTokens = 0, ...parts } = turn;
        const sum = Object.values(parts).reduce((all, part) => all + part, 0);
        expect(Object.keys(parts)).toEqual(["wakeMs", "registerMs", "manifestMs", "summariesMs", "firstTokenMs"]);
        for (const [name, part] of Object.entries(parts)) expect(part, name).toBeGreaterThan(0);
        expect(sum).toBeCloseTo(totalMs, 3);
        expect(cachedTokens).toBeGreaterThan(2_500);
        expect(promptTokens).toBeGreaterThan(cachedTokens);
      }),
    120_000,
  );
});
