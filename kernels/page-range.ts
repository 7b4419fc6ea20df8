/** What a selection plan means for one query group, before any score is known: forced pages, candidates, and how many to take. */
import {
  BLOCK_TOKENS,
  type CombineRule,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SelectionPlan,
  type StepSlice,
} from "./contract.ts";

/** A plan that selects. */
export type SelectingPlan = Exclude<SelectionPlan, { kind: "dense" }>;

/** Rows of a slice that share a selection. */
export interface QueryGroup {
  /** Row within the slice. */
  firstRow: number;
  rowCount: number;
  /** Absolute position of the first and of the last row. */
  positionFirst: number;
  positionLast: number;
}

/** The query groups of a slice, ascending. */
export function queryGroups(slice: StepSlice): QueryGroup[] {
  const groups: QueryGroup[] = [];
  for (let index = 0; index < slice.groupStarts.length; index++) {
    const firstRow = slice.groupStarts[index] ?? 0;
    const endRow = slice.groupStarts[index + 1] ?? slice.rowCount;
    groups.push({
      firstRow,
      rowCount: endRow - firstRow,
      positionFirst: slice.position + firstRow,
      positionLast: slice.position + endRow - 1,
    });
  }
  return groups;
}

/** A query group within its step. */
export interface StepGroup {
  slice: StepSlice;
  sliceIndex: number;
  /** Index within the slice. */
  groupIndex: number;
  group: QueryGroup;
  /** Row of the step, not of the slice. */
  firstRow: number;
  /** Rows that choose for the group, from its first on. */
  voterCount: number;
  /** What an earlier step chose for it: it scores nothing. */
  given: Uint8Array | undefined;
  /** Whether the step is asked for what this group attends to. */
  isReported: boolean;
}

/** The query groups of all slices, ascending by (slice, group). */
export function groupsOfStep(slices: readonly StepSlice[]): StepGroup[] {
  let sliceRow = 0;
  return slices.flatMap((slice, sliceIndex) => {
    const stepRow = sliceRow;
    sliceRow += slice.rowCount;
    return queryGroups(slice).map((group, groupIndex, { length }): StepGroup => {
      return {
        ...{ slice, sliceIndex, groupIndex, group, firstRow: stepRow + group.firstRow },
        voterCount: slice.voters === "first" ? 1 : group.rowCount,
        given: groupIndex === 0 ? slice.choice : undefined,
        isReported: slice.reportChoice === true && groupIndex === length - 1,
      };
    });
  });
}

/** Pages are half-open ranges: forced are `[0, sinkEnd)` and `[recentStart, pageEnd)`, candidates `[sinkEnd, recentStart)`. */
export interface PageRange {
  /** True: no selection, every position up to the query (plan dense, or the whole context within the budget). */
  everything: boolean;
  sinkEnd: number;
  recentStart: number;
  /** page(positionLast) + 1: the pages in context. */
  pageEnd: number;
  candidateCount: number;
  /** How many candidate pages the budget still pays for (token plans: times 16 tokens); at most `candidateCount`. */
  takePages: number;
}

/** The layer whose choice a layer attends to: itself or an earlier one. Undefined for a layer that attends to everything. */
export function choosingLayer(plan: SelectionPlan, layer: number): number | undefined {
  if (plan.kind === "dense") return undefined;
  const { denseLayers = 0, ownLayers = 0, layersPerChoice = 1 } = plan;
  if (layer < denseLayers) return undefined;
  return layer < ownLayers ? layer : layer - ((layer - Math.max(denseLayers, ownLayers)) % layersPerChoice);
}

/** The layers that score pages under a plan, ascending: of these it needs summaries. */
export function scoringLayers(plan: SelectionPlan, layerCount: number): number[] {
  if (plan.kind === "dense" || plan.scorer === undefined) return [];
  return Array.from({ length: layerCount }, (_, layer) => layer).filter(
    (layer) => layerRole(plan, layer) === "chooses",
  );
}

/** What a layer does under a plan: attends to everything, chooses, or takes over what the layer before attends to. */
export type LayerRole = "everything" | "chooses" | "takes-over";

