import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { BarRow } from "../../bench/resume/bars.ts";
import { DelayedStore } from "../../bench/resume/delayed-store.ts";
import type { ResumeRow } from "../../bench/resume/measure-resume.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { noise } from "../storage/random.ts";
import { runBench } from "./run-bench.ts";

/** What a run writes down. */
interface Measured {
  rows: ResumeRow[];
  besideRows: ResumeRow[];
  bars: BarRow[];
}

describe("bench resume", () => {
  it("resumes a stored session in every mode, and the replies of exact modes are right", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "resume.json");
      const what = [
        "--contexts=1024",
        "--budget=256",
        "--tokens=6",
        "--rtt=5",
        "--mbps=125",
        "--stall=300",
        "--beside=quest+share(2)",
        `--json=${path}`,
      ];
      const modes = ["recompute", "full", "lazy", "lazy-default", "resident"];
      const run = await runBench(["resume", "--shape=tiny", "--threads=1", `--modes=${modes.join(",")}`, ...what]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/context {2}mode .* identical/);
      const { rows, besideRows, bars } = JSON.parse(await readFile(path, "utf8")) as Measured;
      expect(rows.map(({ mode }) => mode)).toEqual(modes);
      expect(besideRows.map(({ mode }) => mode)).toEqual(modes);
      expect(besideRows.filter(({ identical }) => identical === false)).toEqual([]);
      const [recompute, full, lazy, lazyDefault, resident] = rows as [
        ResumeRow,
        ResumeRow,
        ResumeRow,
        ResumeRow,
        ResumeRow,
      ];
      // The context, the turn before (64 + 6 tokens): only the manifest was read.
      expect(recompute).toMatchObject({ recomputedTokens: 1024 + 70, pagesBeforeFirstToken: 0 });
      // Two layers of 16 blocks of 4 pages; the tail has one block that is sealed.
      expect(full).toMatchObject({ recomputedTokens: 0, identical: true, pagesBeforeFirstToken: 2 * 16 * 4 });
      expect(full.bytesShare).toBeGreaterThan(0.95);
      expect(full.bytesShare).toBeLessThanOrEqual(1);
      expect(lazy).toMatchObject({ recomputedTokens: 0, identical: true, pagesMissed: 0, pagesMissedBefore: 0 });
      expect(resident).toMatchObject({ bytesBeforeFirstToken: 0, pagesMissed: 0 });
      const byFigure = new Map(bars.map((bar) => [bar.figure, bar]));
      expect(byFigure.get("first token, exact")?.value).toBe(lazy.ttftMs);
      expect(byFigure.get("full restore / lazy, exact")?.value).toBeCloseTo(full.ttftMs / lazy.ttftMs);
      const isBeside = ({ figure }: BarRow) => figure.endsWith(", quest+share(2)");
      expect(bars.filter((bar) => !isBeside(bar))).toHaveLength(12);
      // Of the selection beside it: all that depends on a selection.
      expect(bars.filter(isBeside)).toHaveLength(8);
      expect(byFigure.get("first token, exact, quest+share(2)")?.value).toBe(besideRows[2]?.ttftMs);
      // int8 K and V are half of f16, scales (16 + 64 + 64 floats for 64 * 16 pairs) and summaries come on top.
      const stored = byFigure.get("stored bytes of a token / K and V in f16");
      expect(stored?.value).toBeGreaterThan(0.5);
      expect(stored?.value).toBeLessThan(1);
      for (const { figure, value, bar, atLeast, holds } of bars) {
        expect(Number.isFinite(value), figure).toBe(true);
        expect(holds, figure).toBe(atLeast ? value >= bar : value <= bar);
      }
      expect(lazy.bytesBeforeFirstToken).toBeLessThan(full.bytesBeforeFirstToken);
      expect(lazyDefault.recomputedTokens).toBe(0);
      for (const { ttftMs, mode } of rows) expect(ttftMs, mode).toBeGreaterThan(mode === "resident" ? 0 : 5);
    }));

  it("judges the longest context, in whatever order contexts are given", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "resume.json");
      const what = ["--contexts=512,256", "--modes=lazy", "--budget=128", "--tokens=2", "--rtt=1", "--stall=0"];
      const run = await runBench(["resume", "--shape=tiny", "--threads=1", ...what, "--beside=none", `--json=${path}`]);
      expect(run.code).toBe(0);
      const { rows, besideRows, bars } = JSON.parse(await readFile(path, "utf8")) as Measured;
      expect(besideRows).toEqual([]);
      expect(bars).toHaveLength(3);
      const longest = rows.find(({ context }) => context === 512);
      expect(rows).toHaveLength(2);
      expect(bars.find(({ figure }) => figure === "first token, exact")?.value).toBe(longest?.ttftMs);
    }));

  it.each([
    [["--contexts=100"], /must be multiples of 256/],
    [["--policy=dense"], /--policy: must be one that scores pages/],
    [["--beside=dense"], /--beside: must be one that scores pages/],
    [["--text=x.txt"], /--text: needs a --model/],
    [["--house-text=/nowhere.txt"], /--house-text: \/nowhere.txt cannot be read \(ENOENT\)/],
    [["--house-text=README.md"], /--house-text: a text of 16640 tokens is more than there is; a longer text\n/],
    [["--keys=odd"], /--keys: must be random or drift/],
    [["--modes=fast"], /--modes: must be some of recompute,full,lazy,lazy-default,resident, not "fast"/],
  ])("refuses %j with one clear line", async (args, message) => {
    const run = await runBench(["resume", "--shape=tiny", ...args]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(message);
  });
});

describe("a delayed store", () => {
  it("takes a round trip for each call and shares one bandwidth among all", async () => {
    const inner = new MemoryStore();
    await inner.put("a", noise(1, 25_000));
    // 25,000 bytes take 20 ms.
    const store = new DelayedStore(inner, { rttMs: 40, mbps: 1.25 });
    const startMs = performance.now();
    await Promise.all([store.get("a"), store.get("a"), store.get("a")]);
    const tookMs = performance.now() - startMs;
    expect(tookMs).toBeGreaterThanOrEqual(100);
    expect((await store.get("a", { range: { offset: 5, bytes: 10 } }))?.bytes).toEqual(noise(1, 25_000).slice(5, 15));
    await store.put();
    expect((await inner.list("")).keys).toHaveLength(1);
  });
});

describe("bench resume-answers", () => {
  it("asks second questions of an engine that has everything and of one that has nothing", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "answers.json");
      const what = ["--cases=2", "--tokens=2048", "--budget=512", "--rtt=2", "--threads=1", `--json=${path}`];
      const run = await runBench(["resume-answers", ...what]);
      const result = JSON.parse(await readFile(path, "utf8"));
      const { rows } = result as {
        rows: { residentRight: boolean; lazyRight: boolean; pagesBeforeFirstToken: number }[];
      };
      expect(rows).toHaveLength(2);
      // The resumed turns did read pages from the store, and an answer of this model to a question of its kind is right.
      for (const { pagesBeforeFirstToken } of rows) expect(pagesBeforeFirstToken).toBeGreaterThan(0);
      expect(rows.some(({ residentRight }) => residentRight)).toBe(true);
      const right = (of: "residentRight" | "lazyRight") => 50 * rows.filter((row) => row[of]).length;
      expect(result.points).toBe(right("lazyRight") - right("residentRight"));
      expect(run.code).toBe(Math.abs(result.points) <= 1 ? 0 : 1);
      expect(run.out).toContain("points apart");
    }));
});
