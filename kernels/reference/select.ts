import { assert } from "../../protocol/assert.ts";
import { choiceRow, choiceShape, type StepChoices } from "../choice.ts";
import { type CoarsePass, coarsePass, scoredBlocks } from "../coarse.ts";
import {
  BLOCK_TOKENS,
  type CombineRule,
  NOT_RESIDENT,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type PageScorer,
  type SliceTraffic,
  type StepSlice,
} from "../contract.ts";
import {
  choiceRange,
  groupsOfStep,
  keepPages,
  layerRole,
  massCount,
  needsPageScores,
  type PageRange,
  pageCombine,
  pageRange,
  type SelectingPlan,
  type StepGroup,
  selectsPerLayer,
  topIndices,
  withForcedPages,
} from "../page-range.ts";
import { type ChosenBlocks, keyReadBytes, type MissSet, scoringBytes } from "../traffic.ts";
import type { ReferencePool } from "./memory.ts";
import { combine, type Query, type ScoreSource, scoreBlocks, scorePages, scoreTokens } from "./score.ts";

/** Arrays of one `select`; rows are those of the whole step. */
export interface SelectArgs {
  pool: ReferencePool;
  layer: number;
  headCount: number;
  /** f32 `[rows, headCount, headDim]`, post-RoPE. */
  q: Float32Array;
}

/** What one query group attends to in one KV head. */
export interface GroupSelection extends Pick<StepGroup, "sliceIndex" | "groupIndex" | "group" | "firstRow"> {
  kvHead: number;
  /** Ascending; undefined: everything up to the query. */
  pages?: number[];
  /** Of `pages`, in token plans; a set bit is an attended token. */
  tokenMasks?: number[];
}

type Chosen = Pick<GroupSelection, "pages" | "tokenMasks">;

/** One group's view of a `select` call. */
interface Scope extends StepGroup {
  args: SelectArgs;
  range: PageRange;
  misses: MissSet;
  chosenBlocks: ChosenBlocks;
  traffic: SliceTraffic;
}

/** What misses are noted by. */
type MissScope = Pick<Scope, "slice" | "sliceIndex" | "group" | "misses"> & { args: Pick<SelectArgs, "layer"> };

/** What a step gathers as its layers select: what was wanted and is not resident, which blocks were chosen, and per slice what was read. */
export interface SelectCounters {
  misses: MissSet;
  chosenBlocks: ChosenBlocks;
  choices: StepChoices;
  traffic: readonly SliceTraffic[];
}

/**
 * Selections of every query group and KV head, ascending by (slice, group, KV head). Adds to `counters`. `previous`: those of the layer
 * before, where there was one.
 */
export function select(
  args: SelectArgs,
  slices: readonly StepSlice[],
  { misses, chosenBlocks, choices, traffic }: SelectCounters,
  previous: readonly GroupSelection[] | undefined,
): GroupSelection[] {
  choices.begin(args.pool.spec);
  const selections: GroupSelection[] = [];
  for (const stepGroup of groupsOfStep(slices)) {
    const { slice, sliceIndex, groupIndex, group, firstRow } = stepGroup;
    const range = pageRange(slice.plan, group, args.layer);
    const sliceTraffic = traffic[sliceIndex] as SliceTraffic;
    const scope = { args, ...stepGroup, range, misses, chosenBlocks, traffic: sliceTraffic };
    const all = choicesOf(scope, previous?.slice(selections.length));
    all.forEach((chosen, kvHead) => {
      noteMisses(scope, chosen);
      noteChosen(scope, chosen);
      reportPages(scope, chosen, kvHead, choices);
      if (chosen.pages !== undefined) {
        sliceTraffic.pagesSelected += chosen.pages.length;
        sliceTraffic.pagesInContext += range.pageEnd;
      }
      selections.push({ sliceIndex, groupIndex, group, firstRow, kvHead, ...chosen });
    });
  }
  return selections;
}

/** One choice per KV head. `previous` begins with what the layer before chose for the group. */
function choicesOf(scope: Scope, previous: readonly GroupSelection[] | undefined): Chosen[] {
  const { args, slice, range, given } = scope;
  if (range.everything) return selectGroup(scope);
  if (given !== undefined) return readGiven(scope, given);
  const takesOver = layerRole(slice.plan, args.layer) === "takes-over";
  return takesOver ? reuse(previous, args.pool.spec.kvHeadCount) : selectGroup(scope);
}

/** What an earlier step chose for the group, with the pages of its own block, which all its rows see. */
function readGiven({ args, slice, group, range }: Scope, given: Uint8Array): Chosen[] {
  const { layer, pool } = args;
  const shape = choiceShape(pool.spec, slice.plan as SelectingPlan, group.positionLast);
  return Array.from({ length: pool.spec.kvHeadCount }, (_, kvHead) => {
    const row = choiceRow(given, shape, layer, Math.min(kvHead, shape.choiceCount - 1));
    const isAttended = (page: number): boolean =>
      page >= range.recentStart || (((row[page >> 2] as number) >> (page & 3)) & 1) === 1;
    return { pages: Array.from({ length: range.pageEnd }, (_, page) => page).filter(isAttended) };
  });
}

