/** Judges a step: against the naive oracle, from the device's own pool bytes, and against the reference device. */
import { expect } from "vitest";
import type { Miss, SelectionPlan, SelectionView, SliceTraffic, SummaryKind } from "../../../kernels/contract.ts";
import { expectClose, magnitude } from "./compare.ts";
import type { Lane, Tolerances } from "./lane.ts";
import {
  attendPlainly,
  kvBytesPlainly,
  Memory,
  type PlainQuery,
  type PlainRange,
  plainRange,
  scoreBlocksPlainly,
  scorePagesPlainly,
  scoreTokensPlainly,
  seesToken,
} from "./oracle.ts";
import { type Part, type Sequence, Stage, type StageResult, type StageShape } from "./stage.ts";

/** The same sequences on the device under test and on the reference. */
export class Twin {
  readonly stage: Stage;
  readonly #reference: Stage;
  readonly #tolerances: Tolerances;

  constructor(lane: Lane, shape: StageShape, options: { blockCapacity: number; seed?: number }) {
    this.stage = new Stage(lane.device(), shape, options);
    this.#reference = new Stage(lane.reference(), shape, options);
    this.#tolerances = lane.tolerances;
  }

  async fill(sequence: Sequence, end: number): Promise<void> {
    await this.stage.fill(sequence, end);
    await this.#reference.fill(sequence, end);
  }

