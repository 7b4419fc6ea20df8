/** How near selections come to full attention at one row, layer by layer and head by head. */
import type { Device, DeviceBuffer, KvPool, SliceTraffic, StepSlice } from "../../kernels/contract.ts";
import { emptyTraffic } from "../../kernels/traffic.ts";
import { splitBudget } from "../../models/selection/policy.ts";
import { assert } from "../../protocol/assert.ts";
import { drawInteger, type Random } from "../random.ts";
import { RunChoices } from "../run-choices.ts";
import type { Capture } from "./capture.ts";
import { type AttendedPages, attendedTokens, ExactAttention, type LayerAttention } from "./exact-attention.ts";
import type { Candidate } from "./grid.ts";

/** What a selection did at one row. */
export interface RowFidelity {
  /** Attention weight of the chosen tokens, `[layer][head]`; 1 is all. */
  mass: number[][];
  /** As `mass`, of the best pages that the same bytes (metadata counted) could have read, `[layer][kvHead]`. */
  oracleMass: number[][];
  /** Of those best pages, the share that was chosen, `[layer][kvHead]`. */
  pageRecall: number[][];
  /** Distance of the head's output from that of full attention, over the latter's length, `[layer][head]`. */
  outputError: number[][];
  /** Bytes of K and V, and of summaries and keys read to choose, all layers and heads. */
  kvBytes: number;
  metadataBytes: number;
  /** Pages attended over pages in context; 1 where nothing was left out. */
  pagesShare: number;
}

/** What {@link FidelityProbe} needs of a model. */
export interface ProbeOptions {
  device: Device;
  pool: KvPool;
  headCount: number;
  capture: Capture;
}

/** Judges selections at rows, one behind the other, whose KV is in the pool and whose queries were captured from a dense step. */
export class FidelityProbe {
  readonly #options: ProbeOptions;
  readonly #exact: ExactAttention;
  readonly #outputs: DeviceBuffer[];
  /** Of every candidate, from row to row. */
  readonly #runs = new Map<Candidate, RunChoices>();

  constructor(options: ProbeOptions) {
    const { device, pool, headCount } = options;
    this.#options = options;
    this.#exact = new ExactAttention(pool);
    const bytes = headCount * pool.spec.headDim * 4;
    this.#outputs = Array.from({ length: pool.spec.layerCount }, (_, i) => device.buffer(`eval.selected.${i}`, bytes));
  }