/** Tells what the group attends to before its own block, if that is asked for. */
function reportPages(scope: Scope, { pages = [] }: Chosen, kvHead: number, choices: StepChoices): void {
  const { args, slice, sliceIndex, group, isReported } = scope;
  if (!isReported || slice.plan.kind === "dense") return;
  const { choiceCount } = choiceShape(args.pool.spec, slice.plan, group.positionLast);
  const row = choices.row(sliceIndex, args.layer, Math.min(kvHead, choiceCount - 1));
  const pageEnd = row.length * PAGES_PER_BLOCK;
  for (const page of pages) if (page < pageEnd) row[page >> 2] = (row[page >> 2] as number) | (1 << (page & 3));
}

/** What the layer before attends to; `previous` begins with the selections of this group. */
function reuse(previous: readonly GroupSelection[] | undefined, kvHeadCount: number): Chosen[] {
  assert(previous !== undefined, "a layer that takes over a choice comes right behind the one that made it");
  return previous.slice(0, kvHeadCount).map(({ pages, tokenMasks }) => ({
    ...(pages === undefined ? {} : { pages }),
    ...(tokenMasks === undefined ? {} : { tokenMasks }),
  }));
}

/** One choice per KV head. */
function selectGroup(scope: Scope): Chosen[] {
  const { plan } = scope.slice;
  const kvHeads = Array.from({ length: scope.args.pool.spec.kvHeadCount }, (_, kvHead) => kvHead);
  if (plan.kind === "dense" || scope.range.everything) return kvHeads.map(() => ({}));
  if (!selectsPerLayer(plan)) return kvHeads.map((kvHead) => ({ pages: choosePages(scope, plan, [kvHead]) }));
  const pages = choosePages(scope, plan, kvHeads);
  const chosen = plan.kind === "tokens" ? chooseTokens(scope, pages, kvHeads) : { pages };
  return kvHeads.map(() => chosen);
}

/** The forced pages and those that the first stage keeps; the queries of all `kvHeads` vote together. */
function choosePages(scope: Scope, plan: SelectingPlan, kvHeads: readonly number[]): number[] {
  const { args } = scope;
  const { kvHeadCount } = args.pool.spec;
  const range = choiceRange(plan, scope.range, { layer: args.layer, kvHead: kvHeads[0] as number, kvHeadCount });
  const keep = keepPages(plan, range);
  if (!needsPageScores(plan, range)) {
    const first = Array.from({ length: keep }, (_, index) => range.sinkEnd + index);
    return withForcedPages(range, first);
  }
  const { scorer } = plan;
  assert(scorer !== undefined, "a plan without a scorer takes no candidates");
  const { headDim } = args.pool.spec;
  const voters: Voters = {
    ...{ source: { pool: args.pool, layer: args.layer, slice: scope.slice }, scorer },
    ...{ queries: queriesOf(scope, kvHeads), rule: pageCombine(plan) },
  };
  const pass = coarsePass(plan, range);
  const candidates = candidatesOf(voters, range, pass);
  const scores = voters.queries.map((query) => scorePages(voters.source, scorer, query, candidates));
  const combined = combine(voters.rule, headDim, scores);
  const chosen = topIndices(combined, takenPages(plan, combined, { headDim, keep }));
  scope.traffic.metadataBytes += kvHeads.length * scoringBytes(headDim, range, pass);
  scope.traffic.pagesPassedOver += kvHeads.length * (range.candidateCount - candidates.length);
  return withForcedPages(
    range,
    chosen.map((index) => candidates[index] as number),
  );
}

/** Queries that vote together, and on what. */
interface Voters {
  source: ScoreSource;
  scorer: PageScorer;
  queries: readonly Query[];
  rule: CombineRule;
}

/** The pages to score, ascending: all candidates, or those that the coarse pass leaves. */
function candidatesOf(voters: Voters, range: PageRange, pass: CoarsePass | undefined): number[] {
  const { sinkEnd, recentStart } = range;
  const isCandidate = (page: number): boolean => page >= sinkEnd && page < recentStart;
  const all = Array.from({ length: recentStart - sinkEnd }, (_, index) => sinkEnd + index);
  if (pass === undefined) return all;
  const { source, scorer, queries, rule } = voters;
  const blocks = Array.from({ length: pass.blockEnd - pass.blockFirst }, (_, index) => pass.blockFirst + index);
  const scores = queries.map((query) => scoreBlocks(source, scorer, query, blocks));
  const best = topIndices(combine(rule, source.pool.spec.headDim, scores), pass.keep);
  const scored = scoredBlocks(
    range,
    pass,
    best.map((index) => blocks[index] as number),
  );
  return scored
    .flatMap((block) => Array.from({ length: PAGES_PER_BLOCK }, (_, page) => block * PAGES_PER_BLOCK + page))
    .filter(isCandidate);
}