/** A layer's role; a group whose whole context is within the budget attends to everything whatever it says. */
export function layerRole(plan: SelectionPlan, layer: number): LayerRole {
  const chooser = choosingLayer(plan, layer);
  if (chooser === undefined) return "everything";
  return chooser === layer ? "chooses" : "takes-over";
}

/** Resolves a plan for one query group as `SelectionPlan` says; without `layer` as for the layers that choose. */
export function pageRange(
  plan: SelectionPlan,
  group: Pick<QueryGroup, "positionFirst" | "positionLast">,
  layer?: number,
): PageRange {
  const pageEnd = Math.floor(group.positionLast / PAGE_TOKENS) + 1;
  const isDenseLayer = layer !== undefined && layerRole(plan, layer) === "everything";
  if (plan.kind === "dense" || isDenseLayer || pageEnd <= plan.budgetPages) {
    return { everything: true, sinkEnd: 0, recentStart: 0, pageEnd, candidateCount: 0, takePages: 0 };
  }
  const pageFirst = Math.floor(group.positionFirst / PAGE_TOKENS);
  const ownBlockStart = Math.floor(group.positionFirst / BLOCK_TOKENS) * PAGES_PER_BLOCK;
  const recentStart = Math.max(0, Math.min(pageFirst - plan.recentPages + 1, ownBlockStart));
  const sinkEnd = Math.min(plan.sinkPages, recentStart);
  const candidateCount = recentStart - sinkEnd;
  const forcedCount = sinkEnd + (pageFirst - recentStart + 1);
  const budgetLeft = plan.scorer === undefined ? 0 : Math.max(0, plan.budgetPages - forcedCount);
  return {
    everything: false,
    sinkEnd,
    recentStart,
    pageEnd,
    candidateCount,
    takePages: Math.min(budgetLeft, candidateCount),
  };
}

/** One choice of a layer, and how many KV heads the pool has. */
export interface ChoiceAt {
  layer: number;
  /** The first that it serves. */
  kvHead: number;
  kvHeadCount: number;
}

/** Whether layers or KV heads may take differently under a plan. */
export function takesUnevenly(plan: SelectionPlan): plan is Extract<SelectionPlan, { kind: "pages" }> {
  if (plan.kind !== "pages") return false;
  return (plan.layerShares ?? plan.retrievalHeads ?? plan.headShares) !== undefined;
}

/** A group's range as one choice of a layer sees it: with what `layerShares`, `retrievalHeads` and `headShares` leave it to take. */
export function choiceRange(plan: SelectionPlan, range: PageRange, at: ChoiceAt): PageRange {
  if (!takesUnevenly(plan)) return range;
  const share = shareOf(plan, at);
  const wanted = share === Number.POSITIVE_INFINITY ? share : Math.floor(range.takePages * share);
  const isRetrieving = plan.retrievalHeads?.[at.layer * at.kvHeadCount + at.kvHead] ?? true;
  return { ...range, takePages: isRetrieving ? Math.min(wanted, range.candidateCount) : 0 };
}

function shareOf(plan: Extract<SelectingPlan, { kind: "pages" }>, { layer, kvHead, kvHeadCount }: ChoiceAt): number {
  const { layerShares, headShares } = plan;
  if (headShares !== undefined) return headShares[Math.min(layer * kvHeadCount + kvHead, headShares.length - 1)] ?? 1;
  return layerShares?.[Math.min(choosingLayer(plan, layer) ?? layer, layerShares.length - 1)] ?? 1;
}

/** Layers of equal keys are alike under a plan: in role, and in what each choice may take. */
export function layerKey(plan: SelectionPlan, layer: number, kvHeadCount: number): string {
  const role = layerRole(plan, layer);
  if (plan.kind !== "pages" || role === "everything") return role;
  const shares = Array.from({ length: kvHeadCount }, (_, kvHead) => {
    const isRetrieving = plan.retrievalHeads?.[layer * kvHeadCount + kvHead] ?? true;
    return isRetrieving ? shareOf(plan, { layer, kvHead, kvHeadCount }) : 0;
  });
  return `${role} ${shares.join()}`;
}

/**
 * How many candidates the first stage of a plan keeps. All (`candidateCount`) means that page scores are not needed and not computed;
 * 0 likewise.
 */