  /** Overwrites one kind of the summaries of a sequence's logical blocks; `make` gives the bytes of a slot. */
  writeSummaries(sequence: Sequence, kind: SummaryKind, make: (block: number) => Uint8Array): void {
    for (const stage of [this.stage, this.#reference]) {
      stage.place(sequence).summarySlots.forEach((slot, block) => {
        stage.pool.writeSummary(slot, kind, make(block));
      });
    }
  }

  /** Runs a step on both and checks it; returns what the device under test gave. */
  async run(parts: readonly Part[]): Promise<StageResult> {
    const result = await this.stage.run(parts);
    const expected = await this.#reference.run(parts);
    expect(result.readback.misses, "misses").toEqual(expected.readback.misses);
    expect(result.readback.traffic, "traffic").toEqual(expected.readback.traffic);
    expect(result.readback.chosenBlocks, "chosen blocks").toEqual(expected.readback.chosenBlocks);
    expect(result.readback.choices, "choices").toEqual(expected.readback.choices);
    if (this.stage.device.debugSelection !== undefined) expect(result.views, "selections").toEqual(expected.views);
    parts.forEach((part, index) => {
      for (let layer = 0; layer < this.stage.shape.layerCount; layer++) {
        const what = `part ${index} layer ${layer}`;
        const bound = { relative: 0, absolute: this.#tolerances.rotation * magnitude(expected.q[index]![layer]!) };
        expectClose(result.q[index]![layer]!, expected.q[index]![layer]!, bound, `${what} q against the reference`);
        const absolute = attentionBound(this.#tolerances, this.stage.shape, part, layer);
        const [out, reference] = [result.out[index]![layer]!, expected.out[index]![layer]!];
        expectClose(out, reference, { relative: 0, absolute }, `${what} attention against the reference`);
      }
    });
    await checkStep(this.stage, parts, { ...result, views: expected.views }, this.#tolerances);
    return result;
  }
}

function attentionBound(tolerances: Tolerances, { encoding }: StageShape, part: Part, layer: number): number {
  return (
    (encoding === "int8" ? tolerances.attentionInt8 : tolerances.attention) * magnitude(part.sequence.layers[layer]!.v)
  );
}

/**
 * Checks selections, attention, misses and traffic of a step against the oracle. Every query group and KV head must have a view.
 */
export async function checkStep(
  stage: Stage,
  parts: readonly Part[],
  result: StageResult,
  tolerances: Tolerances,
): Promise<void> {
  const misses = new Map<string, Miss>();
  for (const [sliceIndex, part] of parts.entries()) {
    const chosenBlocks: number[][] = [];
    const traffic: SliceTraffic = {
      pagesSelected: 0,
      pagesInContext: 0,
      kvBytes: 0,
      metadataBytes: 0,
      pagesPassedOver: 0,
    };
    for (let layer = 0; layer < stage.shape.layerCount; layer++) {
      const memory = await Memory.of(stage, part, layer);
      const q = result.q[sliceIndex]![layer]!;
      const out = result.out[sliceIndex]![layer]!;
      const views = result.views[layer]!.filter((view) => view.sliceIndex === sliceIndex);
      const groupCount = part.groupStarts?.length ?? 1;
      const chosenHere = new Set<number>();
      expect(views.length, "views").toBe(groupCount * stage.shape.kvHeadCount);
      for (const view of views) {
        const at: GroupAt = {
          stage,
          memory,
          part,
          view,
          q,
          rows: groupRows(part, view.group),
          layer,
          before: result.views,
        };
        const bound = attentionBound(tolerances, stage.shape, part, layer);
        checkAttention(at, out, bound, `part ${sliceIndex} layer ${layer} group ${view.group}`);
        const { wanted, metadataBytes, chosen, passedOver = 0 } = checkSelection(at, tolerances);
        addTraffic(traffic, at, metadataBytes);
        traffic.pagesPassedOver += passedOver;
        for (const page of chosen) chosenHere.add(Math.floor(page / 4));
        for (const block of absentBlocks(at, wanted)) {
          misses.set(`${sliceIndex}/${layer}/${block}`, { sliceIndex, layer, block });
        }
      }
      chosenBlocks.push([...chosenHere].sort((a, b) => a - b));
    }
    checkBitmap(stage, part, result.readback.chosenBlocks?.[sliceIndex], chosenBlocks);
    if (part.reportChoice) checkChoice(stage, part, result.readback.choices?.[sliceIndex], { sliceIndex, result });
    else expect(result.readback.choices?.[sliceIndex], "no choice").toBeUndefined();
    expect(result.readback.traffic[sliceIndex], `traffic of part ${sliceIndex}, by the oracle`).toEqual(traffic);
  }
  const order = (a: Miss, b: Miss): number => a.sliceIndex - b.sliceIndex || a.layer - b.layer || a.block - b.block;
  expect(result.readback.misses, "misses, by the oracle").toEqual([...misses.values()].sort(order));
}

/** Bit b of a layer's row is set exactly for the blocks listed for it. */
function checkBitmap(stage: Stage, part: Part, bitmap: Uint32Array | undefined, chosenBlocks: number[][]): void {
  if (part.reportBlocks === false) {
    expect(bitmap, "no bitmap").toBeUndefined();
    return;
  }
  const words = Math.ceil(stage.place(part.sequence).blockCapacity / 32);
  expect(bitmap?.length, "words of the bitmap").toBe(words * stage.shape.layerCount);
  const listed = chosenBlocks.map((_, layer) =>
    Array.from({ length: words * 32 }, (_, block) => block).filter(
      (block) => ((bitmap![layer * words + Math.floor(block / 32)]! >>> (block % 32)) & 1) === 1,
    ),
  );
  expect(listed, "blocks with a chosen page, by the oracle").toEqual(chosenBlocks);
}

/** A choice by its bits: of a layer and KV head (or of all), which pages before the block of the part's last row. */
function pagesOfChoice(stage: Stage, part: Part, choice: Uint8Array, at: { layer: number; kvHead: number }): number[] {
  const blocks = Math.floor((part.position + part.rowCount - 1) / 64);
  const perLayer = part.plan?.kind === "pages" && part.plan.scope === "layer" ? 1 : stage.shape.kvHeadCount;
  expect(choice.length, "bytes of the choice").toBe(stage.shape.layerCount * perLayer * blocks);
  const first = (at.layer * perLayer + (at.kvHead % perLayer)) * blocks;
  return Array.from({ length: blocks * 4 }, (_, page) => page).filter(
    (page) => Math.floor(choice[first + Math.floor(page / 4)]! / 2 ** (page % 4)) % 2 === 1,
  );
}

/** The choice that a part asked for has exactly the pages that its last group attends to before its own block. */
function checkChoice(
  stage: Stage,
  part: Part,
  choice: Uint8Array | undefined,
  { sliceIndex, result }: { sliceIndex: number; result: Pick<StageResult, "views"> },
): void {
  const lastGroup = (part.groupStarts?.length ?? 1) - 1;
  const pageEnd = Math.floor((part.position + part.rowCount - 1) / 64) * 4;
  for (const [layer, views] of result.views.entries()) {
    for (const { sliceIndex: slice, group, kvHead, pages = [] } of views) {
      if (slice !== sliceIndex || group !== lastGroup) continue;
      expect(pagesOfChoice(stage, part, choice!, { layer, kvHead }), `choice of layer ${layer}`).toEqual(
        pages.filter((page) => page < pageEnd),
      );
    }
  }
}

function positionsOf({ part, rows }: GroupAt): { p0: number; p1: number } {
  return { p0: part.position + rows[0]!, p1: part.position + rows.at(-1)! };
}

function addTraffic(traffic: SliceTraffic, at: GroupAt, metadataBytes: number): void {
  const { p0, p1 } = positionsOf(at);
  const sees = (token: number): boolean => seesToken(at.view, token);
  const isResident = (block: number): boolean => at.memory.isResident(block);
  traffic.kvBytes += kvBytesPlainly(at.memory.shape, { p0, p1 }, sees, isResident);
  traffic.metadataBytes += metadataBytes;
  if (at.view.pages === undefined) return;
  traffic.pagesSelected += at.view.pages.length;
  traffic.pagesInContext += Math.floor(p1 / 16) + 1;
}

/** Blocks before the last query's own that hold a wanted page and are not resident. */
function absentBlocks(at: GroupAt, wanted: readonly number[] | undefined): number[] {
  const ownBlock = Math.floor(positionsOf(at).p1 / 64);
  const blocks = Array.from({ length: ownBlock }, (_, block) => block);
  const isWanted = (block: number): boolean => wanted?.some((page) => Math.floor(page / 4) === block) ?? true;
  return blocks.filter((block) => isWanted(block) && !at.memory.isResident(block));
}

/** One query group and KV head of a part. */
interface GroupAt {
  stage: Stage;
  memory: Memory;
  part: Part;
  view: SelectionView;
  /** Post-RoPE rows of the part. */
  q: Float32Array;
  /** Rows of the group within the part. */
  rows: number[];
  layer: number;
  /** The views of every layer. */
  before: readonly SelectionView[][];
}

function groupRows(part: Part, group: number): number[] {
  const starts = part.groupStarts ?? [0];
  const start = starts[group]!;
  return Array.from({ length: (starts[group + 1] ?? part.rowCount) - start }, (_, index) => start + index);
}

function queriesOf({ memory, q, rows }: GroupAt, kvHeads: readonly number[]): PlainQuery[] {
  const { headCount, kvHeadCount, headDim } = memory.shape;
  return rows.flatMap((row) =>
    Array.from({ length: headCount }, (_, head) => ({
      vector: q.slice((row * headCount + head) * headDim, (row * headCount + head + 1) * headDim),
      kvHead: Math.floor(head / (headCount / kvHeadCount)),
    })).filter(({ kvHead }) => kvHeads.includes(kvHead)),
  );
}

function checkAttention(at: GroupAt, out: Float32Array, absolute: number, what: string): void {
  const { headCount, kvHeadCount, headDim } = at.memory.shape;
  const heads = headCount / kvHeadCount;
  queriesOf(at, [at.view.kvHead]).forEach(({ vector, kvHead }, index) => {
    const row = at.rows[Math.floor(index / heads)]!;
    const head = kvHead * heads + (index % heads);
    const position = at.part.position + row;
    const sees = (token: number): boolean => seesToken(at.view, token);
    const expected = attendPlainly(at.memory, { query: vector, kvHead, position }, sees);
    const actual = out.slice((row * headCount + head) * headDim, (row * headCount + head + 1) * headDim);
    expectClose(actual, expected, { relative: 0, absolute }, `${what} position ${position} head ${head}`);
  });
}

/** What a group must have asked for. */
interface Asked {
  /** Pages whose blocks must be resident, or else are misses; undefined: all. */
  wanted: readonly number[] | undefined;
  metadataBytes: number;
  /** Candidate pages that were chosen, resident or not. */
  chosen: readonly number[];
  /** Candidates that were not scored for their block's sake. */
  passedOver?: number;
}

/** The layer's choice is that of the layer before, page for page and token for token. */
function checkTakenOver(at: GroupAt, range: PlainRange): Asked {
  const { sliceIndex, group, kvHead } = at.view;
  const isSame = (view: SelectionView): boolean =>
    view.sliceIndex === sliceIndex && view.group === group && view.kvHead === kvHead;
  expect(at.view, "what the layer before attends to").toEqual(at.before[at.layer - 1]!.find(isSame));
  const pages = at.view.pages!;
  return { wanted: pages, metadataBytes: 0, chosen: pages.filter((page) => range.candidates.includes(page)) };
}

/** The choice is what an earlier step chose for the group, with the pages of its own block. */
function checkGiven(at: GroupAt, range: PlainRange, choice: Uint8Array): Asked {
  const { stage, part, layer, view } = at;
  const ownBlock = Math.floor(positionsOf(at).p1 / 64);
  const before = pagesOfChoice(stage, { ...part, rowCount: 1 }, choice, { layer, kvHead: view.kvHead });
  const own = range.forced.filter((page) => page >= ownBlock * 4);
  expect(view.pages, "what was given, and the own block").toEqual([...before, ...own]);
  const pages = view.pages!;
  return { wanted: pages, metadataBytes: 0, chosen: pages.filter((page) => range.candidates.includes(page)) };
}

/** The rows that choose for a group. */
function votersOf(at: GroupAt): GroupAt {
  return at.part.voters === "first" ? { ...at, rows: at.rows.slice(0, 1) } : at;
}

/** Forced pages must be there, the rest must be the best candidates; scores within the tolerance may swap. */
function checkSelection(at: GroupAt, { score: tolerance }: Tolerances): Asked {
  const given: SelectionPlan = at.part.plan ?? { kind: "dense" };
  const { p0, p1 } = positionsOf(at);
  const { denseLayers = 0, ownLayers = 0, layersPerChoice = 1 } = given.kind === "dense" ? {} : given;
  const plan: SelectionPlan = at.layer < denseLayers ? { kind: "dense" } : given;
  const head = { layer: at.layer, index: at.layer * at.memory.shape.kvHeadCount + at.view.kvHead };
  const range = plainRange(plan, { p0, p1 }, head);
  if (plan.kind === "dense" || range === undefined) {
    expect(at.view.pages).toBeUndefined();
    return { wanted: undefined, metadataBytes: 0, chosen: [] };
  }
  const { choice } = at.part;
  if (choice !== undefined && at.view.group === 0) return checkGiven(at, range, choice);
  const isOwn = at.layer < ownLayers || (at.layer - Math.max(denseLayers, ownLayers)) % layersPerChoice === 0;
  if (!isOwn) return checkTakenOver(at, range);
  const pages = at.view.pages!;
  expect(pages, "ascending, each once").toEqual([...new Set(pages)].sort((a, b) => a - b));
  expectAllIn(range.forced, pages);
  const chosen = pages.filter((page) => !range.forced.includes(page));
  expectAllIn(chosen, range.candidates);
  if (plan.kind === "tokens") return checkTokens(at, plan, range, tolerance);
  if (plan.massShare === undefined) expect(chosen.length, "pages taken").toBe(range.take);
  if (plan.scorer === undefined || range.take === 0 || range.take === range.candidates.length) {
    return { wanted: pages, metadataBytes: 0, chosen };
  }
  const everyHead = Array.from({ length: at.memory.shape.kvHeadCount }, (_, head) => head);
  const queries = queriesOf(votersOf(at), plan.scope === "layer" ? everyHead : [at.view.kvHead]);
  const rule = { scorer: plan.scorer, combine: plan.combine };
  const left = leftByBlocks(at, plan, range, { queries, chosen, tolerance });
  const scores = scorePagesPlainly(at.memory, queries, left.candidates, rule);
  if (plan.massShare !== undefined) checkMass(scores, { range: left, chosen, plan, headDim: at.memory.shape.headDim });
  const taken = { ...left, take: chosen.length };
  if (plan.combine === "max") expect(chosen, "the best, to the bit").toEqual(bestOf(scores, taken));
  else expectBest(scores, left.candidates, chosen, tolerance);
  const { wholeBlocks } = left;
  const metadataBytes = summaryBytes(at, left) + wholeBlocks * (at.memory.shape.headDim + 4);
  return { wanted: pages, metadataBytes, chosen, passedOver: range.candidates.length - left.candidates.length };
}

/**
 * The range with those candidates that a coarse pass leaves to be scored; `wholeBlocks`: how many blocks it ranked. Where votes may swap blocks
 * within the tolerance, those that hold a chosen page come first.
 */
function leftByBlocks(
  at: GroupAt,
  plan: Extract<SelectionPlan, { kind: "pages" }>,
  range: PlainRange,
  { queries, chosen, tolerance }: { queries: readonly PlainQuery[]; chosen: readonly number[]; tolerance: number },
): PlainRange & { wholeBlocks: number } {
  const all = { ...range, wholeBlocks: 0 };
  const { coarseFactor, scorer, combine } = plan;
  if (coarseFactor === undefined || scorer === undefined) return all;
  const isWhole = (block: number): boolean => [0, 1, 2, 3].every((page) => range.candidates.includes(block * 4 + page));
  const blocks = [...new Set(range.candidates.map((page) => page >> 2))].filter(isWhole);
  const keep = Math.ceil((coarseFactor * Math.max(plan.budgetPages, range.take)) / 4);
  if (keep >= blocks.length) return all;
  const scores = scoreBlocksPlainly(at.memory, queries, blocks, { summary: scorer.summary, combine });
  const margin = combine === "max" ? 0 : tolerance * magnitude(scores);
  const isChosen = (block: number): boolean => chosen.some((page) => page >> 2 === block);
  const lifted = scores.map((score, index) => (isChosen(blocks[index]!) ? score + margin : score - margin));
  const kept = bestOf(lifted, { forced: [], candidates: blocks, take: keep });
  const isLeft = (page: number): boolean => kept.includes(page >> 2) || !blocks.includes(page >> 2);
  return { ...range, candidates: range.candidates.filter(isLeft), wholeBlocks: blocks.length };
}

/** Those taken reach the plan's share of the weight, and would not without the lightest of them. */
function checkMass(
  scores: readonly number[],
  options: {
    range: PlainRange;
    chosen: readonly number[];
    plan: Extract<SelectionPlan, { kind: "pages" }>;
    headDim: number;
  },
): void {
  const { range, chosen, plan, headDim } = options;
  const finite = scores.filter((score) => !Number.isNaN(score));
  const best = Math.max(...finite);
  const weightOf = (score: number): number => {
    if (Number.isNaN(score)) return 0;
    return plan.combine === "max" ? Math.E ** ((score - best) / headDim ** 0.5) : Math.max(0, score);
  };
  const weights = new Map(range.candidates.map((page, index) => [page, weightOf(scores[index]!)]));
  const sumOf = (pages: readonly number[]): number => pages.reduce((sum, page) => sum + weights.get(page)!, 0);
  const total = sumOf(range.candidates);
  const goal = plan.massShare! * total;
  const lightest = Math.min(...chosen.map((page) => weights.get(page)!));
  expect(chosen.length).toBeGreaterThanOrEqual(1);
  expect(chosen.length).toBeLessThanOrEqual(range.take);
  if (chosen.length < range.take) expect(sumOf(chosen), "enough").toBeGreaterThanOrEqual(goal - 1e-6 * total);
  if (chosen.length > 1) expect(sumOf(chosen) - lightest, "no more than enough").toBeLessThan(goal + 1e-6 * total);
}

/** The candidates that exact scores choose: descending, ties to the lower page; a NaN below all. */
function bestOf(scores: readonly number[], { candidates, take }: PlainRange): number[] {
  const value = (score: number): number => (Number.isNaN(score) ? Number.NEGATIVE_INFINITY : score);
  const ranked = candidates
    .map((page, index) => ({ page, score: value(scores[index]!) }))
    .sort((a, b) => (a.score === b.score ? a.page - b.page : b.score > a.score ? 1 : -1));
  return ranked
    .slice(0, take)
    .map(({ page }) => page)
    .sort((a, b) => a - b);
}

function summaryBytes({ memory }: GroupAt, { candidates }: PlainRange): number {
  return candidates.length * (2 * memory.shape.headDim + 2 * 4);
}

function tokensOf(pages: readonly number[]): number[] {
  return pages.flatMap((page) => Array.from({ length: 16 }, (_, token) => page * 16 + token));
}

function checkTokens(
  at: GroupAt,
  plan: Extract<SelectionPlan, { kind: "tokens" }>,
  range: PlainRange,
  tolerance: number,
): Asked {
  const { candidates, take, forced } = range;
  const { shape } = at.memory;
  const everyHead = Array.from({ length: shape.kvHeadCount }, (_, head) => head);
  const queries = queriesOf(at, everyHead);
  const keepCount = take === 0 || take === candidates.length ? take : Math.min(plan.candidatePages, candidates.length);
  const ranksPages = keepCount > 0 && keepCount < candidates.length;
  const scores = ranksPages
    ? scorePagesPlainly(at.memory, queries, candidates, { scorer: plan.scorer, combine: "softmax-sum" })
    : candidates.map(() => 0);
  const threshold = [...scores].sort((a, b) => b - a)[keepCount - 1] ?? Number.POSITIVE_INFINITY;
  const kept = candidates.filter((_, index) => keepCount > 0 && scores[index]! >= threshold);
  const present = kept.filter((page) => at.memory.isResident(Math.floor(page / 4)));
  const tokens = tokensOf(present);
  const chosen = tokens.filter((token) => seesToken(at.view, token));
  const seen = tokensOf(at.view.pages!).filter((token) => seesToken(at.view, token));
  expect(seen, "forced tokens and those of kept pages that are there, no others").toEqual(
    [...tokensOf(forced), ...chosen].sort((a, b) => a - b),
  );
  expect(chosen.length, "tokens taken").toBe(Math.min(take * 16, tokens.length));
  let metadataBytes = ranksPages ? summaryBytes(at, range) : 0;
  if (chosen.length > 0 && chosen.length < tokens.length) {
    expectBest(scoreTokensPlainly(at.memory, queries, present), tokens, chosen, tolerance);
    const blockCount = new Set(present.map((page) => Math.floor(page / 4))).size;
    const int8Bytes = tokens.length * shape.headDim + blockCount * shape.headDim * 4;
    metadataBytes += shape.encoding === "int8" ? int8Bytes : tokens.length * shape.headDim * 4;
  }
  const missed = kept.filter((page) => !present.includes(page));
  return { wanted: [...forced, ...kept], metadataBytes, chosen: [...missed, ...chosen.map((token) => token >> 4)] };
}

function expectBest(scores: number[], ids: readonly number[], chosen: readonly number[], tolerance: number): void {
  const margin = tolerance * magnitude(scores);
  const worstChosen = Math.min(...ids.flatMap((id, index) => (chosen.includes(id) ? [scores[index]!] : [])));
  const bestLeft = Math.max(...ids.flatMap((id, index) => (chosen.includes(id) ? [] : [scores[index]!])));
  expect(worstChosen, "every chosen one scores at least as high as every one left out").toBeGreaterThanOrEqual(
    bestLeft - margin,
  );
}

/** Every one of `some` is among `all`. */
function expectAllIn(some: readonly number[], all: readonly number[]): void {
  const known = new Set(all);
  expect(some.filter((value) => !known.has(value))).toEqual([]);
}