/** How many of the `keep` best pages a plan takes. */
function takenPages(
  plan: SelectingPlan,
  scores: Float32Array,
  { headDim, keep }: { headDim: number; keep: number },
): number {
  const massShare = plan.kind === "pages" ? plan.massShare : undefined;
  if (massShare === undefined) return keep;
  return massCount(scores, { combine: pageCombine(plan), headDim, massShare, countMax: keep });
}

/** The second stage of a token plan: the best tokens of the kept pages. */
function chooseTokens(scope: Scope, pages: number[], kvHeads: readonly number[]): Chosen {
  const { args, range, slice } = scope;
  noteMisses(scope, { pages });
  const isHere = (page: number): boolean => isResident(scope, Math.floor(page / PAGES_PER_BLOCK));
  noteChosen(scope, { pages: pages.filter((page) => !isHere(page)) });
  const kept = pages.filter((page) => isCandidate(range, page) && isHere(page));
  const takeTokens = range.takePages * PAGE_TOKENS;
  let tokens = Array.from({ length: kept.length * PAGE_TOKENS }, (_, index) => index);
  if (takeTokens < tokens.length) {
    const source = { pool: args.pool, layer: args.layer, slice };
    const scores = scoreTokens(source, queriesOf(scope, kvHeads), kept);
    tokens = topIndices(combine("softmax-sum", args.pool.spec.headDim, scores), takeTokens);
    scope.traffic.metadataBytes += kvHeads.length * keyReadBytes(args.pool.spec, kept);
  }
  const masks = new Map<number, number>();
  for (const index of tokens) {
    const page = kept[Math.floor(index / PAGE_TOKENS)] as number;
    masks.set(page, (masks.get(page) ?? 0) | (1 << (index % PAGE_TOKENS)));
  }
  const attended = pages.filter((page) => !isCandidate(range, page) || masks.has(page));
  return { pages: attended, tokenMasks: attended.map((page) => masks.get(page) ?? 0xffff) };
}

/** The queries that vote, ascending by (row, head). */
function queriesOf({ args, firstRow, voterCount }: Scope, kvHeads: readonly number[]): Query[] {
  const { headDim, kvHeadCount } = args.pool.spec;
  const headsPerKvHead = args.headCount / kvHeadCount;
  const queries: Query[] = [];
  for (let row = firstRow; row < firstRow + voterCount; row++) {
    for (let head = 0; head < args.headCount; head++) {
      const kvHead = Math.floor(head / headsPerKvHead);
      if (!kvHeads.includes(kvHead)) continue;
      const at = (row * args.headCount + head) * headDim;
      queries.push({ vector: args.q.subarray(at, at + headDim), kvHead });
    }
  }
  return queries;
}

function isResident({ args, slice }: Pick<MissScope, "args" | "slice">, block: number): boolean {
  return slice.blockIds[args.layer * slice.blockCapacity + block] !== NOT_RESIDENT;
}

function isCandidate(range: PageRange, page: number): boolean {
  return page >= range.sinkEnd && page < range.recentStart;
}

/** Blocks of the candidates among the pages. */
function noteChosen({ args, sliceIndex, range, chosenBlocks }: Scope, { pages = [] }: Chosen): void {
  if (!chosenBlocks.wants(sliceIndex)) return;
  for (const page of pages) {
    if (!isCandidate(range, page)) continue;
    chosenBlocks.add({ sliceIndex, layer: args.layer, block: Math.floor(page / PAGES_PER_BLOCK) });
  }
}

/** Notes anew what choices of a layer miss, when blocks have come. */
export function recheck(
  layer: number,
  selections: readonly GroupSelection[],
  slices: readonly StepSlice[],
  misses: MissSet,
): void {
  for (const selection of selections) {
    const slice = slices[selection.sliceIndex] as StepSlice;
    noteMisses({ ...selection, args: { layer }, slice, misses }, selection);
  }
}

/** Blocks before the last row's own that hold a chosen page and are not on the device. */
function noteMisses(scope: MissScope, { pages }: Chosen): void {
  const ownBlock = Math.floor(scope.group.positionLast / BLOCK_TOKENS);
  const wanted =
    pages === undefined
      ? Array.from({ length: ownBlock }, (_, block) => block)
      : pages.map((page) => Math.floor(page / PAGES_PER_BLOCK));
  for (const block of wanted) {
    if (block >= ownBlock || isResident(scope, block)) continue;
    scope.misses.add({ sliceIndex: scope.sliceIndex, layer: scope.args.layer, block });
  }
}