export function keepPages(plan: SelectionPlan, range: PageRange): number {
  if (plan.kind !== "tokens" || range.takePages === 0) return range.takePages;
  return range.takePages === range.candidateCount
    ? range.takePages
    : Math.min(plan.candidatePages, range.candidateCount);
}

/** True when the plan's page scorer runs for this group. */
export function needsPageScores(plan: SelectionPlan, range: PageRange): boolean {
  const keep = keepPages(plan, range);
  return keep > 0 && keep < range.candidateCount;
}

/** How page scores of several queries become one: token plans vote softly over the layer. */
export function pageCombine(plan: SelectingPlan): CombineRule {
  return plan.kind === "tokens" ? "softmax-sum" : plan.combine;
}

/** True when one selection serves all KV heads of the layer. */
export function selectsPerLayer(plan: SelectingPlan): boolean {
  return plan.kind === "tokens" || plan.scope === "layer";
}

/** Forced pages and the chosen candidates (ascending), in ascending order. */
export function withForcedPages(range: PageRange, chosen: Iterable<number>): number[] {
  const pages: number[] = [];
  for (let page = 0; page < range.sinkEnd; page++) pages.push(page);
  for (const page of chosen) pages.push(page);
  for (let page = range.recentStart; page < range.pageEnd; page++) pages.push(page);
  return pages;
}

/**
 * How many of the `countMax` best candidates a plan's `massShare` takes; `scores` are those of all candidates, combined.
 * See `SelectionPlan`.
 */
export function massCount(
  scores: Float32Array,
  {
    combine,
    headDim,
    massShare,
    countMax,
  }: { combine: CombineRule; headDim: number; massShare: number; countMax: number },
): number {
  let best = Number.NEGATIVE_INFINITY;
  for (const score of scores) if (score > best) best = score;
  const scale = Math.sqrt(headDim);
  const heaviest = new HeaviestFirst(countMax);
  let total = 0;
  for (const score of scores) {
    const weight = combine === "max" ? Math.exp((score - best) / scale) : score;
    if (!(weight > 0)) continue;
    total += weight;
    heaviest.add(weight);
  }
  const goal = massShare * total;
  let sum = 0;
  let count = 0;
  for (const weight of heaviest.list()) {
    count += 1;
    sum += weight;
    if (sum >= goal) return count;
  }
  return countMax;
}

/** Keeps the largest of many numbers: a heap with the smallest of them on top. */
class HeaviestFirst {
  readonly #heap: Float64Array;
  #length = 0;

  constructor(countMax: number) {
    this.#heap = new Float64Array(countMax);
  }

  add(value: number): void {
    const heap = this.#heap;
    if (this.#length === heap.length) {
      if (value <= (heap[0] as number)) return;
      this.#sink(value);
      return;
    }
    let at = this.#length++;
    for (let parent = (at - 1) >> 1; at > 0 && (heap[parent] as number) > value; parent = (at - 1) >> 1) {
      heap[at] = heap[parent] as number;
      at = parent;
    }
    heap[at] = value;
  }

  /** Descending. */
  list(): Float64Array {
    return this.#heap.slice(0, this.#length).sort().reverse();
  }

  /** Replaces the smallest. */
  #sink(value: number): void {
    const heap = this.#heap;
    let at = 0;
    for (let child = 1; child < heap.length; child = 2 * at + 1) {
      if (child + 1 < heap.length && (heap[child + 1] as number) < (heap[child] as number)) child += 1;
      if ((heap[child] as number) >= value) break;
      heap[at] = heap[child] as number;
      at = child;
    }
    heap[at] = value;
  }
}

/**
 * The indices of the `count` best scores, ascending. Higher is better, ties go to the lower index, NaN ranks below everything.
 * This is the order every device must reproduce.
 */
export function topIndices(scores: ArrayLike<number>, count: number): number[] {
  const rank = (index: number): number => {
    const score = scores[index] ?? Number.NaN;
    return Number.isNaN(score) ? Number.NEGATIVE_INFINITY : score;
  };
  const order = Array.from({ length: scores.length }, (_, index) => index);
  order.sort((a, b) => {
    const [scoreA, scoreB] = [rank(a), rank(b)];
    return scoreA === scoreB ? a - b : scoreB > scoreA ? 1 : -1;
  });
  return order.slice(0, count).sort((a, b) => a - b);
}
