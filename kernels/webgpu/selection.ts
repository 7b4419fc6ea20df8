/// <reference types="@webgpu/types" />
/** Dispatches of select and attend for one layer. */
import { assert } from "../../protocol/assert.ts";
import type { SummaryKind } from "../contract.ts";
import type { Arena, CommandList, StepBuffers } from "./command-list.ts";
import type { Kernel } from "./kernel.ts";
import type { Dispatch, WaitingOp } from "./product-inputs.ts";
import type { Batch, LayerLists, StepLayout } from "./step-layout.ts";
import type { QueryForm } from "./wgsl/append-queries.ts";
import { attend } from "./wgsl/attend.ts";
import { TILE_HEADS } from "./wgsl/attend-blocks.ts";
import { CHOOSE_BLOCKS, LIST_BLOCKS_OF_UNITS, LIST_PAGES } from "./wgsl/masks.ts";
import { mergeSplits } from "./wgsl/merge-splits.ts";
import { COMBINE, SCORE_STATS, TOP_K, TOP_MASS } from "./wgsl/rank.ts";
import { turnQueries } from "./wgsl/residual-signs.ts";
import { QUANTIZE_QUERIES, type ScoreResult, scoreBlocks, scorePages, scoreTokens } from "./wgsl/score.ts";
import { pagesOfGroup, scorePagesWide, scoresWide, type WideResult } from "./wgsl/score-pages.ts";

/** Work groups from which on every tile walks its splits by itself. */
const WALK_GROUPS_MIN = 2048;
/** Words of partial results at most. */
const PARTIAL_WORDS_MAX = 1 << 24;

/** One layer of one step. */
export interface LayerStep {
  list: CommandList;
  buffers: StepBuffers;
  layout: StepLayout;
  layer: number;
  /** f32 `[rows, headCount, headDim]`, post-RoPE. */
  q: GPUBuffer;
}

/** What a layer's page scores take of queries; undefined: it scores no pages. */
export function queryFormOf({ batches }: LayerLists): QueryForm | undefined {
  if (batches.length === 0) return undefined;
  return batches.some(({ summary }) => summary === "residual-signs") ? "turned" : "codes";
}

/** `hasCodes`: the queries' form for page scores is in scratch. Scores, ranks and lists: what {@link recordAttend} of the layer reads lies in scratch afterwards. */
export function recordSelect(step: LayerStep, hasCodes: boolean): void {
  const { list, layout, layer } = step;
  const { tables, scratch, outcome } = step.buffers;
  const { headDim } = layout.pool.spec;
  const lists = layout.listsOf(layer);
  if (lists.units.count === 0) return;
  const choosesBlocks = listTakesBest(lists);
  if (!hasCodes) quantizeQueries(step, queryFormOf(lists));
  for (const batch of lists.blockBatches) {
    const centres = layout.pool.centres(batch.summary as SummaryKind, layer);
    scoreBatch(step, batch, { kernel: scoreBlocks(resultOf(batch)), perGroup: 64, source: centres });
    rankBatch(step, batch);
  }
  for (const batch of lists.batches) {
    const summary = batch.summary as SummaryKind;
    const scoring = scoresWide(summary, headDim)
      ? { kernel: scorePagesWide(summary, headDim, wideResultOf(batch)), perGroup: pagesOfGroup(headDim) }
      : { kernel: scorePages(summary, resultOf(batch)), perGroup: 64 };
    scoreBatch(step, batch, { ...scoring, source: layout.pool.summaries(summary, layer) });
    rankBatch(step, batch, { choosesBlocks });
  }
  const params = { layer, units_at: lists.listUnits.at };
  list.dispatch(LIST_PAGES, params, [tables, scratch, outcome], [lists.listUnits.count]);
  for (const batch of lists.tokenBatches) {
    scoreTokenBatch(step, batch);
    rankBatch(step, batch);
  }
  list.dispatch(
    choosesBlocks ? CHOOSE_BLOCKS : LIST_BLOCKS_OF_UNITS,
    { layer, units_at: lists.units.at },
    [tables, scratch, outcome],
    [lists.units.count],
  );
}

/** Queries that append did not quantize. */
function quantizeQueries({ list, buffers, layout, q }: LayerStep, form: QueryForm | undefined): void {
  if (form === undefined) return;
  const { headDim } = layout.pool.spec;
  const params = { head_dim: headDim, codes_at: layout.codesAt, scales_at: layout.scalesAt };
  const grid = [layout.headCount, layout.rowCount] as const;
  list.dispatch(QUANTIZE_QUERIES, params, [q, buffers.scratch], grid);
  if (form === "codes") return;
  const turned = { codes_at: layout.codesAt, scales_at: layout.scalesAt, turned_at: layout.turnedAt };
  list.dispatch(turnQueries(headDim), turned, [buffers.scratch], grid);
}

/** Whether the list of blocks finds the best pages itself: their keys are all there, and nothing asks for their flags in between. */
function listTakesBest({ batches, listUnits }: LayerLists): boolean {
  return batches.length === 1 && listUnits.count === 0 && batches.every(({ usesMass }) => !usesMass);
}

function resultOf({ makesKeys }: Batch): ScoreResult {
  return makesKeys ? "keys" : "raw";
}

function wideResultOf(batch: Batch): WideResult {
  return batch.makesKeys && batch.chunksMax > 1 ? "keys of chunks" : resultOf(batch);
}

