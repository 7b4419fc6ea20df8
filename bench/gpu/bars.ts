/** What must hold on a data-centre GPU, out of what the stages gave. */
import type { DecodeRow } from "../decode/measure-decode.ts";
import type { KernelRow } from "../kernels/kernel-case.ts";
import type { GpuLimits } from "./gpu-limits.ts";
import { GPU_CONTEXTS, type GpuSize } from "./stages.ts";

/** One figure; `value` is absent where its stage gave none. */
export interface GpuBar {
  figure: string;
  unit: "%" | "x" | "ms";
  value?: number;
  /** The value must be at least (or, of times, at most) `must`; `aim` is what is hoped for. */
  must: number;
  aim: number;
  verdict: "not measured" | "missed" | "met" | "aim met";
}

/** Results of stages by name, as their benchmarks wrote them; of stages that failed there is none. */
export type StageResults = Readonly<Record<string, unknown>>;

/** Every bar of the issue, also those that nothing was measured for. */
export function gpuBars(results: StageResults, size: GpuSize): GpuBar[] {
  const { short, long } = GPU_CONTEXTS[size];
  const least = (figure: string, unit: "%" | "x", value: number | undefined, [must, aim]: [number, number]) =>
    bar({ figure, unit, must, aim }, value, (bound) => value !== undefined && value >= bound);
  const outside = outsideMs(results);
  return [
    least(
      `paged decode attention, ${short} tokens, batch, share of copy bandwidth`,
      "%",
      copyShare(kernelsOf(results, "attention-short"), ({ op }) => op === "attend, decode, dense"),
      [60, 85],
    ),
    least(
      "int4 GEMV, 14336 to 4096, share of copy bandwidth",
      "%",
      copyShare(
        kernelsOf(results, "linear"),
        ({ op, size: rows }) => op === "matmul int4 (down)" && rows.startsWith("1 x"),
        "gemv",
      ),
      [60, 85],
    ),
    least(
      `selection against dense attention, batch, ${long} tokens`,
      "x",
      attentionRatio(results, "attention-long"),
      [6, 11],
    ),
    least(
      `selection against dense attention, batch, ${short} tokens`,
      "x",
      attentionRatio(results, "attention-short"),
      [3, 6],
    ),
    least(
      `end to end, batch, ${short} tokens, selection against dense`,
      "x",
      decodeRatio(results, "decode-short"),
      [1.6, 2.3],
    ),
    least(
      `end to end, one sequence, ${long} tokens, selection against dense`,
      "x",
      decodeRatio(results, "decode-long"),
      [1.4, 2],
    ),
    bar(
      { figure: "time outside of kernels, per step, the longest of all decode cases", unit: "ms", must: 1.5, aim: 0.5 },
      outside,
      (bound) => outside !== undefined && outside <= bound,
    ),
  ];
}

function bar(
  what: Pick<GpuBar, "figure" | "unit" | "must" | "aim">,
  value: number | undefined,
  holds: (bound: number) => boolean,
): GpuBar {
  if (value === undefined) return { ...what, verdict: "not measured" };
  return { ...what, value, verdict: holds(what.aim) ? "aim met" : holds(what.must) ? "met" : "missed" };
}

interface Kernels {
  limits: GpuLimits;
  rows: KernelRow[];
}

function kernelsOf(results: StageResults, stage: string): Kernels | undefined {
  return results[stage] as Kernels | undefined;
}

/**
 * Percent of the copy bandwidth that an op reaches with the bytes it needs. `own`: how the names of the kernels begin that count, where others only prepare (in
 * a model the op before a product quantizes its input).
 */
function copyShare(kernels: Kernels | undefined, isIt: (row: KernelRow) => boolean, own?: string): number | undefined {
  const row = kernels?.rows.find(isIt);
  if (row === undefined || kernels === undefined) return undefined;
  const times = Object.entries(row.kernels ?? {}).filter(([name]) => own !== undefined && name.startsWith(own));
  const ms = times.length === 0 ? row.ms.min : times.reduce((sum, [, each]) => sum + each, 0);
  return (row.bytes * 1e5) / ms / kernels.limits.copyBytesPerS;
}

function attentionRatio(results: StageResults, stage: string): number | undefined {
  const msOf = (op: string) => kernelsOf(results, stage)?.rows.find((row) => row.op === op)?.ms.min;
  return ratio(msOf("attend, decode, dense"), msOf("select and attend, decode, quest"));
}

function decodeRows(results: StageResults, stage: string): readonly DecodeRow[] {
  return (results[stage] as { rows: DecodeRow[] } | undefined)?.rows ?? [];
}

function decodeRatio(results: StageResults, stage: string): number | undefined {
  const msOf = (policy: string) => decodeRows(results, stage).find((row) => row.policy === policy)?.msPerToken.p50;
  return ratio(msOf("dense"), msOf("quest"));
}

function ratio(dense: number | undefined, selected: number | undefined): number | undefined {
  return dense === undefined || selected === undefined ? undefined : dense / selected;
}

function outsideMs(results: StageResults): number | undefined {
  const rows = ["decode-short", "decode-long"].flatMap((stage) => decodeRows(results, stage));
  const times = rows.flatMap(({ gpu }) => (gpu === undefined ? [] : [gpu.outsideMs]));
  return times.length === 0 ? undefined : Math.max(...times);
}
