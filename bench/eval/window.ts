/** One window: some tokens of a text behind a context, read under every selection, one after the other and from the same KV. */
import { setImmediate } from "node:timers/promises";
import type { SelectionPlan, SliceTraffic } from "../../kernels/contract.ts";
import { best, divergenceOf, logSoftmax } from "../distribution.ts";
import type { Random } from "../random.ts";
import type { Sequence } from "../recall/sequence.ts";
import type { Capture } from "./capture.ts";
import { FidelityProbe, type ProbeOptions, type RowFidelity } from "./fidelity.ts";
import type { Candidate } from "./grid.ts";
import { meanOf } from "./statistics.ts";

/** Means over the rows of a window, of one selection; see {@link RowFidelity}. */
export interface WindowResult extends RowFidelity {
  name: string;
  budgetTokens: number;
  /** Absent for baselines, which generate nothing. */
  text?: TextResult;
  /** Where rows alone tell how sure a mean is: each of them, in order. */
  rows?: RowMeans[];
}

/** One row's means over layers and heads; see {@link RowFidelity}. */
export type RowMeans = Record<"mass" | "oracleMass" | "pageRecall" | "outputError", number>;

/** What a model that reads a text under a selection makes of it, token after token; KV of the window's rows is the selection's own. */
export interface TextResult {
  /** Nats per token. */
  loss: number;
  denseLoss: number;
  /** KL(dense, selection) of the next token, nats. */
  divergence: number;
  /** Rows whose best token is that of dense. */
  topAgreement: number;
  /** Bytes that a token's step read, by the device's count. */
  kvBytes: number;
  metadataBytes: number;
}

/** A window's results and its times; the latter are of this machine and not repeatable. */
export interface Window {
  results: WindowResult[];
  denseBytes: number;
  /** Where text was read. Median over the rows of a step, by selection (in the order of `results`; 0 for baselines), and dense. */
  stepMs?: number[];
  denseStepMs?: number;
}

/** Reads `ids` (the window's tokens and the one behind them) from where `sequence` is, at a block's border; leaves it there. */
export async function measureWindow(options: {
  probe: ProbeOptions;
  sequence: Sequence;
  ids: readonly number[];
  candidates: readonly Candidate[];
  random: Random;
  signal: AbortSignal;
}): Promise<Window> {
  const { sequence, ids, candidates, signal } = options;
  const { capture } = options.probe;
  const start = sequence.length;
  const dense = await readDense(options);
  const results: WindowResult[] = [];
  const stepMs: number[] = [];
  for (const [index, { name, budgetTokens, plan }] of candidates.entries()) {
    const rows = dense.rows.map((row) => row[index] as RowFidelity);
    const result: WindowResult = { name, budgetTokens, ...meanFidelity(rows) };
    let ms = 0;
    if (typeof plan === "object") {
      await pause(signal);
      sequence.rewind(start);
      const read = await readText({ sequence, capture, ids, plan });
      result.text = compareText(read, dense.logits, ids);
      ms = read.stepMs;
    }
    results.push(result);
    stepMs.push(ms);
  }
  sequence.rewind(start);
  return { results, denseBytes: dense.denseBytes, stepMs, denseStepMs: dense.stepMs };
}

async function readDense(options: Parameters<typeof measureWindow>[0]) {
  const { sequence, ids, signal } = options;
  const { capture } = options.probe;
  const probe = new FidelityProbe(options.probe);
  const start = sequence.length;
  const rows: RowFidelity[][] = [];
  let denseBytes = 0;
  try {
    for (const id of ids.slice(0, -1)) {
      await pause(signal);
      const row = await measureRow(probe, id, options);
      rows.push(row.fidelity);
      denseBytes += row.denseBytes;
    }
  } finally {
    probe.close();
  }
  sequence.rewind(start);
  const { logits, stepMs } = await readText({ sequence, capture, ids, plan: { kind: "dense" } });
  return { rows, logits, stepMs, denseBytes: denseBytes / rows.length };
}

