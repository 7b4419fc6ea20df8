/** What a resumed turn reads at once, before its first step: blocks that every query attends to, and those that the last turn chose most. */
import { BLOCK_TOKENS, PAGES_PER_BLOCK } from "../../kernels/contract.ts";
import { pageRange } from "../../kernels/page-range.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import type { SegmentRef } from "../../storage/manifest.ts";
import { segmentRange } from "../../storage/segment.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { blockRuns } from "./block-runs.ts";
import type { RangeRef } from "./read-ahead.ts";

/** One layer of one logical block, by index. */
export interface BurstItem {
  index: number;
  layer: number;
}

/** What a burst reads. */
export interface Burst {
  /** Sinks and recent pages, in all layers. */
  forced: BurstItem[];
  /** Of each layer the hottest blocks: as many as a budget is, up to a limit of bytes. */
  hot: BurstItem[];
}

/**
 * The burst of a turn whose first row is at `from`. Only blocks below `blockEnd` for which `wants` says so. Empty for rows that attend to
 * everything: those wait for all blocks.
 */
export function burstOf(
  sequence: Sequence,
  options: { from: number; blockEnd: number; geometry: KvGeometry; wants(item: BurstItem): boolean },
): Burst {
  const { from, blockEnd, geometry, wants } = options;
  const { policy, budgetTokens } = sequence.selection;
  const plan = from < budgetTokens ? undefined : policyNamed(policy).plan(budgetTokens);
  if (plan === undefined || plan.kind === "dense") return { forced: [], hot: [] };
  const { sinkEnd, recentStart } = pageRange(plan, { positionFirst: from, positionLast: from });
  const isForced = (index: number) => index * PAGES_PER_BLOCK < sinkEnd || (index + 1) * PAGES_PER_BLOCK > recentStart;
  const forced: BurstItem[] = [];
  for (let index = 0; index < blockEnd; index++) {
    if (!isForced(index)) continue;
    for (let layer = 0; layer < geometry.layerCount; layer++)
      if (wants({ index, layer })) forced.push({ index, layer });
  }
  // The hottest are chosen again most surely: no more than a step attends to.
  const countMax = Math.ceil(budgetTokens / BLOCK_TOKENS);
  const hot = hottestFirst(sequence.hotBlocks.map((blocks) => blocks.slice(0, countMax))).filter(
    (item) => item.index < blockEnd && !isForced(item.index) && wants(item),
  );
  return { forced, hot: hot.slice(0, Math.floor(LIMITS.hotBurstBytesMax / geometry.blockBytes)) };
}

/** The hottest block of every layer before the next. */
function hottestFirst(hotBlocks: readonly (readonly number[])[]): BurstItem[] {
  const rankCount = Math.max(0, ...hotBlocks.map((blocks) => blocks.length));
  const items: BurstItem[] = [];
  for (let rank = 0; rank < rankCount; rank++) {
    for (const [layer, blocks] of hotBlocks.entries()) {
      const index = blocks[rank];
      if (index !== undefined) items.push({ index, layer });
    }
  }
  return items;
}

/** Where a burst's blocks lie, neighbours joined as the fetcher joins them. */
export function burstRanges(
  items: readonly BurstItem[],
  segments: readonly SegmentRef[],
  geometry: KvGeometry,
): RangeRef[] {
  const perSegment = geometry.segmentTokens / BLOCK_TOKENS;
  const places = items.map((item) => ({ ...item, segment: segments[Math.floor(item.index / perSegment)] }));
  return blockRuns(places, geometry).flatMap((run) => {
    const { segment, index, layer } = run[0] as (typeof places)[number];
    if (segment === undefined) return [];
    const { offset, bytes } = segmentRange(geometry, layer, index % perSegment, run.length);
    return [{ objectKey: segment.objectKey, offset: segment.objectOffset + offset, bytes }];
  });
}
