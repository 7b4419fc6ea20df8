/** The instrument's work on traces: every place of every file once, noted as soon as it is done. */
import { UsageError } from "../../../cli/usage-error.ts";
import type { DeviceBuffer } from "../../../kernels/contract.ts";
import { UNCALIBRATED_SELECTION } from "../../../models/selection/calibration.ts";
import { resolveHeads } from "../../../models/selection/head-profile.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { failFile } from "../../../models/weights-file.ts";
import { AUTO_SELECTION } from "../../../protocol/generate.ts";
import type { BenchContext } from "../../bench.ts";
import { seededRandom } from "../../random.ts";
import { FidelityProbe, type RowFidelity, relativeError } from "../fidelity.ts";
import type { PlacedWindow } from "../figures.ts";
import type { GivenValues } from "../flags.ts";
import { type Candidate, candidatesOf, summaryKindsOf } from "../grid.ts";
import { Journal } from "../journal.ts";
import { Progress } from "../progress.ts";
import { meanOf } from "../statistics.ts";
import { meanFidelity, measureRow, pause, type RowMeans, type Window } from "../window.ts";
import { TraceFile } from "./trace-file.ts";
import { placesOf, type TracePlace } from "./trace-places.ts";
import { openTraceDevice, openTraceSubject, type TraceSubject } from "./trace-subject.ts";

/** Rows at more contexts than these make a report that nobody reads. */
const PLACES_MAX = 32;
/** A layer's output that is further from the file's own than this share of it (mean over heads) is another attention's. */
const OUTPUT_DISTANCE_MAX = 0.2;

/** What of the flags is looked at. */
export type TraceValues = Pick<GivenValues, "policies" | "budgets" | "device" | "threads" | "kv" | "seed"> & {
  trace: readonly string[];
};

/** One file, as the report shows it. */
export interface TraceNote {
  file: string;
  sha256: string;
  source?: string;
  tokenCount: number;
  rowCount: number;
  /** How far attention over the pool is from what the file says that attention gave; absent where it says nothing. */
  outputDistance?: OutputDistance;
}

interface OutputDistance {
  /** Over rows, layers and heads, of the length of the head's output. */
  mean: number;
  /** Of a layer at a row, mean over heads. */
  largest: number;
}

/** What was measured, and on what. */
export interface TraceRun {
  candidates: readonly Candidate[];
  windows: PlacedWindow[];
  traces: TraceNote[];
  model: { id: string; parameters: string; layers: readonly number[]; numericsId: string; device: string };
  /** Stopped before its end. */
  interrupted: boolean;
}

interface MeasuredPlace extends Window {
  outputDistance?: OutputDistance;
}

/**
 * Runs what the journal of `folder` does not hold yet.
 * @throws {QuireError} `invalid_request` for a file that is no trace, and {UsageError} for files that are not of one model.
 */
export async function runTraces(values: TraceValues, folder: string, context: BenchContext): Promise<TraceRun> {
  const traces: TraceFile[] = [];
  try {
    for (const path of values.trace) traces.push(await TraceFile.open(path));
    return await measureTraces(traces, values, { folder, context });
  } finally {
    for (const trace of traces) await trace.close();
  }
}

