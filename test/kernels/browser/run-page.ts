import { setTimeout } from "node:timers/promises";
import { openBrowserPage } from "../../support/chromium.ts";
import type { ConformancePart } from "../conformance.ts";
import type { ConformanceReport } from "./report.ts";
import { serveConformancePage } from "./serve-page.ts";

/** Which part of the suite runs, and for how long at most. */
export interface PageRun {
  parts: readonly ConformancePart[];
  traceCount: number;
  msMax: number;
}

/** Runs the conformance page in a browser and gives what it reports; undefined where no browser starts. */
export async function runConformancePage({
  parts,
  traceCount,
  msMax,
}: PageRun): Promise<ConformanceReport | undefined> {
  const server = await serveConformancePage();
  try {
    const page = await openBrowserPage(`${server.url}?parts=${parts.join()}&traces=${traceCount}`);
    if (page === undefined) return undefined;
    try {
      for (const endMs = Date.now() + msMax; ; ) {
        const report = (await page.evaluate("globalThis.conformance")) as ConformanceReport | undefined;
        if (report?.isDone === true || report?.error !== undefined) return report;
        if (Date.now() > endMs) throw new Error(`the page is not done after ${msMax} ms: ${JSON.stringify(report)}`);
        await setTimeout(250);
      }
    } finally {
      await page.close();
    }
  } finally {
    await server.close();
  }
}
