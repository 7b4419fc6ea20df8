/** What webgpu-browser.test.ts leaves of the suite. */
import { describe, expect, it } from "vitest";
import { runConformancePage } from "./browser/run-page.ts";
import { CONFORMANCE_PARTS } from "./conformance.ts";
import { QUICK_PARTS } from "./webgpu-parts.ts";

const TIMEOUT_MS = 1_800_000;

describe("the conformance page in Chromium, at length", () => {
  it("passes on the browser's software adapter", { timeout: TIMEOUT_MS }, async ({ skip }) => {
    const parts = CONFORMANCE_PARTS.filter((part) => !QUICK_PARTS.includes(part));
    const report = await runConformancePage({ parts, traceCount: 12, msMax: TIMEOUT_MS - 60_000 });
    if (report === undefined && process.env.CI === undefined) skip("no browser for this platform");
    expect(report?.error).toBeUndefined();
    expect(report?.failed).toEqual([]);
    expect(report?.passed).toBeGreaterThan(200);
  });
});