/** Reads one token densely and judges every candidate on the queries of that step; one entry per candidate. `denseBytes`: K and V that the step read. */
export async function measureRow(
  probe: FidelityProbe,
  id: number,
  options: {
    probe: Pick<ProbeOptions, "capture">;
    sequence: Sequence;
    candidates: readonly Candidate[];
    random: Random;
  },
): Promise<{ fidelity: RowFidelity[]; denseBytes: number }> {
  const { sequence, candidates, random } = options;
  const { capture } = options.probe;
  const before = sequence.traffic.kvBytes;
  capture.isOn = true;
  try {
    await sequence.advance(id, { kind: "dense" });
  } finally {
    capture.isOn = false;
  }
  const denseBytes = sequence.traffic.kvBytes - before;
  const slice = sequence.slice(sequence.length - 1, 1, { kind: "dense" });
  return { fidelity: await probe.measure(slice, candidates, { denseBytes, random }), denseBytes };
}

/** Lets the event loop turn: steps of a CPU device never leave the microtask queue, and a Ctrl-C would not be heard before the end. */
export async function pause(signal: AbortSignal): Promise<void> {
  await setImmediate();
  signal.throwIfAborted();
}

interface TextRead {
  /** Raw, one row per token of the window. */
  logits: Float32Array[];
  stepMs: number;
  traffic: SliceTraffic;
}

async function readText(options: {
  sequence: Sequence;
  capture: Capture;
  ids: readonly number[];
  plan: SelectionPlan;
}): Promise<TextRead> {
  const { sequence, capture, ids, plan } = options;
  const logits: Float32Array[] = [];
  const times: number[] = [];
  for (const id of ids.slice(0, -1)) {
    const startMs = performance.now();
    await sequence.advance(id, plan);
    times.push(performance.now() - startMs);
    logits.push(capture.logits);
  }
  times.sort((a, b) => a - b);
  return { logits, stepMs: times[Math.floor(times.length / 2)] as number, traffic: sequence.traffic };
}

function compareText(read: TextRead, dense: readonly Float32Array[], ids: readonly number[]): TextResult {
  const rows = read.logits.map((logits, row) => {
    const [ours, theirs] = [logSoftmax(logits), logSoftmax(dense[row] as Float32Array)];
    const next = ids[row + 1] as number;
    return {
      loss: -(ours[next] as number),
      denseLoss: -(theirs[next] as number),
      divergence: divergenceOf(theirs, ours),
      agrees: best(ours) === best(theirs),
    };
  });
  return {
    loss: meanOf(rows.map(({ loss }) => loss)),
    denseLoss: meanOf(rows.map(({ denseLoss }) => denseLoss)),
    divergence: meanOf(rows.map(({ divergence }) => divergence)),
    topAgreement: meanOf(rows.map(({ agrees }) => Number(agrees))),
    kvBytes: read.traffic.kvBytes / rows.length,
    metadataBytes: read.traffic.metadataBytes / rows.length,
  };
}

/** Means over rows, cell by cell. */
export function meanFidelity(rows: readonly RowFidelity[]): RowFidelity {
  const cells = (key: "mass" | "oracleMass" | "pageRecall" | "outputError"): number[][] =>
    (rows[0] as RowFidelity)[key].map((layer, index) =>
      layer.map((_, head) => meanOf(rows.map((row) => row[key][index]?.[head] as number))),
    );
  const mean = (key: "kvBytes" | "metadataBytes" | "pagesShare") => meanOf(rows.map((row) => row[key]));
  return {
    mass: cells("mass"),
    oracleMass: cells("oracleMass"),
    pageRecall: cells("pageRecall"),
    outputError: cells("outputError"),
    kvBytes: mean("kvBytes"),
    metadataBytes: mean("metadataBytes"),
    pagesShare: mean("pagesShare"),
  };
}
