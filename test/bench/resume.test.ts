import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DelayedStore } from "../../bench/resume/delayed-store.ts";
import type { ResumeRow } from "../../bench/resume/measure-resume.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { noise } from "../storage/random.ts";
import { runBench } from "./run-bench.ts";

describe("bench resume", () => {
  it("resumes a stored session in every mode, and the replies of exact modes are right", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "resume.json");
      const what = ["--contexts=2048", "--budget=256", "--tokens=6", "--rtt=5", "--mbps=1000", `--json=${path}`];
      const modes = ["recompute", "full", "lazy", "lazy-default"];
      const run = await runBench(["resume", "--shape=tiny", "--threads=1", `--modes=${modes.join(",")}`, ...what]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/context {2}mode .* identical/);
      const { rows } = JSON.parse(await readFile(path, "utf8")) as { rows: ResumeRow[] };
      expect(rows.map(({ mode }) => mode)).toEqual(modes);
      const [recompute, full, lazy, lazyDefault] = rows as [ResumeRow, ResumeRow, ResumeRow, ResumeRow];
      expect(recompute).toMatchObject({ recomputedTokens: 2048, bytesBeforeFirstToken: 0, pagesBeforeFirstToken: 0 });
      // Two layers of 32 blocks of 4 pages; everything but the summaries of the other kind.
      expect(full).toMatchObject({ recomputedTokens: 0, pagesBeforeFirstToken: 2 * 32 * 4 });
      expect(full.bytesShare).toBeGreaterThan(0.9);
      expect(full.bytesShare).toBeLessThan(1);
      expect(lazy).toMatchObject({ recomputedTokens: 0, identical: true, pagesMissed: 0 });
      expect(lazy.bytesBeforeFirstToken).toBeLessThan(full.bytesBeforeFirstToken);
      expect(lazyDefault.recomputedTokens).toBe(0);
      for (const { ttftMs, mode } of rows) expect(ttftMs, mode).toBeGreaterThan(mode === "recompute" ? 0 : 10);
    }));

  it.each([
    [["--contexts=100"], /must be multiples of 256/],
    [["--modes=fast"], /--modes: must be some of recompute,full,lazy,lazy-default, not "fast"/],
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
    const store = new DelayedStore(inner, { rttMs: 40, mbps: 10 });
    const startMs = performance.now();
    await Promise.all([store.get("a"), store.get("a"), store.get("a")]);
    const tookMs = performance.now() - startMs;
    expect(tookMs).toBeGreaterThanOrEqual(99);
    expect((await store.get("a", { range: { offset: 5, bytes: 10 } }))?.bytes).toEqual(noise(1, 25_000).slice(5, 15));
    await store.put();
    expect((await inner.list("")).keys).toHaveLength(1);
  });
});
