/** Checks of what a caller hands to a device. All of them are programmer's errors, found before memory is touched. */
import { assert } from "../protocol/assert.ts";
import { choiceShape } from "./choice.ts";
import { COARSE_KINDS } from "./coarse.ts";
import {
  BLOCK_TOKENS,
  type KvPoolSpec,
  MATRIX_ROW_GROUP,
  NOT_RESIDENT,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SelectionPlan,
  type StepSlice,
} from "./contract.ts";
import { choiceRange, needsPageScores, type PageRange, pageRange, queryGroups, takesUnevenly } from "./page-range.ts";

/** Logical blocks that the rows of a slice touch: `[first, end)`. */
export function touchedBlocks(slice: Pick<StepSlice, "position" | "rowCount">): { first: number; end: number } {
  return {
    first: Math.floor(slice.position / BLOCK_TOKENS),
    end: Math.floor((slice.position + slice.rowCount - 1) / BLOCK_TOKENS) + 1,
  };
}

/** Logical blocks whose last token is a row of the slice: `[first, end)`. They are sealed by `append`. */
export function sealedByStep(slice: Pick<StepSlice, "position" | "rowCount">): { first: number; end: number } {
  const first = Math.floor(slice.position / BLOCK_TOKENS);
  return { first, end: Math.floor((slice.position + slice.rowCount) / BLOCK_TOKENS) };
}

/** @throws {AssertionError} when slices contradict themselves or share an open slot. To be called by `begin`. */
export function assertSlices(slices: readonly StepSlice[]): void {
  const openSlots = new Set<number>();
  slices.forEach((slice, index) => {
    const fail = (message: string): string => `slice ${index}: ${message}`;
    assert(Number.isInteger(slice.position) && slice.position >= 0, fail("position must be an integer >= 0"));
    assert(Number.isInteger(slice.rowCount) && slice.rowCount > 0, fail("rowCount must be a positive integer"));
    const touched = touchedBlocks(slice);
    assert(
      slice.openSlots.length === touched.end - touched.first,
      fail("openSlots must hold one slot per touched block"),
    );
    for (const slot of slice.openSlots) {
      assert(!openSlots.has(slot), fail(`open slot ${slot} is used twice in this step`));
      openSlots.add(slot);
    }
    const sealedEnd = sealedByStep(slice).end;
    assert(
      slice.blockCapacity >= Math.max(sealedEnd, touched.first),
      fail("blockCapacity does not reach the sealed blocks"),
    );
    assert(slice.summarySlots.length === slice.blockCapacity, fail("summarySlots must have blockCapacity entries"));
    assert(
      slice.blockCapacity === 0 ? slice.blockIds.length === 0 : slice.blockIds.length % slice.blockCapacity === 0,
      fail("blockIds must be [layerCount][blockCapacity]"),
    );
    assert(slice.groupStarts[0] === 0, fail("groupStarts must begin with 0"));
    for (let group = 0; group < slice.groupStarts.length; group++) {
      const start = slice.groupStarts[group] ?? 0;
      const end = slice.groupStarts[group + 1] ?? slice.rowCount;
      assert(start < end, fail("groupStarts must ascend and stay below rowCount"));
    }
    assertPlan(slice.plan, fail);
    assertVoters(slice, fail);
  });
}

/** Where only first rows choose, the rows of a group must have the same forced pages, and tokens are no choice of pages. */
function assertVoters(slice: StepSlice, fail: (message: string) => string): void {
  const { voters = "all", choice, reportChoice = false, plan, position } = slice;
  if (voters === "all") {
    assert(choice === undefined && !reportChoice, fail('a choice is given or reported with voters "first" only'));
    return;
  }
  assert(plan.kind === "pages", fail('voters "first" need a plan that chooses pages'));
  for (const { positionFirst, positionLast } of queryGroups(slice)) {
    const isOnePage = Math.floor(positionFirst / PAGE_TOKENS) === Math.floor(positionLast / PAGE_TOKENS);
    assert(isOnePage, fail('with voters "first" a group lies in one page'));
  }
  const isInside = position % PAGE_TOKENS !== 0;
  assert(choice === undefined || isInside, fail("a choice is given to rows of a page that was begun"));
}

