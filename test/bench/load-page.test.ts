/** The page of a load test in a real browser: what it draws can be seen. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { expect, it } from "vitest";
import { Measures } from "../../bench/load/measures.ts";
import { loadPage } from "../../bench/load/page.ts";
import { loadResult, reportLines } from "../../bench/load/report.ts";
import { soakBars } from "../../bench/load/soak.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { openBrowserPage } from "../support/chromium.ts";

/** Width and height of every line, and how far the page is wider than its window. */
const drawn = `({
  lines: [...document.querySelectorAll("polyline")].map((line) => {
    const { width, height } = line.getBoundingClientRect();
    return [width, height];
  }),
  rows: document.querySelectorAll("table tr").length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})`;

it("a browser draws its lines and its table within the window", { timeout: 120_000 }, async (context) => {
  const measures = new Measures();
  const times = { windowMs: 60_000, elapsedMs: 60_000 };
  const result = loadResult({
    ...{ measured: "a stack", settings: {}, measures, times, ratePerS: 1 },
    interrupted: false,
  });
  result.bars = soakBars(result);
  const samples = Array.from({ length: 60 }, (_, atS) => ({
    ...{ atS, sessionsActive: atS % 7, turnsCompleted: 5 * atS + (atS % 3), turnsFailed: 3 * atS + (atS % 2) },
    firstTokenMsMax: 50 + (atS % 5),
    memoryBytes: { edge: 2 ** 28 + atS * 2 ** 20, "engine 1": 2 ** 27 + (atS % 9) * 2 ** 22 },
  }));
  await withTempFolder(async (folder) => {
    const path = join(folder, "load.html");
    await writeFile(path, loadPage(result, reportLines(result), samples));
    const page = await openBrowserPage(pathToFileURL(path).href);
    if (page === undefined) return context.skip("no browser starts here");
    try {
      const isLoaded = async () => (await page.evaluate("document.readyState")) === "complete";
      await expect.poll(isLoaded, { timeout: 30_000 }).toBe(true);
      const { lines, rows, overflow } = (await page.evaluate(drawn)) as Record<string, unknown> & { lines: number[][] };
      // Completed and failed, first token, sessions, two processes.
      expect(lines).toHaveLength(6);
      for (const [width = 0, height = 0] of lines) {
        expect(width).toBeGreaterThan(300);
        expect(height).toBeGreaterThan(5);
      }
      expect(rows).toBe(1 + result.bars.length);
      expect(overflow).toBe(0);
    } finally {
      await page.close();
    }
  });
});
