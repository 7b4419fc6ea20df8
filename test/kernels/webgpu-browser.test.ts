/** The same kernels and the same suite in a real browser, on its software adapter: what is quick enough for every run. */
import { describe, expect, it } from "vitest";
import { markExercised } from "../exercised.ts";
import { runConformancePage } from "./browser/run-page.ts";
import { QUICK_PARTS } from "./webgpu-parts.ts";

const TIMEOUT_MS = 240_000;

describe("the conformance page in Chromium", () => {
  markExercised("device", "webgpu in a browser");

  it("passes on the browser's software adapter", { timeout: TIMEOUT_MS }, async ({ skip }) => {
    const report = await runConformancePage({ parts: QUICK_PARTS, traceCount: 1, msMax: TIMEOUT_MS - 40_000 });
    if (report === undefined && process.env.CI === undefined) skip("no browser for this platform");
    expect(report?.error).toBeUndefined();
    expect(report?.failed).toEqual([]);
    expect(report?.passed).toBeGreaterThan(70);
    expect(report?.adapter).toMatch(/swiftshader/i);
  });
});