function assertPlan(plan: SelectionPlan, fail: (message: string) => string): void {
  if (plan.kind === "dense") return;
  for (const name of ["budgetPages", "sinkPages", "recentPages"] as const) {
    assert(Number.isInteger(plan[name]) && plan[name] >= 0, fail(`${name} must be an integer >= 0`));
  }
  const { denseLayers = 0, ownLayers = 0, layersPerChoice = 1 } = plan;
  assert(Number.isInteger(denseLayers) && denseLayers >= 0, fail("denseLayers must be an integer >= 0"));
  assert(Number.isInteger(ownLayers) && ownLayers >= 0, fail("ownLayers must be an integer >= 0"));
  assert(Number.isInteger(layersPerChoice) && layersPerChoice >= 1, fail("layersPerChoice must be an integer >= 1"));
  if (plan.kind === "pages" && plan.massShare !== undefined) {
    assert(plan.massShare > 0 && plan.massShare <= 1, fail("massShare must be above 0 and at most 1"));
  }
  if (plan.kind === "pages") assertUneven(plan, fail);
  if (plan.kind === "pages" && plan.rowsPerChoice !== undefined) {
    const { rowsPerChoice } = plan;
    const isDivisor = Number.isInteger(rowsPerChoice) && rowsPerChoice >= 1 && PAGE_TOKENS % rowsPerChoice === 0;
    assert(isDivisor, fail("rowsPerChoice must divide the tokens of a page"));
  }
  if (plan.kind === "pages" && plan.coarseFactor !== undefined) {
    const { coarseFactor, scorer } = plan;
    assert(Number.isInteger(coarseFactor) && coarseFactor >= 2, fail("coarseFactor must be an integer >= 2"));
    const hasCentre = scorer === undefined || COARSE_KINDS.includes(scorer.summary);
    assert(hasCentre, fail("coarseFactor needs summaries with a centre"));
  }
  if (plan.kind === "tokens") {
    assert(
      Number.isInteger(plan.candidatePages) && plan.candidatePages >= 0,
      fail("candidatePages must be an integer >= 0"),
    );
  }
}

/** Where layers or KV heads take unevenly. */
function assertUneven(plan: Extract<SelectionPlan, { kind: "pages" }>, fail: (message: string) => string): void {
  const { layerShares, retrievalHeads, headShares, scope, layersPerChoice = 1 } = plan;
  for (const [name, shares] of Object.entries({ layerShares, headShares })) {
    const areShares = shares === undefined || (shares.length > 0 && shares.every((share) => share >= 0));
    assert(areShares, fail(`${name} must be numbers >= 0`));
  }
  const byHead = headShares ?? retrievalHeads;
  const isByHead = scope === "kv-head" && layersPerChoice === 1;
  assert(
    byHead === undefined || isByHead,
    fail("retrievalHeads and headShares need a choice per KV head in every layer"),
  );
  const isAlone = headShares === undefined || (retrievalHeads ?? layerShares) === undefined;
  assert(isAlone, fail("headShares stand alone, without retrievalHeads and layerShares"));
}

/**
 * Checks slices against a pool: ids in range, sealed blocks given, summaries there where a plan will score.
 * To be called by `append`, `select` and `attend` (once per pool and step is enough). `isChecked`: of a slice whose block ids, up to the block that its last
 * row is in, are known to be those of a step that was checked against the same pool.
 * @throws {AssertionError}
 */
export function assertSlicesFit(
  spec: KvPoolSpec,
  slices: readonly StepSlice[],
  isChecked = (_index: number): boolean => false,
): void {
  slices.forEach((slice, index) => {
    const fail = (message: string): string => `slice ${index}: ${message}`;
    assert(
      slice.blockIds.length === spec.layerCount * slice.blockCapacity,
      fail("blockIds must be [layerCount][blockCapacity]"),
    );
    if (!isChecked(index)) assertIds(slice.blockIds, spec.blockCount, fail("block id"));
    assertIds(slice.summarySlots, spec.summarySlotCount, fail("summary slot"));
    for (const slot of slice.openSlots) {
      assert(slot >= 0 && slot < spec.openSlotCount, fail(`open slot ${slot} is out of range`));
    }
    const sealed = sealedByStep(slice);
    for (let block = sealed.first; block < sealed.end; block++) {
      for (let layer = 0; layer < spec.layerCount; layer++) {
        const id = slice.blockIds[layer * slice.blockCapacity + block] as number;
        assert(
          id !== NOT_RESIDENT,
          fail(`layer ${layer}: block ${block} is sealed by this step and has no device block`),
        );
        assert(id >= 0 && id < spec.blockCount, fail(`block id ${id} is out of range`));
      }
    }
    assertSummaries(spec, slice, fail);
    const heads = slice.plan.kind === "pages" ? slice.plan.retrievalHeads : undefined;
    const isWhole = heads === undefined || heads.length >= spec.layerCount * spec.kvHeadCount;
    assert(isWhole, fail("retrievalHeads must be [layerCount][kvHeadCount]"));
    if (slice.choice === undefined || slice.plan.kind === "dense") return;
    const { bytes } = choiceShape(spec, slice.plan, slice.position);
    assert(slice.choice.length === bytes, fail(`a choice here has ${bytes} bytes, not ${slice.choice.length}`));
  });
}