/** How candidates are scored: by pages' summaries or blocks' centres, `perGroup` in a work group. */
interface Scoring {
  kernel: Kernel;
  perGroup: number;
  source: GPUBuffer | undefined;
}

function scoreBatch({ list, buffers, layout }: LayerStep, batch: Batch, { kernel, perGroup, source }: Scoring): void {
  const { pool, headCount } = layout;
  const { kvHeadCount, headDim } = pool.spec;
  assert(source !== undefined, "what a batch scores by is in the pool");
  const params = {
    ...{ head_count: headCount, kv_head_count: kvHeadCount, head_dim: headDim, units_at: batch.unitsAt },
    ...{ codes_at: layout.codesAt, scales_at: layout.scalesAt, turned_at: layout.turnedAt },
  };
  const chunks = batch.makesKeys ? 1 : batch.chunksMax;
  const grid = [Math.ceil(batch.candidatesMax / perGroup), chunks, batch.unitCount] as const;
  list.dispatch(kernel, params, [source, buffers.tables, buffers.scratch], grid);
}

function scoreTokenBatch({ list, buffers, layout, layer, q }: LayerStep, batch: Batch): void {
  const { pool, headCount } = layout;
  const { kvHeadCount, headDim, encoding } = pool.spec;
  const params = {
    ...{ layer, head_count: headCount, kv_head_count: kvHeadCount, head_dim: headDim, units_at: batch.unitsAt },
    ...{ block_words: pool.blockBytes / 4, blocks_per_part: pool.blocksPerPart },
  };
  const grid = [Math.ceil(batch.candidatesMax / 64), batch.chunksMax, batch.unitCount] as const;
  const kernel = scoreTokens(encoding, pool.blockParts.length);
  list.dispatch(kernel, params, [q, buffers.tables, buffers.scratch, ...pool.blockParts], grid);
}

function rankBatch({ list, buffers, layout }: LayerStep, batch: Batch, { choosesBlocks = false } = {}): void {
  const both: readonly Arena[] = [buffers.tables, buffers.scratch];
  const params = { rankings_at: batch.rankingsAt, scale: 1 / Math.sqrt(layout.pool.spec.headDim) };
  if (batch.usesSoftmax) list.dispatch(SCORE_STATS, params, both, [batch.queriesMax, batch.unitCount]);
  const combined = [Math.ceil(batch.candidatesMax / 64), batch.unitCount] as const;
  if (!batch.makesKeys) list.dispatch(COMBINE, params, both, combined);
  if (choosesBlocks) return;
  list.dispatch(TOP_K, { rankings_at: batch.rankingsAt }, both, [batch.unitCount]);
  if (batch.usesMass) list.dispatch(TOP_MASS, params, both, [batch.unitCount]);
}

/**
 * Attention of every tile over what was selected; by splits where there are too few tiles to fill a GPU. Returns the merge of splits where that may
 * quantize for the product behind it and so is still to be run: where a head is whole blocks of 32.
 */
export function recordAttend(step: LayerStep, out: GPUBuffer): WaitingOp | undefined {
  const { list, layout, layer } = step;
  const { tables, scratch } = step.buffers;
  const { pool, headCount, tileRows } = layout;
  const { tiles, splitCount } = layout.listsOf(layer);
  const { kvHeadCount, headDim, encoding } = pool.spec;
  const headChunks = Math.ceil(headCount / kvHeadCount / TILE_HEADS);
  const partialWords = layout.rowCount * headCount * splitCount * (headDim + 4);
  const isSplit =
    splitCount > 1 && tiles.count * kvHeadCount * headChunks < WALK_GROUPS_MIN && partialWords <= PARTIAL_WORDS_MAX;
  if (isSplit) scratch.need((layout.partialsAt + partialWords) * 4);
  const params = {
    ...{ layer, head_count: headCount, kv_head_count: kvHeadCount, head_chunks: headChunks, tiles_at: tiles.at },
    ...{ block_words: pool.blockBytes / 4, blocks_per_part: pool.blocksPerPart, is_split: isSplit ? 1 : 0 },
    ...{ partials_at: layout.partialsAt, split_count: splitCount, scale: 1 / Math.sqrt(headDim) },
  };
  const kernel = attend(encoding, headDim, pool.blockParts.length, tileRows);
  const open = pool.open[layer] as GPUBuffer;
  const buffers = [step.q, out, open, tables, scratch, ...pool.blockParts];
  list.dispatch(kernel, params, buffers, [isSplit ? splitCount : 1, tiles.count, kvHeadCount * headChunks]);
  if (!isSplit) return undefined;
  const merge = (blocks: number): Dispatch => ({
    kernel: mergeSplits(headDim, blocks > 0),
    params: {
      ...{ head_count: headCount, kv_head_count: kvHeadCount, tiles_at: tiles.at },
      ...{ partials_at: layout.partialsAt, split_count: splitCount, blocks },
    },
    buffers: [scratch, tables, out],
    grid: [tiles.count, tileRows, headCount],
  });
  const alone = merge(0);
  if (headDim % 32 === 0) {
    return { out, rows: layout.rowCount, width: headCount * headDim, alone: [alone], quantizing: merge };
  }
  list.dispatch(alone.kernel, alone.params, alone.buffers, alone.grid);
  return undefined;
}