  /** Frees what it holds on the device. */
  close(): void {
    for (const buffer of this.#outputs) this.#options.device.release(buffer);
  }

  /** One result per candidate, at the row that `slice` (of one row) describes. `denseBytes`: K and V that the dense step read. */
  async measure(
    slice: StepSlice,
    candidates: readonly Candidate[],
    { denseBytes, random }: { denseBytes: number; random: Random },
  ): Promise<RowFidelity[]> {
    const { pool, headCount, capture } = this.#options;
    const { layerCount, kvHeadCount, headDim } = pool.spec;
    await this.#exact.moveTo(slice);
    const layers: JudgedLayer[] = [];
    for (let layer = 0; layer < layerCount; layer++) {
      const queries = await this.#floats(capture.queries[layer] as DeviceBuffer);
      const dense = await this.#floats(capture.outputs[layer] as DeviceBuffer);
      assert(queries.length === headCount * headDim, "the capture is of one row");
      layers.push(judge(this.#exact.attend(layer, queries), dense));
    }
    const pageCount = (layers[0] as JudgedLayer).ranks[0]?.length ?? 0;
    const pageBytes = denseBytes / (layerCount * kvHeadCount * pageCount);
    const results: RowFidelity[] = [];
    for (const candidate of candidates) {
      const { plan, budgetTokens } = candidate;
      const chosen =
        typeof plan === "object"
          ? await this.#selectInRun(candidate, { ...slice, plan })
          : this.#baseline(layers, { kind: plan, budgetTokens, pageBytes, random });
      results.push(compare(layers, chosen, pageBytes));
    }
    return results;
  }

  /** As {@link #select}; where rows share choices, by that of the run's first row. */
  async #selectInRun(candidate: Candidate, slice: StepSlice): Promise<Chosen> {
    const runs = this.#runs.get(candidate) ?? new RunChoices();
    this.#runs.set(candidate, runs);
    const chosen = await this.#select({ ...slice, ...runs.fieldsAt(slice.position, slice.plan) });
    runs.keep(slice.position, chosen.choice);
    return chosen;
  }

  /** What the device itself chooses for the captured queries, and what attention over it gives. */
  async #select(slice: StepSlice): Promise<Chosen> {
    const { device, pool, headCount, capture } = this.#options;
    const { layerCount, kvHeadCount } = pool.spec;
    assert(device.debugSelection !== undefined, "selections can be looked at on CPU devices only");
    const recorder = device.begin([slice]);
    const attended: (AttendedPages | undefined)[][] = [];
    for (let layer = 0; layer < layerCount; layer++) {
      const [q, out] = [capture.queries[layer], this.#outputs[layer]] as [DeviceBuffer, DeviceBuffer];
      recorder.select({ pool, layer, headCount, q });
      const views = device.debugSelection(recorder);
      attended.push(
        Array.from({ length: kvHeadCount }, (_, head) => {
          const view = views.find(({ kvHead }) => kvHead === head);
          return view?.pages === undefined ? undefined : { pages: view.pages, tokenMasks: view.tokenMasks };
        }),
      );
      recorder.attend({ pool, layer, headCount, q, out });
    }
    const { traffic, choices } = await recorder.submit();
    const outputs: Float32Array[] = [];
    for (const buffer of this.#outputs) outputs.push(await this.#floats(buffer));
    return { attended, outputs, traffic: traffic[0] as SliceTraffic, choice: choices?.[0] };
  }

  /** The best pages there are, or sinks, recent pages and random ones; chosen and attended to on the host, without any metadata. */
  #baseline(
    layers: readonly JudgedLayer[],
    options: { kind: "oracle" | "random"; budgetTokens: number; pageBytes: number; random: Random },
  ): Chosen {
    const { headCount, pool } = this.#options;
    const { kvHeadCount, headDim } = pool.spec;
    const group = headCount / kvHeadCount;
    const traffic = emptyTraffic();
    const outputs: Float32Array[] = [];
    const attended = layers.map(({ attention, ranks }, layer) => {
      const output = new Float32Array(headCount * headDim);
      const chosen = ranks.map((rank, kvHead) => {
        const pages = baselinePages(rank, options);
        traffic.pagesSelected += pages.length;
        traffic.pagesInContext += rank.length;
        traffic.kvBytes += pages.length * options.pageBytes;
        for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
          const weights = attention.weights[head] as Float64Array;
          output.set(this.#exact.output(layer, kvHead, weights, { pages }), head * headDim);
        }
        return { pages };
      });
      outputs.push(output);
      return chosen;
    });
    return { attended, outputs, traffic };
  }

  async #floats(buffer: DeviceBuffer): Promise<Float32Array> {
    const bytes = await this.#options.device.read(buffer, 0, buffer.bytes);
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  }
}

/** What was chosen, `[layer][kvHead]` (undefined: everything), with the outputs `[layer]` and what was read. */
interface Chosen {
  attended: (AttendedPages | undefined)[][];
  outputs: Float32Array[];
  traffic: SliceTraffic;
  /** Where it was asked for, as `StepReadback.choices`. */
  choice?: Uint8Array | undefined;
}

/** A layer's full attention with the pages of each KV head ranked by it: `ranks[kvHead][page]`, 0 the best. */
interface JudgedLayer {
  attention: LayerAttention;
  ranks: Uint32Array[];
  /** Mass of the best n pages, `[kvHead][n]`. */
  bestMass: Float64Array[];
  denseOutput: Float32Array;
}

function judge(attention: LayerAttention, denseOutput: Float32Array): JudgedLayer {
  const ranks: Uint32Array[] = [];
  const bestMass: Float64Array[] = [];
  for (const mass of attention.pageMass) {
    const order = pagesByMass(mass);
    const best = new Float64Array(mass.length + 1);
    for (const [place, page] of order.entries()) best[place + 1] = (best[place] as number) + (mass[page] as number);
    ranks.push(ranksOf(order));
    bestMass.push(best);
  }
  return { attention, ranks, bestMass, denseOutput };
}

/** Pages, those with most of the attention first; the lower of equals. */
export function pagesByMass(mass: Float64Array): number[] {
  return Array.from(mass.keys()).sort((a, b) => (mass[b] as number) - (mass[a] as number) || a - b);
}

/** The place of each page in an order of them. */
export function ranksOf(order: readonly number[]): Uint32Array {
  const ranks = new Uint32Array(order.length);
  for (const [place, page] of order.entries()) ranks[page] = place;
  return ranks;
}

/** What a baseline attends to: the best pages, or sinks, recent pages and random ones; ascending. `ranks`: of every page, 0 the best. */
export function baselinePages(
  ranks: Uint32Array,
  { kind, budgetTokens, random }: { kind: "oracle" | "random"; budgetTokens: number; random: Random },
): number[] {
  const split = splitBudget(budgetTokens);
  if (kind === "random") return randomPages(ranks.length, split, random);
  return [...ranks.keys()].filter((page) => (ranks[page] as number) < split.budgetPages);
}

function compare(layers: readonly JudgedLayer[], chosen: Chosen, pageBytes: number): RowFidelity {
  const { traffic } = chosen;
  const kvHeadCount = (layers[0] as JudgedLayer).ranks.length;
  // Bytes are sums of rounded products: a whole number of pages must not lose one to the last bit.
  const equalPages = Math.floor(
    (traffic.kvBytes + traffic.metadataBytes) / (layers.length * kvHeadCount) / pageBytes + 1e-6,
  );
  const each = layers.map((layer, index) => compareLayer(layer, chosen, index, equalPages));
  return {
    mass: each.map(({ mass }) => mass),
    oracleMass: each.map(({ oracleMass }) => oracleMass),
    pageRecall: each.map(({ pageRecall }) => pageRecall),
    outputError: each.map(({ outputError }) => outputError),
    kvBytes: traffic.kvBytes,
    metadataBytes: traffic.metadataBytes,
    pagesShare: traffic.pagesInContext === 0 ? 1 : traffic.pagesSelected / traffic.pagesInContext,
  };
}

function compareLayer(layer: JudgedLayer, chosen: Chosen, index: number, equalPages: number) {
  const { attention, ranks, bestMass, denseOutput } = layer;
  const headCount = attention.weights.length;
  const group = headCount / ranks.length;
  const headDim = denseOutput.length / headCount;
  const attended = chosen.attended[index] as (AttendedPages | undefined)[];
  const output = chosen.outputs[index] as Float32Array;
  const heads = Array.from({ length: headCount }, (_, head) => head);
  return {
    mass: heads.map((head) => {
      const weights = attention.weights[head] as Float64Array;
      const tokens = attended[Math.floor(head / group)];
      if (tokens === undefined) return 1;
      let sum = 0;
      for (const token of attendedTokens(tokens, weights.length)) sum += weights[token] as number;
      return sum;
    }),
    oracleMass: bestMass.map((best) => best[Math.min(equalPages, best.length - 1)] as number),
    pageRecall: ranks.map((rank, kvHead) => pageRecall(rank, attended[kvHead], Math.min(equalPages, rank.length))),
    outputError: heads.map((head) => {
      const range = [head * headDim, (head + 1) * headDim] as const;
      return relativeError(output.subarray(...range), denseOutput.subarray(...range));
    }),
  };
}

/** A page of which some tokens are attended counts in part. */
function pageRecall(rank: Uint32Array, attended: AttendedPages | undefined, bestCount: number): number {
  if (attended === undefined || bestCount === 0) return 1;
  let found = 0;
  for (const [index, page] of attended.pages.entries()) {
    if ((rank[page] as number) >= bestCount) continue;
    found += bitCount(attended.tokenMasks?.[index] ?? 0xffff) / 16;
  }
  return found / bestCount;
}

function bitCount(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count += 1;
  return count;
}

/** Distance of one vector from another, over the latter's length. */
export function relativeError(ours: Float32Array, exact: Float32Array): number {
  let [distance, length] = [0, 0];
  for (const [index, value] of exact.entries()) {
    distance += (value - (ours[index] as number)) ** 2;
    length += value ** 2;
  }
  return length === 0 ? 0 : Math.sqrt(distance / length);
}

/** Sinks, recent pages, and random ones between them, each at most once; ascending. */
function randomPages(
  pageCount: number,
  split: { budgetPages: number; sinkPages: number; recentPages: number },
  random: Random,
): number[] {
  const { budgetPages, sinkPages, recentPages } = split;
  const between = Array.from({ length: Math.max(0, pageCount - sinkPages - recentPages) }, (_, i) => sinkPages + i);
  const takeCount = Math.min(budgetPages - sinkPages - recentPages, between.length);
  for (let place = 0; place < takeCount; place++) {
    const other = drawInteger(random, { min: place, max: between.length - 1 });
    [between[place], between[other]] = [between[other] as number, between[place] as number];
  }
  const pages = [...Array(pageCount).keys()].filter((page) => page < sinkPages || page >= pageCount - recentPages);
  return [...pages, ...between.slice(0, takeCount)].sort((a, b) => a - b);
}