function assertIds(ids: Int32Array, count: number, what: string): void {
  const index = firstOutside(ids, count);
  if (index >= 0) assert(false, `${what} ${ids[index]} is out of range`);
}

/** Every id of every layer and step: a loop with nothing in it but this takes half as long as one that makes the message. */
function firstOutside(ids: Int32Array, count: number): number {
  for (let index = 0; index < ids.length; index++) {
    const id = ids[index] as number;
    if (id < NOT_RESIDENT || id >= count) return index;
  }
  return -1;
}

function assertSummaries(spec: KvPoolSpec, slice: StepSlice, fail: (message: string) => string): void {
  const plan = slice.plan;
  if (plan.kind === "dense" || plan.scorer === undefined) return;
  let candidateEnd = 0;
  let candidateStart = Number.POSITIVE_INFINITY;
  for (const [index, group] of queryGroups(slice).entries()) {
    if (index === 0 && slice.choice !== undefined) continue;
    const range = pageRange(plan, group);
    if (!scoresSomewhere(spec, plan, range)) continue;
    candidateStart = Math.min(candidateStart, range.sinkEnd);
    candidateEnd = Math.max(candidateEnd, range.recentStart);
  }
  if (candidateEnd === 0) return;
  assert(spec.summaryKinds.includes(plan.scorer.summary), fail(`the pool keeps no ${plan.scorer.summary} summaries`));
  for (let block = Math.floor(candidateStart / PAGES_PER_BLOCK); block * PAGES_PER_BLOCK < candidateEnd; block++) {
    if (slice.summarySlots[block] === NOT_RESIDENT)
      assert(false, fail(`block ${block} is to be scored and has no summary slot`));
  }
}

/** Whether any choice of any layer scores pages. */
function scoresSomewhere({ layerCount, kvHeadCount }: KvPoolSpec, plan: SelectionPlan, range: PageRange): boolean {
  if (!takesUnevenly(plan)) return needsPageScores(plan, range);
  return Array.from({ length: layerCount * kvHeadCount }, (_, index) => index).some((index) => {
    const at = { layer: Math.floor(index / kvHeadCount), kvHead: index % kvHeadCount, kvHeadCount };
    return needsPageScores(plan, choiceRange(plan, range, at));
  });
}

/** Checks a piece of a matrix before it is packed and returns how many rows it has. */
export function assertMatrixRows(
  { label, outWidth, inWidth }: { label: string; outWidth: number; inWidth: number },
  firstRow: number,
  data: Float32Array,
): number {
  const rows = data.length / inWidth;
  assert(Number.isInteger(rows) && rows > 0, `matrix ${label}: data is not whole rows of ${inWidth}`);
  const isAligned = Number.isInteger(firstRow) && firstRow >= 0 && firstRow % MATRIX_ROW_GROUP === 0;
  assert(isAligned, `matrix ${label}: row ${firstRow} does not begin a group of ${MATRIX_ROW_GROUP}`);
  const end = firstRow + rows;
  const isWhole = end === outWidth || (end < outWidth && end % MATRIX_ROW_GROUP === 0);
  assert(isWhole, `matrix ${label}: row ${end} of ${outWidth} does not end a group of ${MATRIX_ROW_GROUP}`);
  return rows;
}

/** Checks a range of a matrix's packed form. */
export function assertPackedRange(
  { label, packedBytes }: { label: string; packedBytes: number },
  byteOffset: number,
  bytes: number,
): void {
  const inside = Number.isInteger(byteOffset) && byteOffset >= 0 && bytes >= 0 && byteOffset + bytes <= packedBytes;
  assert(inside, `matrix ${label}: packed bytes ${byteOffset}..${byteOffset + bytes} are outside of ${packedBytes}`);
}
