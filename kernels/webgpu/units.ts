/** Units of selection and their rankings, as the host keeps them for a step: see wgsl/unit.ts. */
import type { CoarsePass } from "../coarse.ts";
import { PAGE_TOKENS } from "../contract.ts";
import { pageCombine, type SelectingPlan } from "../page-range.ts";
import { NOWHERE, RANKING_FIELDS, type UNIT_FIELDS } from "./wgsl/unit.ts";
import { floatBits } from "./words.ts";

/** A unit as kernels read it. */
export type UnitRecord = Record<(typeof UNIT_FIELDS)[number], number>;

/** A unit and what its rankings need. */
export interface Unit {
  sliceIndex: number;
  record: UnitRecord;
  plan: SelectingPlan;
  /** What each layer lets it take, where these differ. */
  takes: readonly UnitTake[];
  keep: number;
  /** Every candidate is kept, whatever its score; also where an earlier step's choice says so. */
  keepsAll: boolean;
  pass: CoarsePass | undefined;
  queryCount: number;
  chunkCount: number;
  /** Most blocks that attention reads for it. */
  blocksMax: number;
  scoresPages: boolean;
  /** Most pages that the second stage of a token plan sees. */
  listMax: number;
}

/** How many candidates a unit keeps in a layer, and whether it scores them, after which coarse pass. */
export type UnitTake = Pick<Unit, "keep" | "keepsAll" | "scoresPages" | "pass"> & Pick<UnitRecord, "keeps">;

/** What a batch ranks. */
export type Ranked = "blocks" | "pages" | "tokens";

/** The unit as a layer that selects sees it. */
export function inLayer(unit: Unit, layer: number): Unit {
  const { keep, keepsAll, scoresPages, pass, keeps } = unit.takes[layer] ?? (unit.takes[0] as UnitTake);
  const { blockFirst, blockEnd } = pass ?? { blockFirst: 0, blockEnd: 0 };
  const record = {
    ...{ ...unit.record, keeps, block_first: blockFirst, block_count: blockEnd - blockFirst },
    block_flags_at: pass === undefined ? NOWHERE : unit.record.block_flags_at,
  };
  return { ...unit, keep, keepsAll, scoresPages, pass, record };
}

/** Whether a unit, as a layer sees it, attends to all there is: its attention is dense, to the bit. */
export function coversAll({ record, plan, keepsAll }: Unit): boolean {
  if (record.page_count === 0) return true;
  return keepsAll && (plan.kind === "pages" || record.token_take >= record.page_count * PAGE_TOKENS);
}

/** The ranking of a unit's candidates, in the order of RANKING_FIELDS; `at`: addresses in scratch. */
export function rankingOf(unit: Unit, ranked: Ranked, at: { raw: number; stats: number; keys: number }): number[] {
  const { record, plan, pass } = unit;
  const isPages = ranked === "pages";
  const take = { blocks: pass?.keep ?? 0, pages: unit.keep, tokens: record.token_take }[ranked];
  const flags = { blocks: record.block_flags_at, pages: record.flags_at, tokens: record.token_flags_at }[ranked];
  const values: Record<(typeof RANKING_FIELDS)[number], number> = {
    ...{ raw_at: at.raw, raw_stride: strideOf(unit, ranked), query_count: unit.queryCount },
    ...(ranked === "tokens"
      ? { size: 0, size_at: record.list_count_at }
      : { size: strideOf(unit, ranked), size_at: NOWHERE }),
    ...{ stats_at: at.stats, keys_at: at.keys, flags_at: flags, take, rule: pageCombine(plan) === "max" ? 0 : 1 },
    mass_share: isPages ? floatBits(massShareOf(plan)) : 0,
  };
  return RANKING_FIELDS.map((field) => values[field]);
}

/** Raw scores of one query, in words. */
export function strideOf({ record }: Unit, ranked: Ranked): number {
  return { blocks: record.block_count, pages: record.raw_stride, tokens: record.token_raw_stride }[ranked];
}

/** Raw scores, stats and keys of a unit's ranking. */
export function rawWordsOf(unit: Unit, ranked: Ranked): number {
  return (unit.queryCount + 1) * strideOf(unit, ranked) + 2 * unit.queryCount;
}

/** 0: a plan without one. */
export function massShareOf(plan: SelectingPlan): number {
  return plan.kind === "pages" ? (plan.massShare ?? 0) : 0;
}
