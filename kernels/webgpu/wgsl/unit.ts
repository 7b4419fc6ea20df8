/**
 * Tables that the kernels of a selection share. A *unit* is one choice: a query group of a slice and the KV heads that choose together. A
 * *ranking* is a set of candidates of a unit (pages, or tokens of the kept pages) that get a score and of which the best are taken.
 * Addresses (`..._at`) are words: of the tables, of scratch, or of the outcome, as said.
 */

/** Fields of a unit, in order. Those of an absent part are {@link NOWHERE}. */
export const UNIT_FIELDS = [
  ...["first_row", "row_count", "kv_first", "kv_count"],
  /** Candidates: pages page_first .. page_first + page_count - 1; forced: the pages around them, up to page_end. */
  ...["page_first", "page_count", "page_end"],
  /** The block of the group's last row: it and those behind it are read as open only, and never missed. */
  "last_block",
  /** tables; block ids of layer l lie l * block_ids_stride further. */
  ...["summary_slots_at", "block_ids_at", "block_ids_stride"],
  /** outcome; bitmaps of layer l lie l * stride further. */
  ...["counters_at", "misses_at", "misses_stride", "chosen_at", "chosen_stride"],
  /** scratch: what attention reads: how many blocks, then (block, mask, place) of each, see attend.ts. */
  "blocks_at",
  /** 0: no candidate is kept, 1: all, 2: those whose flag is set, 3: those that the given choice has. */
  "keeps",
  /** A byte a block, bit i for its page i, in rows of choice_stride words, one per layer: tables, what is given; outcome, what is reported. */
  ...["given_at", "report_at", "choice_stride"],
  /** f32 bits. */
  "radius_weight",
  /** Scores of pages, in scratch: [query][raw_stride]. */
  ...["raw_at", "raw_stride", "flags_at"],
  /** tables: the ranking of what the unit is scored for; in a table of units that list, that of its pages where the layer chooses them. */
  "ranking_at",
  /** 1: later layers take the choice over, by its flags. */
  "hands_on",
  /**
   * Blocks block_first .. block_first + block_count - 1 are scored first: their scores, and the flags of those that stay, in scratch. Where
   * block_flags_at is NOWHERE all pages are scored at once.
   */
  ...["block_first", "block_count", "block_raw_at", "block_flags_at"],
  /** Token plans, in scratch: the kept pages that are there, ascending; how many; place of each candidate in that list, from 1. */
  ...["list_at", "list_count_at", "places_at"],
  /** How many tokens are taken; scores of tokens. */
  ...["token_take", "token_raw_at", "token_raw_stride", "token_flags_at"],
] as const;

/** Fields of a ranking, in order. All addresses are in scratch. */
export const RANKING_FIELDS = [
  ...["raw_at", "raw_stride", "query_count"],
  /** How many candidates there are; where size_at is not NOWHERE: 16 times what is written there. */
  ...["size", "size_at"],
  /** f32 [query](max, 1 / sum) of the softmax; sortable keys and flags of the candidates. */
  ...["stats_at", "keys_at", "flags_at"],
  "take",
  /** f32 bits; 0: all of the taken, else as many of the best as have this share of the weight of all. */
  "mass_share",
  /** 0: max, 1: softmax-sum. */
  "rule",
] as const;

/** In the place of a raw score: this page is not scored, and ranks below all that are. */
export const UNSCORED = "0xffffffffu";

/** An address of nothing. */
export const NOWHERE = 0xffff_ffff;

function structure(name: string, fields: readonly string[]): string {
  const declared = fields.map((field) => `${field}: u32`).join(", ");
  const loaded = fields.map((_, index) => `tables[at + ${index}u]`).join(", ");
  return `struct ${name} { ${declared} }
fn load_${name.toLowerCase()}(at: u32) -> ${name} { return ${name}(${loaded}); }`;
}

/** `load_unit(at)` of the tables. */
export const UNIT = structure("Unit", UNIT_FIELDS);
/** `load_ranking(at)` of the tables. */
export const RANKING = structure("Ranking", RANKING_FIELDS);

/** Candidates of a ranking; needs scratch. */
export const RANKING_SIZE = /* wgsl */ `
fn ranking_size(ranking: Ranking) -> u32 {
  if (ranking.size_at == 0xffffffffu) { return ranking.size; }
  return scratch[ranking.size_at] * 16u;
}
`;
