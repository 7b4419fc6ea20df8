/** The host's part of a step on the GPU device, without a GPU: how many dispatches a step has, and that attention gets work for what was chosen only. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { decodeStep, type HostRow, openNullDevice } from "../../bench/gpu/host-time.ts";
import type { SelectionPlan, StepSlice } from "../../kernels/contract.ts";
import { ownPool } from "../../kernels/webgpu/buffers.ts";
import { Gpu } from "../../kernels/webgpu/gpu.ts";
import { StepLayout } from "../../kernels/webgpu/step-layout.ts";
import { Addresses, Words } from "../../kernels/webgpu/words.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { kernelsOf } from "../kernels/support/kernel-names.ts";
import { runBench } from "./run-bench.ts";

vi.setConfig({ testTimeout: 120_000 });
const device = await openNullDevice().catch((error: unknown) => {
  if (process.env.CI !== undefined) throw error;
  return undefined;
});

/**
 * Of one inner layer: norm, queries and keys, values, append, attention, its merge, product, norm, gate and up, silu, product. Values go with queries
 * and keys where a kernel may have 11 buffers; the null backend grants 8.
 */
const DENSE_LAYER = 11;
/** One key a page by its scores, the best and the list of their blocks; append makes what scores take of queries. */
const SELECT = 2;

describe.skipIf(device === undefined)("a step of the GPU device on the host", () => {
  it("gpu-host counts as many dispatches more per layer as a layer has", async () => {
    const rowsOf = (layers: number) =>
      withTempFolder(async (folder) => {
        const path = join(folder, "result.json");
        const { code } = await runBench(["gpu-host", `--layers=${layers}`, "--steps=2", `--json=${path}`]);
        expect(code).toBe(0);
        return (JSON.parse(await readFile(path, "utf8")) as { rows: HostRow[] }).rows;
      });
    const [two, three] = [await rowsOf(2), await rowsOf(3)];
    expect(two.map(({ batch, policy }) => `${batch} ${policy}`)).toEqual(["8 dense", "8 quest", "1 dense", "1 quest"]);
    for (const [index, { policy, dispatches, msPerStep }] of two.entries()) {
      const layer = DENSE_LAYER + (policy === "quest" ? SELECT : 0);
      expect(three[index]!.dispatches - dispatches, policy).toBe(layer);
      expect(msPerStep.p50).toBeGreaterThan(0);
    }
  });

  it.each([
    ["quest", ["append_queries_32", "score_pages_bounds_32_keys", "choose_blocks"]],
    ["infllm+scope(head)+combine(max)", ["append_queries_32", "score_pages_keys_32_keys", "choose_blocks"]],
    ["residual-signs+combine(max)", ["append_turned_32", "score_pages_residuals_keys", "choose_blocks"]],
    ["quest+scope(layer)", ["append_queries_32", "score_pages_bounds_32", "combine", "choose_blocks"]],
    ["quest+combine(sum)", ["append_queries_32", "score_pages_bounds_32", "score_stats", "combine", "choose_blocks"]],
    ["quest+top-p(0.9)", ["append_queries_32", "score_pages_bounds_32_keys", "top_k", "top_mass", "list_blocks"]],
    ["quest+share(3)", ["append", "list_blocks"]],
    ["streaming", ["append", "list_blocks"]],
  ])("between append and attention: %s", async (policy, kernels) => {
    const run = await decodeStep(device!, { layerCount: 3, batch: 2, contextTokens: 16_384, policy });
    const names = await kernelsOf(device!, run);
    const first = names.findLastIndex((name) => name.startsWith("append"));
    const end = names.findLastIndex((name) => name.startsWith("attend"));
    expect(names.slice(first, end)).toEqual(kernels);
  });

  it("biases of queries, keys and values are three dispatches more, and keep no product apart", async () => {
    const count = async (layerCount: number): Promise<number> => {
      const what = { layerCount, batch: 2, contextTokens: 4096, policy: "dense", qkvBias: true };
      const run = await decodeStep(device!, what);
      return (await kernelsOf(device!, run)).length;
    };
    expect((await count(3)) - (await count(2))).toBe(DENSE_LAYER + 3);
  });

  it("no kernel is made twice, by whatever step", async () => {
    const asked = vi.spyOn(Gpu.prototype, "pipelineOf");
    for (const policy of ["dense", "quest", "residual-signs", "mean-deviation+share(2)"] as const) {
      const run = await decodeStep(device!, { layerCount: 3, batch: 2, contextTokens: 16_384, policy });
      await run();
      await run();
    }
    const kernels = asked.mock.calls.map(([kernel]) => kernel);
    asked.mockRestore();
    expect(kernels.length).toBeGreaterThan(300);
    expect(new Set(kernels).size).toBe(new Set(kernels.map(({ name }) => name)).size);
  });

  it("attention over 128 chosen pages has splits for 128 pages and not for a context of 131,000 tokens", () => {
    const blockCount = 2048;
    const position = 131_008;
    const spec = { layerCount: 1, kvHeadCount: 8, headDim: 16, encoding: "int8", summaryKinds: ["min-max"] } as const;
    const pool = ownPool(device!.kvPool({ ...spec, blockCount, openSlotCount: 1, summarySlotCount: blockCount }));
    const splitsOf = (plan: SelectionPlan) => {
      const blockIds = Int32Array.from({ length: blockCount }, (_, block) => block);
      const slice: StepSlice = {
        ...{ position, rowCount: 1, blockIds, blockCapacity: blockCount, summarySlots: blockIds },
        ...{ openSlots: Int32Array.of(0), groupStarts: Int32Array.of(0), plan },
      };
      const parts = { pool, headCount: 32, slices: [slice], tables: new Words(), outcome: new Addresses() };
      return new StepLayout(parts).listsOf(0).splitCount;
    };
    // 2,048 blocks, eight to a split.
    expect(splitsOf({ kind: "dense" })).toBe(256);
    // Never more blocks than 128 pages, four to a split.
    expect(splitsOf(policyNamed("quest").plan(2048))).toBe(32);
    expect(splitsOf(policyNamed("quest").plan(2064))).toBe(33);
    expect(splitsOf(policyNamed("quest").plan(131_072))).toBe(256);
    // A selection that leaves nothing out is dense: eight to a split again.
    const all = { headShares: [Number.POSITIVE_INFINITY], scope: "kv-head", combine: "max" } as const;
    const pages = { kind: "pages", budgetPages: 128, sinkPages: 1, recentPages: 1 } as const;
    expect(splitsOf({ ...pages, ...all, scorer: { summary: "min-max", radiusWeight: 1 } })).toBe(256);
  });
});
