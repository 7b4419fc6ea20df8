/** Cases of appending, selecting and attending behind a context of seeded KV. */
import { BLOCK_TOKENS, type KvPool, type StepReadback, type StepSlice } from "../../kernels/contract.ts";
import { ropeFrequencies } from "../../models/rope-frequencies.ts";
import { RopePositions } from "../../models/rope-table.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { openSlotsFor } from "../decode/bench-model.ts";
import { fillRandom } from "../decode/fill-random.ts";
import { sequenceTable } from "../decode/sequence-table.ts";
import type { KernelCase, KernelWork } from "./kernel-case.ts";
import { type CaseInput, filled } from "./linear-cases.ts";

/** Open slots of the longest chunk that fills the pool. */
const OPEN_SLOTS = 10;
const POLICIES = ["quest", "mean-deviation"] as const;

/** How long the context is, and how much of it is selected. */
export interface AttentionInput extends CaseInput {
  contextTokens: number;
  budgetTokens: number;
  /** So many layers, at most the model's, take turns, so that no cache holds what one layer reads. */
  layersMax: number;
}

/** Fills a pool for `batch` sequences and returns the cases; `contextTokens` is a multiple of 64. */
export async function attentionCases(input: AttentionInput): Promise<KernelCase[]> {
  const { device, contextTokens, rows, budgetTokens, batch } = input;
  const config = { ...input.config, layerCount: Math.min(input.layersMax, input.config.layerCount) };
  const { kvHeadCount, headDim, headCount, layerCount } = config;
  const end = contextTokens + rows;
  const blockCapacity = Math.ceil(end / BLOCK_TOKENS);
  const pool = device.kvPool({
    ...{ layerCount, kvHeadCount, headDim, encoding: "int8", summaryKinds: ["min-max", "mean-deviation"] },
    ...{ blockCount: batch * blockCapacity * layerCount, openSlotCount: Math.max(OPEN_SLOTS, batch) },
    summarySlotCount: batch * blockCapacity,
  });
  const tables = Array.from({ length: batch }, (_, sequence) => sequenceTable({ sequence, layerCount, blockCapacity }));
  const capacityTokens = blockCapacity * BLOCK_TOKENS;
  for (const [sequence, table] of tables.entries()) {
    const filled = { config, device, capacityTokens, runner: { pool }, blockTable: () => table };
    await fillRandom(filled, input.seed + sequence, end);
  }
  const slice = (position: number, rowCount: number, policy: SelectionConfiguration, table = tables[0]!): StepSlice => {
    const { groupTokens, plan } = policyNamed(policy);
    const groupCount = policy === "dense" ? 1 : Math.ceil(rowCount / groupTokens);
    const groupStarts = Int32Array.from({ length: groupCount }, (_, group) => group * groupTokens);
    return {
      ...table,
      position,
      rowCount,
      openSlots: openSlotsFor(position, rowCount),
      groupStarts,
      plan: plan(budgetTokens),
    };
  };
  const rowsMax = Math.max(rows, batch);
  const q = filled(input, "q", rowsMax * headCount * headDim);
  const out = device.buffer("attended", rowsMax * headCount * headDim * 4);
  const attention = { pool, headCount, layerCount, q, out };
  // A context of whole blocks: every row of a step has an open slot of its own.
  const decode = (policy: SelectionConfiguration) =>
    tables.map((table, sequence) => ({
      ...slice(contextTokens, 1, policy, table),
      openSlots: Int32Array.of(sequence),
    }));
  const flops = (queries: number, tokens: number) => 4 * queries * headCount * headDim * tokens;
  return [
    ...appendCases(input, {
      ...attention,
      end,
      slices: [1, BLOCK_TOKENS].map((count) => slice(contextTokens, count, "dense")),
    }),
    ...POLICIES.map((policy) =>
      selectCase(`select (${policy})`, attention, decode(policy), `${batch} x ${contextTokens}`),
    ),
    attendCase("attend, decode, dense", attention, decode("dense"), {
      ...{ size: `${batch} x ${contextTokens}`, flops: flops(batch, contextTokens) },
    }),
    attendCase("select and attend, decode, quest", attention, decode("quest"), {
      size: `${batch} x ${budgetTokens} of ${contextTokens}`,
      flops: flops(batch, Math.min(budgetTokens, contextTokens)),
    }),
    attendCase("attend, prefill, dense", attention, [slice(contextTokens, rows, "dense")], {
      ...{ size: `${rows} x ${contextTokens}`, flops: flops(rows, contextTokens + rows / 2) },
    }),
  ];
}

