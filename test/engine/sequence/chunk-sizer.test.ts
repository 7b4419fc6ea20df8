import { describe, expect, it } from "vitest";
import { ChunkSizer } from "../../../engine/sequence/chunk-sizer.ts";

describe("the rows of a prefill step", () => {
  it("settle where a step takes its target, from above and from below", () => {
    for (const msPerRow of [0.05, 0.4, 1, 3, 8]) {
      const sizer = new ChunkSizer({ rowsMax: 512, targetMs: 150 });
      for (let step = 0; step < 12; step++) sizer.observe(sizer.rows, sizer.rows * msPerRow);
      const ideal = Math.max(16, Math.min(512, 150 / msPerRow));
      expect(sizer.rows, `${msPerRow} ms a row`).toBeGreaterThan(ideal * 0.9 - 1);
      expect(sizer.rows, `${msPerRow} ms a row`).toBeLessThanOrEqual(ideal);
    }
  });

  it("grow at most twofold and shrink at once", () => {
    const sizer = new ChunkSizer({ rowsMax: 512, targetMs: 100 });
    expect(sizer.rows).toBe(64);
    sizer.observe(64, 0);
    expect(sizer.rows).toBe(128);
    sizer.observe(128, 1000);
    expect(sizer.rows).toBe(16);
  });

  it("do not grow by a step that was short for want of rows, and do shrink by a slow one", () => {
    const sizer = new ChunkSizer({ rowsMax: 512, targetMs: 100 });
    sizer.observe(20, 5);
    expect(sizer.rows).toBe(64);
    sizer.observe(40, 400);
    expect(sizer.rows).toBe(16);
  });
});
