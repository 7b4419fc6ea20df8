import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { describeRow, type KernelRow } from "../../bench/kernels/kernel-case.ts";
import type { MachineLimits } from "../../bench/kernels/machine-limits.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("bench kernels", () => {
  it("has a row per op with what it must move, what that implies, and what it took", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "kernels.json");
      const small = ["--shape=tiny", "--threads=1", "--context=1024", "--budget=256", "--rows=64", "--ms=2"];
      const run = await runBench(["kernels", ...small, `--json=${path}`]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(
        /\nlimits of the machine: memory read [\d.]+ GB\/s, int8 [\d.]+ GOP\/s, f32 [\d.]+ GOP\/s\n/,
      );
      expect(run.out).toMatch(/\nop +size +MB +Mop +limit ms +bound +ms +p50 +GB\/s +GOP\/s +share %\n/);
      const json = JSON.parse(await readFile(path, "utf8")) as { limits: MachineLimits; rows: KernelRow[] };
      // Any machine reads and computes faster than this, and none of today's a thousand times as fast.
      const { readBytesPerS, int8OpsPerS, f32OpsPerS } = json.limits;
      for (const rate of [readBytesPerS, int8OpsPerS, f32OpsPerS]) {
        expect(rate).toBeGreaterThan(1e8);
        expect(rate).toBeLessThan(1e13);
      }
      const ops = new Set(json.rows.map(({ op }) => op.replace(/ \(.*/, "")));
      expect(ops).toEqual(
        new Set([
          ...["matmul int8", "rmsNorm", "siluMul", "embed int8", "sample", "append", "append, seals a block"],
          ...["select", "attend, decode, dense", "select and attend, decode, quest", "attend, prefill, dense"],
        ]),
      );
      for (const row of json.rows) {
        expect(row.bytes, row.op).toBeGreaterThan(0);
        expect(row.ms.min, row.op).toBeGreaterThan(0);
        expect(row.ms.p50, row.op).toBeGreaterThanOrEqual(row.ms.min);
        expect(row.share, row.op).toBeCloseTo(row.limitMs / row.ms.min);
      }
      const find = (op: string) => json.rows.find((row) => row.op === op)!;
      // One row of [64, 96]: codes and scales of the weights, inputs, outputs.
      const down = json.rows.find(({ op, size }) => op === "matmul int8 (down)" && size === "1 x 64 x 96")!;
      expect(down.bytes).toBe((64 * 96 * 36) / 32 + (96 + 64) * 4);
      expect(down.ops).toBe(2 * 64 * 96);
      // A decoded token at 1024 attends to 16 sealed blocks of 2 heads of 16, and to itself in f32.
      const sealedBytes = 16 * 2 * (2 * 64 * 16 + 16 * 4 + 64 * 4);
      expect(find("attend, decode, dense").bytes).toBe(sealedBytes + 2 * 2 * 16 * 4);
      expect(find("select and attend, decode, quest").bytes).toBeLessThan(sealedBytes / 1.5);
    });
  });

  it("takes the larger of both times as the limit", () => {
    const limits = { readBytesPerS: 1e9, int8OpsPerS: 4e9, f32OpsPerS: 2e9 };
    const item = { op: "o", size: "s" };
    const row = describeRow(item, { bytes: 1e6, ops: 2e6, arithmetic: "int8" }, [5, 2, 4], limits);
    expect(row).toMatchObject({ limitMs: 1, bound: "memory", share: 0.5, ms: { min: 2, p50: 4 }, gigabytesPerS: 0.5 });
    const heavy = describeRow(item, { bytes: 1e6, ops: 8e6, arithmetic: "f32" }, [4], limits);
    expect(heavy).toMatchObject({ limitMs: 4, bound: "f32", share: 1, gigaopsPerS: 2 });
  });

  it("refuses a context that is no whole number of blocks", async () => {
    const run = await runBench(["kernels", "--context=100"]);
    expect(run).toMatchObject({ code: 1, err: "bench: --context must be a multiple of 64\n" });
  });
});
