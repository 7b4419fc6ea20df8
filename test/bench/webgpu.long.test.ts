/** The benchmarks on the GPU device, at tiny sizes on a software adapter: every figure is there, and bytes are those that the CPU device counts. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import type { DecodeRow } from "../../bench/decode/measure-decode.ts";
import type { GpuBar } from "../../bench/gpu/bars.ts";
import type { GpuLimits } from "../../bench/gpu/gpu-limits.ts";
import type { StageOutcome } from "../../bench/gpu/run-stage.ts";
import { gpuStages } from "../../bench/gpu/stages.ts";
import type { KernelRow } from "../../bench/kernels/kernel-case.ts";
import type { PrefillRow } from "../../bench/prefill/measure-prefill.ts";
import type { DeviceCheck } from "../../kernels/device-check.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { runBench } from "./run-bench.ts";

vi.setConfig({ testTimeout: 1_800_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

/** What a benchmark writes as JSON. */
async function result<T>(name: string, args: readonly string[]): Promise<T> {
  return withTempFolder(async (folder) => {
    const path = join(folder, "result.json");
    const run = await runBench([name, "--shape=tiny", ...args, `--json=${path}`]);
    expect(run.err.split("\n").filter((line) => line.startsWith("bench:"))).toEqual([]);
    expect(run.code).toBe(0);
    return JSON.parse(await readFile(path, "utf8")) as T;
  });
}

describe.skipIf(!hasAdapter)("benchmarks with --device webgpu", () => {
  it("kernels: limits first, then every op with its kernels' times", async () => {
    const sizes = ["--weights=int4", "--context=512", "--budget=128", "--rows=64", "--batch=2", "--ms=1"];
    const { limits, rows } = await result<{ limits: GpuLimits; rows: KernelRow[] }>("kernels", [
      "--device=webgpu",
      ...sizes,
    ]);
    for (const [name, rate] of Object.entries(limits)) expect(rate, name).toBeGreaterThan(0);
    expect(Object.keys(limits).sort()).toEqual(["copyBytesPerS", "f32OpsPerS", "int8OpsPerS", "readBytesPerS"]);
    const find = (op: string, size: string) => rows.find((row) => row.op === op && row.size === size)!;
    const down = find("matmul int4 (down)", "1 x 64 x 96");
    expect(down.bytes).toBe((64 * 96 * 20) / 32 + (96 + 64) * 4);
    expect(Object.keys(down.kernels!).some((name) => name.startsWith("gemv"))).toBe(true);
    expect(down.share).toBeCloseTo(down.limitMs / down.ms.min);
    // Two rows at 512 attend to 8 sealed blocks of 2 heads of 16 each, and to themselves in f32.
    const sealedBytes = 8 * 2 * (2 * 64 * 16 + 16 * 4 + 64 * 4);
    expect(find("attend, decode, dense", "2 x 512").bytes).toBe(2 * (sealedBytes + 2 * 2 * 16 * 4));
    expect(find("select and attend, decode, quest", "2 x 128 of 512").bytes).toBeLessThan(sealedBytes);
    for (const row of rows) expect(row.ms.min, row.op).toBeGreaterThan(0);
  });

  it("decode: batched, with the time outside of kernels, and bytes as on the CPU", async () => {
    const what = ["--contexts=256", "--policies=dense,quest", "--budget=128", "--tokens=2", "--weights=int4"];
    const gpu = await result<{ rows: DecodeRow[] }>("decode", ["--device=webgpu", "--batch=2", ...what]);
    const cpu = await result<{ rows: DecodeRow[] }>("decode", ["--threads=1", ...what]);
    expect(gpu.rows.map(({ policy }) => policy)).toEqual(["dense", "quest"]);
    for (const [index, row] of gpu.rows.entries()) {
      const { kvBytesPerToken, metadataBytesPerToken, pagesShare } = cpu.rows[index]!;
      // Which pages of noise are chosen is the seed's affair, how many is not.
      expect(row).toMatchObject({ metadataBytesPerToken, pagesShare, tokenCount: 2 });
      if (row.policy === "dense") expect(row.kvBytesPerToken).toBe(kvBytesPerToken);
      expect(row.tokensPerS).toBeCloseTo(2000 / row.msPerToken.p50);
      const { spanMs, kernelsMs, outsideMs, kernels } = row.gpu!;
      expect(spanMs).toBeGreaterThan(0);
      expect(outsideMs).toBeCloseTo(row.msPerToken.p50 - spanMs);
      expect(Object.values(kernels).reduce((sum, ms) => sum + ms, 0)).toBeCloseTo(kernelsMs);
      expect(Object.keys(kernels).some((name) => name.startsWith("attend"))).toBe(true);
    }
  });

  it("prefill: bytes as on the CPU", async () => {
    const what = ["--contexts=0,256", "--policies=dense,quest", "--budget=128", "--tokens=70"];
    const gpu = await result<{ rows: PrefillRow[] }>("prefill", ["--device=webgpu", ...what]);
    const cpu = await result<{ rows: PrefillRow[] }>("prefill", ["--threads=1", ...what]);
    expect(gpu.rows.length).toBe(4);
    for (const [index, row] of gpu.rows.entries()) {
      const { contextTokens, policy, metadataBytesLastChunk, kvBytesLastChunk } = cpu.rows[index]!;
      expect(row).toMatchObject({ contextTokens, policy, metadataBytesLastChunk });
      if (policy === "dense") expect(row.kvBytesLastChunk).toBe(kvBytesLastChunk);
      expect(row.tokensPerS).toBeGreaterThan(0);
    }
  });
});

describe.skipIf(!hasAdapter)("bench gpu", () => {
  it("runs every stage, each in a process, and has one JSON with all of it", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "gpu.json");
      const run = await runBench(["gpu", "--size=smoke", "--seconds=1700", `--json=${path}`], { env: process.env });
      const json = JSON.parse(await readFile(path, "utf8")) as { stages: StageOutcome[]; bars: GpuBar[] };
      expect(json.stages.map(({ name, status, tail }) => [name, status === "done" ? status : tail])).toEqual(
        gpuStages("smoke").map(({ name }) => [name, "done"]),
      );
      expect(run.code).toBe(0);
      expect(run.out).toContain("\nfigure");
      expect(json.bars.filter(({ value }) => value === undefined)).toEqual([]);
      const resultOf = (name: string) => json.stages.find((stage) => stage.name === name)?.result;
      const { correctness } = resultOf("ops") as { correctness: DeviceCheck[] };
      expect(correctness.length).toBe(14);
      expect(correctness.filter(({ ok }) => !ok)).toEqual([]);
      const { suite } = resultOf("suite") as { suite: { passed: number; failed: unknown[]; skipped: number } };
      expect(suite).toMatchObject({ failed: [], skipped: 0 });
      expect(suite.passed).toBeGreaterThan(5);
    });
  });
});
