/**
 * A naive twin of the KV ops in f64, written from the contract's text and sharing no code with any device: it decodes pool bytes itself,
 * works out selections its own way and attends with one plain softmax.
 */
import type { KvPool, SelectionPlan, SelectionView, SummaryKind } from "../../../kernels/contract.ts";
import type { Part, Stage, StageShape } from "./stage.ts";

/** Keys and values of one block: `[kvHead][token][channel]`. */
export interface PlainBlock {
  keys: number[][][];
  values: number[][][];
}

/** Reads a block's bytes as the layout in the contract says. */
export function plainBlock(shape: StageShape, bytes: Uint8Array): PlainBlock {
  const { kvHeadCount, headDim, encoding } = shape;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const f32 = (): number => {
    at += 4;
    return view.getFloat32(at - 4, true);
  };
  const i8 = (): number => view.getInt8(at++);
  const heads = (rowWidth: number, each: () => number): number[][][] =>
    times(kvHeadCount, () => times(64, () => times(rowWidth, each)));
  if (encoding === "f32") {
    const keys = heads(headDim, f32);
    return { keys, values: heads(headDim, f32) };
  }
  const keyCodes = heads(headDim, i8);
  const keyScales = times(kvHeadCount, () => times(headDim, f32));
  const valueCodes = heads(headDim, i8);
  const valueScales = heads(1, f32);
  return {
    keys: keyCodes.map((head, h) => head.map((row) => row.map((code, c) => code * keyScales[h]![c]!))),
    values: valueCodes.map((head, h) => head.map((row, t) => row.map((code) => code * valueScales[h]![t]![0]!))),
  };
}

/** Reads one layer of the first `tokenCount` tokens of an open slot. */
export function plainOpen(shape: StageShape, bytes: Uint8Array, layer: number, tokenCount: number): PlainBlock {
  const { kvHeadCount, headDim, layerCount } = shape;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const part = (index: number): number[][][] =>
    times(kvHeadCount, (head) =>
      times(tokenCount, (token) =>
        times(headDim, (channel) => {
          const row = ((index * layerCount + layer) * kvHeadCount + head) * tokenCount + token;
          return view.getFloat32((row * headDim + channel) * 4, true);
        }),
      ),
    );
  return { keys: part(0), values: part(1) };
}

/**
 * What one page leaves: 8-bit codes, and the value of one unit of each vector's codes (of other kinds: first and second vector); for kinds of a whole
 * block the codes of its four pages `[4][2 * headDim]`.
 */
export interface PlainSummary {
  centre: number[];
  radius: number[];
  centreScale: number;
  radiusScale: number;
  ofBlock: number[];
}

/** One page in the bytes of one kind of a summary slot. */
export function plainSummary(
  shape: Pick<StageShape, "kvHeadCount" | "headDim">,
  bytes: Uint8Array,
  { layer, kvHead, page }: { layer: number; kvHead: number; page: number },
): PlainSummary {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headAt = (layer * shape.kvHeadCount + kvHead) * (4 * 2 * shape.headDim + 4 * 2 * 4);
  const entry = (page % 4) * 2;
  const codes = (index: number): number[] =>
    times(shape.headDim, (channel) => view.getInt8(headAt + index * shape.headDim + channel));
  const scale = (index: number): number => view.getFloat32(headAt + 8 * shape.headDim + index * 4, true);
  return {
    ...{ centre: codes(entry), radius: codes(entry + 1) },
    ...{ centreScale: scale(entry), radiusScale: scale(entry + 1), ofBlock: times(8, codes).flat() },
  };
}

/**
 * A query against a page, by the contract's definition of a score. Sums of products of 16 and 8 bits are exact in f64. Returns a function, so
 * that a query is rounded once for many pages.
 */
export function plainScorer(
  query: Float32Array,
  radiusWeight: number,
  kind: SummaryKind = "min-max",
): (summary: PlainSummary) => number {
  const f32 = Math.fround;
  const unit = f32(Math.max(0, ...query.map(Math.abs)) / 32767);
  // Adding and taking away 1.5 * 2^52 leaves the nearest integer, ties to even.
  const nearest = (value: number): number => value + 6755399441055744 - 6755399441055744;
  const codes = Array.from(query, (value) =>
    unit === 0 ? 0 : Math.max(-32767, Math.min(32767, nearest(f32(value / unit)))),
  );
  const magnitudes = kind === "representatives" ? codes : codes.map(Math.abs);
  if (kind === "residual-signs") return plainResidualScorer(codes, unit, radiusWeight);
  return (summary) => {
    if (kind === "sign-bits") return f32(summary.centreScale * (query.length - plainMismatches(codes, summary)));
    const towards = f32(f32(unit * summary.centreScale) * f32(dot(codes, summary.centre)));
    const reachUnit = f32(f32(unit * summary.radiusScale) * f32(radiusWeight));
    return f32(towards + f32(reachUnit * f32(dot(magnitudes, summary.radius))));
  };
}