async function measureTraces(
  traces: readonly TraceFile[],
  values: TraceValues,
  { folder, context }: { folder: string; context: BenchContext },
): Promise<TraceRun> {
  const [first] = traces as [TraceFile, ...TraceFile[]];
  for (const trace of traces) assertLike(first, trace);
  const placed = traces.map((trace) => checkedPlaces(trace));
  const policies = [
    ...new Set(values.policies.map((name) => (name === AUTO_SELECTION ? UNCALIBRATED_SELECTION : name))),
  ];
  const resolve = (name: string): string => resolveHeads(name, first.shape);
  const candidates = candidatesOf(policies, values.budgets, resolve);
  const summaryKinds = summaryKindsOf(policies);
  const numbers: Pick<TraceRun["model"], "numericsId" | "device"> = await withDevice(values, async (device) => {
    return { numericsId: device.numericsId, device: device.report.description };
  });
  const { trace: _, device: __, threads: ___, ...settings } = values;
  const journal = await Journal.open(folder, {
    ...{ ...settings, numericsId: numbers.numericsId, traces: traces.map(({ sha256 }) => sha256) },
    ...{ policies, versions: policies.map((name) => policyNamed(name).version) },
  });
  const windows: PlacedWindow[] = [];
  const distances: OutputDistance[][] = traces.map(() => []);
  const progress = new Progress(context, "places", placed.flat().length);
  try {
    for (const [document, trace] of traces.entries()) {
      const places = placed[document] as TracePlace[];
      await withDevice(values, async (device) => {
        const subject = openTraceSubject(trace, { device, kv: values.kv, summaryKinds });
        for (const [index, place] of places.entries()) {
          const measured = await journal.take(`trace/${document}/${place.contextTokens}`, () => {
            const random = seededRandom(values.seed, document * PLACES_MAX + index);
            return measurePlace(subject, { place, candidates, random, signal: context.signal });
          });
          progress.step();
          const { outputDistance, ...window } = measured;
          windows.push({ ...window, document, contextTokens: place.contextTokens });
          if (outputDistance !== undefined) distances[document]?.push(outputDistance);
        }
      });
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
  }
  const { layerCount, headCount, kvHeadCount, headDim } = first.shape;
  const parameters = `${layerCount} layers, ${headCount} heads over ${kvHeadCount} KV heads of ${headDim}`;
  const model = { id: first.model, parameters, layers: first.layers, ...numbers };
  const notes = traces.map((trace, document) => noteOf(trace, distances[document] ?? []));
  return { candidates, windows, traces: notes, model, interrupted: context.signal.aborted };
}

async function withDevice<T>(
  values: TraceValues,
  use: (device: Awaited<ReturnType<typeof openTraceDevice>>) => Promise<T>,
): Promise<T> {
  const device = await openTraceDevice(values);
  try {
    return await use(device);
  } finally {
    await device.close();
  }
}

/** Figures of several files are means over them: they are of one model. */
function assertLike(first: TraceFile, other: TraceFile): void {
  const facts = ({ model, layers, shape }: TraceFile): [string, string | number][] => [
    ["model", model],
    ["layers", layers.join()],
    ["heads", shape.headCount],
    ["KV heads", shape.kvHeadCount],
    ["head_dim", shape.headDim],
  ];
  const theirs = facts(other);
  for (const [index, [what, ours]] of facts(first).entries()) {
    const value = theirs[index]?.[1];
    if (value === ours) continue;
    throw new UsageError(`--trace: ${first.name} has ${what} ${ours}, ${other.name} ${value}; judge them apart`);
  }
}

function checkedPlaces(trace: TraceFile): TracePlace[] {
  const places = placesOf(trace.positions);
  if (places.length <= PLACES_MAX) return places;
  const rows = "rows belong together that lie within a quarter of their context";
  throw new UsageError(`--trace: ${trace.name} has rows at ${places.length} contexts, at most ${PLACES_MAX}; ${rows}`);
}

async function measurePlace(
  subject: TraceSubject,
  options: {
    place: TracePlace;
    candidates: readonly Candidate[];
    random: ReturnType<typeof seededRandom>;
    signal: AbortSignal;
  },
): Promise<MeasuredPlace> {
  const { sequence } = subject;
  const { place, candidates, random, signal } = options;
  const probe = new FidelityProbe(subject.probe);
  const rows: RowFidelity[][] = [];
  const denseBytes: number[] = [];
  const distances: number[] = [];
  try {
    for (const position of place.positions) {
      await pause(signal);
      const between = Array.from({ length: position - sequence.length }, (_, index) => sequence.length + index);
      await sequence.read(between, signal);
      const row = await measureRow(probe, position, { ...subject, candidates, random });
      rows.push(row.fidelity);
      denseBytes.push(row.denseBytes);
      if (subject.trace.hasOutputs) distances.push(...(await outputDistances(subject, position)));
    }
  } finally {
    probe.close();
  }
  const results = candidates.map(({ name, budgetTokens }, index) => {
    const mine = rows.map((row) => row[index] as RowFidelity);
    return { name, budgetTokens, ...meanFidelity(mine), rows: mine.map(rowMeans) };
  });
  const outputDistance = { mean: meanOf(distances), largest: Math.max(...distances) };
  return { results, denseBytes: meanOf(denseBytes), ...(distances.length === 0 ? {} : { outputDistance }) };
}

function rowMeans({ mass, oracleMass, pageRecall, outputError }: RowFidelity): RowMeans {
  const mean = (cells: number[][]): number => meanOf(cells.flat());
  return {
    ...{ mass: mean(mass), oracleMass: mean(oracleMass) },
    ...{ pageRecall: mean(pageRecall), outputError: mean(outputError) },
  };
}

/** Of each layer, mean over heads: how far the last dense step's output is from the file's. @throws {QuireError} where it is another attention's. */
async function outputDistances({ trace, probe }: TraceSubject, position: number): Promise<number[]> {
  const { layerCount, headCount, headDim } = trace.shape;
  const distances: number[] = [];
  for (let layer = 0; layer < layerCount; layer++) {
    const buffer = probe.capture.outputs[layer] as DeviceBuffer;
    const bytes = await probe.device.read(buffer, 0, buffer.bytes);
    const ours = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const theirs = await trace.output(layer, trace.positions.indexOf(position));
    const heads = Array.from({ length: headCount }, (_, head) => {
      const range = [head * headDim, (head + 1) * headDim] as const;
      return relativeError(ours.subarray(...range), theirs.subarray(...range));
    });
    const distance = meanOf(heads);
    if (!(distance <= OUTPUT_DISTANCE_MAX)) {
      const tensor = `layers.${trace.layers[layer]}.output`;
      const what = `attention over the keys at position ${position} is ${(distance * 100).toFixed(0)} % away from it`;
      failFile(
        trace.name,
        `${tensor}: ${what}; scale, rope, the order of heads, or the positions are not what the file says`,
      );
    }
    distances.push(distance);
  }
  return distances;
}

function noteOf(trace: TraceFile, distances: readonly OutputDistance[]): TraceNote {
  const { name, sha256, source, tokenCount, positions } = trace;
  const mean = meanOf(distances.map((each) => each.mean));
  const largest = Math.max(...distances.map((each) => each.largest));
  return {
    ...{ file: name, sha256, ...(source === undefined ? {} : { source }) },
    ...{ tokenCount, rowCount: positions.length },
    ...(distances.length === 0 ? {} : { outputDistance: { mean, largest } }),
  };
}