interface Attention {
  pool: KvPool;
  headCount: number;
  layerCount: number;
  q: ReturnType<typeof filled>;
  out: ReturnType<typeof filled>;
}

function appendCases(
  input: AttentionInput,
  { pool, headCount, layerCount, q, end, slices }: Attention & { end: number; slices: readonly StepSlice[] },
): KernelCase[] {
  const { kvHeadCount, headDim } = pool.spec;
  const rope = new RopePositions(input.device, { ...ropeFrequencies(input.config), positionCount: end });
  rope.ensure(0, end - 1);
  const k = filled(input, "k", BLOCK_TOKENS * kvHeadCount * headDim);
  const v = filled(input, "v", BLOCK_TOKENS * kvHeadCount * headDim);
  return slices.map((slice) => {
    const seals = slice.rowCount === BLOCK_TOKENS;
    const rowBytes = slice.rowCount * (2 * headCount + 4 * kvHeadCount) * headDim * 4;
    const summaryBytes = (pool.spec.summaryKinds.length * pool.summaryBytes) / layerCount;
    const sealBytes = seals ? pool.blockBytes + summaryBytes : 0;
    return {
      ...{ op: seals ? "append, seals a block" : "append", size: `${slice.rowCount} rows`, slices: [slice] },
      record: (recorder, turn) =>
        recorder.append({ pool, layer: turn % layerCount, headCount, q, k, v, rope: rope.table }),
      work: () => ({
        bytes: rowBytes + sealBytes,
        ops: slice.rowCount * (headCount + kvHeadCount) * headDim * 3,
        arithmetic: "f32",
      }),
    };
  });
}

function selectCase(
  op: string,
  { pool, headCount, layerCount, q }: Attention,
  slices: readonly StepSlice[],
  size: string,
): KernelCase {
  return {
    ...{ op, size, slices },
    record: (recorder, turn) => recorder.select({ pool, layer: turn % layerCount, headCount, q }),
    work: (traffic) => scoreWork(traffic, headCount / pool.spec.kvHeadCount),
  };
}

/** Each code of a summary is multiplied and added once per query head of its KV head. */
function scoreWork(traffic: StepReadback["traffic"], headsPerKvHead: number): KernelWork {
  const bytes = traffic.reduce((sum, each) => sum + each.metadataBytes, 0);
  return { bytes, ops: bytes * 2 * headsPerKvHead, arithmetic: "int8" };
}

/** Attention with the select that must come before it. */
function attendCase(
  op: string,
  { pool, headCount, layerCount, q, out }: Attention,
  slices: readonly StepSlice[],
  { size, flops }: { size: string; flops: number },
): KernelCase {
  return {
    ...{ op, size, slices },
    record: (recorder, turn) => {
      const layer = turn % layerCount;
      recorder.select({ pool, layer, headCount, q });
      recorder.attend({ pool, layer, headCount, q, out });
    },
    work: (traffic) => {
      const score = scoreWork(traffic, headCount / pool.spec.kvHeadCount);
      const kvBytes = traffic.reduce((sum, each) => sum + each.kvBytes, 0);
      return { bytes: kvBytes + score.bytes, ops: flops + score.ops, arithmetic: "f32" };
    },
  };
}