/**
 * By residual signs. The turned channel at place i of n is the sum over channels, negative where the two indices' parts in a Walsh function (of the
 * digits behind the odd divisor of n) have an odd number of ones in common, of those that are equal to i modulo that divisor.
 */
function plainResidualScorer(
  queryCodes: readonly number[],
  unit: number,
  radiusWeight: number,
): (summary: PlainSummary) => number {
  const f32 = Math.fround;
  const headDim = queryCodes.length;
  const bytesOfToken = Math.floor((7 * headDim) / 64);
  const kept = plainTurned(queryCodes).slice(0, bytesOfToken * 8 - 4);
  const most = Math.max(...kept.map(Math.abs));
  const small = kept.map((value) =>
    most === 0 ? 0 : Math.sign(value) * Math.floor((14 * Math.abs(value) + most) / (2 * most)),
  );
  const quarter = headDim / 4;
  return ({ centre, radius, centreScale, radiusScale, ofBlock }) => {
    const bytes = [...centre, ...radius].map((code) => (code + 256) % 256);
    const tokens = times(16, (token) => {
      const sum = small.reduce((sofar, code, channel) => {
        const bit = Math.floor(bytes[Math.floor(channel / 8) * 16 + token]! / 2 ** (channel % 8)) % 2;
        return sofar + (bit === 1 ? -code : code);
      }, 0);
      return sum * Math.floor(bytes[(bytesOfToken - 1) * 16 + token]! / 16);
    });
    const mean = times(
      headDim,
      (channel) => ofBlock[Math.floor(channel / quarter) * 2 * headDim + quarter * 7 + (channel % quarter)]!,
    );
    const lengthUnit = f32(f32(f32(unit * f32(most / 7)) * radiusScale) * f32(radiusWeight));
    return f32(f32(f32(unit * centreScale) * f32(dot(queryCodes, mean))) + f32(lengthUnit * f32(Math.max(...tokens))));
  };
}

/** See {@link plainResidualScorer}; exact for whole numbers. */
export function plainTurned(values: readonly number[]): number[] {
  let odd = values.length;
  while (odd % 2 === 0) odd /= 2;
  const ones = (bits: number): number => (bits === 0 ? 0 : (bits % 2) + ones(Math.floor(bits / 2)));
  return values.map((_, place) =>
    values.reduce((sum, value, channel) => {
      if (channel % odd !== place % odd) return sum;
      return sum + (ones(Math.floor(place / odd) & Math.floor(channel / odd)) % 2 === 1 ? -value : value);
    }, 0),
  );
}

/** Of the page's tokens, how many signs differ from the query's for the one that has the fewest; at most 255. */
function plainMismatches(queryCodes: readonly number[], { centre, radius }: PlainSummary): number {
  const headDim = queryCodes.length;
  let least = 255;
  for (let token = 0; token < 16; token++) {
    let count = 0;
    for (let channel = 0; channel < headDim; channel++) {
      const at = Math.floor(channel / 8) * 16 + token;
      const byte = ((at < headDim ? centre[at]! : radius[at - headDim]!) + 256) % 256;
      const isKeyNegative = Math.floor(byte / 2 ** (channel % 8)) % 2 === 1;
      if (isKeyNegative !== queryCodes[channel]! < 0) count += 1;
    }
    least = Math.min(least, count);
  }
  return least;
}

function times<T>(count: number, make: (index: number) => T): T[] {
  const all: T[] = [];
  for (let index = 0; index < count; index++) all.push(make(index));
  return all;
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index]! * b[index]!;
  return sum;
}

/** What a part sees of its sequence in one layer, fetched from the pool once. */
export class Memory {
  readonly #sealed = new Map<number, PlainBlock>();
  readonly #open = new Map<number, PlainBlock>();
  /** By kind and block. */
  readonly #summaries = new Map<string, Uint8Array>();
  /** By kind, KV head and page: every query of the part asks for the same ones. */
  readonly #plain = new Map<string, PlainSummary>();
  readonly shape: StageShape;
  readonly layer: number;

  private constructor(shape: StageShape, layer: number) {
    this.shape = shape;
    this.layer = layer;
  }

