/** `npm run eval -- --quick` on the shipped model: every part of the report is there, and the order of the selections is the right one. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { Figures } from "../../../bench/eval/figures.ts";
import { withTempFolder } from "../../cli/run-quire.ts";
import { runBench } from "../run-bench.ts";

it("npm run eval -- --quick judges what users get on the house model, in every way it has", {
  timeout: 600_000,
}, async () => {
  await withTempFolder(async (folder) => {
    expect(await runBench(["eval", "--quick", "--threads", "2", "--out", folder])).toMatchObject({ code: 0 });
    expect((await readdir(folder)).sort()).toEqual([
      ...["continuations.csv", "fidelity.csv", "figures.json", "index.html", "journal.jsonl", "tables.md", "tasks.csv"],
    ]);
    const figures: Figures = JSON.parse(await readFile(join(folder, "figures.json"), "utf8"));
    const { fidelity, tasks, continuations } = figures;
    const auto = fidelity.at(-1)?.name;
    expect(auto).toMatch(/head-budgets/);
    const kinds = ["single", "multi-key", "table", "variable", "frequent", "second-turn"];
    expect([...new Set(tasks.map(({ kind }) => kind))]).toEqual(kinds);
    for (const rows of [fidelity, continuations] as { name: string; budgetTokens: number; contextTokens: number }[][]) {
      const names = rows
        .filter((row) => row.budgetTokens === 512 && row.contextTokens === 2048)
        .map(({ name }) => name);
      expect(names).toEqual(expect.arrayContaining(["oracle", "random", "streaming", "quest", auto]));
    }
    const at = (name?: string) =>
      continuations.find((row) => row.name === name && row.budgetTokens === 512)?.divergence.mean ?? -1;
    expect(at("oracle")).toBeLessThan(at("random"));
    expect(at(auto)).toBeLessThan(at("streaming"));
    const page = await readFile(join(folder, "index.html"), "utf8");
    for (const title of ["At a glance", "Layer by layer", "From which budget on", "Questions", "Long generation"]) {
      expect(page).toContain(`<h2>${title}`);
    }
  });
});