  /** Reads all blocks that are not absent, the open slots of the part's rows, and the summaries. */
  static async of(stage: Stage, part: Part, layer: number): Promise<Memory> {
    const memory = new Memory(stage.shape, layer);
    const pool: KvPool = stage.pool;
    const slice = stage.sliceOf(part);
    const end = part.position + part.rowCount;
    for (let block = 0; block < Math.floor(end / 64); block++) {
      const id = slice.blockIds[layer * slice.blockCapacity + block]!;
      if (id >= 0) memory.#sealed.set(block, plainBlock(stage.shape, await pool.readBlock(id)));
      for (const kind of stage.shape.summaryKinds) {
        memory.#summaries.set(`${kind}/${block}`, await pool.readSummary(slice.summarySlots[block]!, kind));
      }
    }
    const first = Math.floor(part.position / 64);
    for (let block = first; block * 64 < end; block++) {
      const count = Math.min(64, end - block * 64);
      const bytes = await pool.readOpen(slice.openSlots[block - first]!, count);
      memory.#open.set(block, plainOpen(stage.shape, bytes, layer, count));
    }
    return memory;
  }

  isResident(block: number): boolean {
    return this.#sealed.has(block);
  }

  /** Key and value of a token as the query at `position` reads them; undefined: not resident. */
  token(kvHead: number, token: number, position: number): { key: number[]; value: number[] } | undefined {
    const block = Math.floor(token / 64);
    const source = block === Math.floor(position / 64) ? this.#open.get(block) : this.#sealed.get(block);
    return source && { key: source.keys[kvHead]![token % 64]!, value: source.values[kvHead]![token % 64]! };
  }

  summary(kind: SummaryKind, kvHead: number, page: number): PlainSummary {
    const name = `${kind}/${kvHead}/${page}`;
    const known = this.#plain.get(name);
    if (known !== undefined) return known;
    const bytes = this.#summaries.get(`${kind}/${Math.floor(page / 4)}`)!;
    const summary = plainSummary(this.shape, bytes, { layer: this.layer, kvHead, page });
    this.#plain.set(name, summary);
    return summary;
  }
}

/** Softmax attention of one row and head over the tokens for which `sees` is true. */
export function attendPlainly(
  memory: Memory,
  { query, kvHead, position }: { query: Float32Array; kvHead: number; position: number },
  sees: (token: number) => boolean,
): number[] {
  const seen = times(position + 1, (token) => token)
    .filter(sees)
    .flatMap((token) => memory.token(kvHead, token, position) ?? []);
  const scores = seen.map(({ key }) => dot(query, key) / Math.sqrt(query.length));
  const max = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  return times(query.length, (channel) =>
    seen.reduce((out, { value }, i) => out + (weights[i]! / sum) * value[channel]!, 0),
  );
}

/** Whether a selection lets a query attend to a token. */
export function seesToken({ pages, tokenMasks }: Pick<SelectionView, "pages" | "tokenMasks">, token: number): boolean {
  if (pages === undefined) return true;
  const index = pages.indexOf(Math.floor(token / 16));
  if (index < 0) return false;
  return tokenMasks === undefined || ((tokenMasks[index]! >> (token % 16)) & 1) === 1;
}

/** Page ids of a plan for one query group, and K. */
export interface PlainRange {
  forced: number[];
  candidates: number[];
  take: number;
}

/** Forced pages, candidates and K of a group, from the definition; undefined: everything. */
export function plainRange(
  plan: SelectionPlan,
  { p0, p1 }: { p0: number; p1: number },
  head: { layer: number; index: number },
): PlainRange | undefined {
  const page = (p: number): number => Math.floor(p / 16);
  if (plan.kind === "dense" || page(p1) + 1 <= plan.budgetPages) return undefined;
  const recentStart = Math.min(page(p0) - plan.recentPages + 1, page(Math.floor(p0 / 64) * 64));
  const isForced = (p: number): boolean => p < plan.sinkPages || p >= recentStart;
  const all = times(page(p1) + 1, (p) => p);
  const candidates = all.filter((p) => !isForced(p));
  const left = plan.budgetPages - plan.sinkPages - (page(p0) - recentStart + 1);
  const budget = plan.scorer === undefined ? 0 : Math.max(0, Math.min(left, candidates.length));
  const take = Math.min(candidates.length, plainTake(plan, budget, head));
  return { forced: all.filter(isForced), candidates, take };
}

/** What of K a layer and one of its KV heads may take. `head.index` counts through all layers. */
function plainTake(plan: SelectionPlan, budget: number, head: { layer: number; index: number }): number {
  if (plan.kind !== "pages") return budget;
  if (plan.retrievalHeads?.[head.index] === false) return 0;
  if (plan.headShares !== undefined) {
    const own = head.index < plan.headShares.length ? plan.headShares[head.index]! : plan.headShares.at(-1)!;
    return own === 1 / 0 ? 1 / 0 : Math.floor(budget * own);
  }
  const { layerShares = [1], denseLayers = 0, ownLayers = 0, layersPerChoice = 1 } = plan;
  const first = Math.max(denseLayers, ownLayers);
  const shared = first + Math.floor((head.layer - first) / layersPerChoice) * layersPerChoice;
  const chooser = head.layer < first ? head.layer : shared;
  const share = chooser < layerShares.length ? layerShares[chooser]! : layerShares.at(-1)!;
  return share === 1 / 0 ? 1 / 0 : Math.floor(budget * share);
}

/** One query of a group: post-RoPE vector and its KV head. */
export interface PlainQuery {
  vector: Float32Array;
  kvHead: number;
}

/** Combined page scores, in the order of `pages`; exact where they combine by max. */
export function scorePagesPlainly(
  memory: Memory,
  queries: readonly PlainQuery[],
  pages: readonly number[],
  rule: { scorer: { summary: SummaryKind; radiusWeight: number }; combine: "max" | "softmax-sum" },
): number[] {
  const raw = queries.map(({ vector, kvHead }) => {
    const score = plainScorer(vector, rule.scorer.radiusWeight, rule.scorer.summary);
    return pages.map((page) => score(memory.summary(rule.scorer.summary, kvHead, page)));
  });
  return rule.combine === "max"
    ? pages.map((_, i) => Math.max(...raw.map((scores) => scores[i]!)))
    : vote(raw, memory.shape);
}

/** Combined scores of whole blocks by the means of their pages' centres, in the order of `blocks`. */
export function scoreBlocksPlainly(
  memory: Memory,
  queries: readonly PlainQuery[],
  blocks: readonly number[],
  { summary, combine }: { summary: SummaryKind; combine: "max" | "softmax-sum" },
): number[] {
  const raw = queries.map(({ vector, kvHead }) => {
    const score = plainScorer(vector, 0);
    return blocks.map((block) => {
      const pages = times(4, (page) => memory.summary(summary, kvHead, block * 4 + page));
      const { codes, unit } = plainCentre(pages);
      return score({ centre: codes, radius: codes.map(() => 0), centreScale: unit, radiusScale: unit, ofBlock: [] });
    });
  });
  return combine === "max"
    ? blocks.map((_, i) => Math.max(...raw.map((scores) => scores[i]!)))
    : vote(raw, memory.shape);
}

/** The mean of four pages' centres in 8 bits; all of it NaN where one of them is. */
function plainCentre(pages: readonly PlainSummary[]): { codes: number[]; unit: number } {
  const f32 = Math.fround;
  const mean = pages[0]!.centre.map((_, channel) => {
    const parts = pages.map(({ centre, centreScale }) => f32(centre[channel]! * centreScale));
    return f32(parts.reduce((sum, part) => f32(sum + part), 0) * 0.25);
  });
  const unit = f32(Math.max(...mean.map(Math.abs)) / 127);
  const codes = mean.map((value) => {
    const quotient = f32(value / unit);
    return Number.isNaN(quotient) ? 0 : quotient + 6755399441055744 - 6755399441055744;
  });
  return { codes, unit };
}

/** Combined token scores of pages, in the order of their tokens. */
export function scoreTokensPlainly(memory: Memory, queries: readonly PlainQuery[], pages: readonly number[]): number[] {
  const tokens = pages.flatMap((page) => times(16, (token) => page * 16 + token));
  const raw = queries.map(({ vector, kvHead }) =>
    tokens.map((token) => dot(vector, memory.token(kvHead, token, Number.POSITIVE_INFINITY)!.key)),
  );
  return vote(raw, memory.shape);
}

function vote(raw: number[][], { headDim }: StageShape): number[] {
  const votes = raw.map((scores) => {
    const max = Math.max(...scores);
    const weights = scores.map((score) => Math.exp((score - max) / Math.sqrt(headDim)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / sum);
  });
  return votes[0]!.map((_, i) => votes.reduce((sum, each) => sum + each[i]!, 0));
}

/**
 * Bytes of K and V read by queries `p0..p1` in one KV head: distinct tokens that some query sees sealed and resident, and distinct tokens that
 * some query sees in its own, open block; int8 key scales once per sealed block.
 */
export function kvBytesPlainly(
  { headDim, encoding }: Pick<StageShape, "headDim" | "encoding">,
  { p0, p1 }: { p0: number; p1: number },
  sees: (token: number) => boolean,
  isResident: (block: number) => boolean,
): number {
  const sealed = new Set<number>();
  const open = new Set<number>();
  for (let token = 0; token <= p1; token++) {
    if (!sees(token)) continue;
    const block = Math.floor(token / 64);
    for (let query = Math.max(p0, token); query <= p1; query++) {
      if (block === Math.floor(query / 64)) open.add(token);
      else if (isResident(block)) sealed.add(token);
    }
  }
  const openBytes = open.size * 2 * headDim * 4;
  if (encoding === "f32") return openBytes + sealed.size * 2 * headDim * 4;
  const blocks = new Set([...sealed].map((token) => Math.floor(token / 64)));
  return openBytes + sealed.size * (2 * headDim + 4) + blocks.size * headDim * 4;
}
