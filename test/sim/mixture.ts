/** What lives are made of: how much goes wrong, who asks for what, and how little memory there is. */
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { StoredEncoding } from "../../storage/geometry.ts";
import { DENSE, QUEST, QUEST_AROUND } from "../engine/selections.ts";
import type { SimFaults } from "./sim-store.ts";

/** Rates at which most lives meet most faults. */
export const SIM_RATES: SimFaults = {
  error: 0.04,
  lostAnswer: 0.03,
  delay: 0.1,
  stall: 0.01,
  tornWrite: 0.03,
  lostWrite: 0.03,
  duplicate: 0.03,
  truncate: 0.02,
  wrongRange: 0.03,
  bitFlip: 0.03,
  staleRead: 0.05,
  staleList: 0.1,
};

/** What conversations ask for. */
export const SELECTIONS: readonly SelectionRequest[] = [
  DENSE,
  QUEST,
  { ...QUEST, policy: "mean-deviation", budgetTokens: 144 },
  QUEST_AROUND,
  { ...QUEST, policy: "quest+reuse(4)" },
  { ...QUEST_AROUND, policy: "mean-deviation+reuse(8)" },
  { ...QUEST, policy: "quest+coarse(2)" },
];
/** What those ask for whose layers share choices. */
export const SELECTIONS_SHARED: readonly SelectionRequest[] = [
  { ...QUEST, policy: "quest+own-layers(1)+share(2)" },
  { ...QUEST_AROUND, policy: "quest+own-layers(1)+share(2)" },
  { ...QUEST, policy: "mean-deviation+share(2)", budgetTokens: 144 },
  { ...QUEST_AROUND, policy: "mean-deviation+share(2)+reuse(4)" },
  DENSE,
];
/** Of the tenants. */
export const NAMESPACES = ["00000000000000aa", "00000000000000bb"] as const;
/** A conversation's first prompt, between two token counts, and the count beyond which its log is followed by a new one. */
export const LENGTHS = { firstMin: 60, firstMax: 150, logMax: 380 };
/** Of default mode: only a longer context has pages that no first burst brings, so that some can be missed. */
export const LENGTHS_AROUND = { ...LENGTHS, firstMin: 230, firstMax: 290 };
/** A log, and the turn that made it longer than that. */
export const TWIN_TOKENS_MAX = 704;
/** Conversations at a time. */
export const LOGS_MAX = 4;
/** Twins there are over a life: logs, forks, and logs that followed others. */
export const TWINS_MAX = 16;
/** Just what one turn can come to hold: blocks of other conversations leave the device. */
export const ENGINE_BLOCKS = 9;
/** Of rounds: everybody comes to one engine. */
export const CROWDED_SHARE = 0.05;
/** Of collections, those that take sessions with them which were not committed for {@link SESSION_AGE_MS_MAX}, be it while their turns run. */
export const EXPIRING_SHARE = 0.5;
/** See {@link EXPIRING_SHARE}. */
export const SESSION_AGE_MS_MAX = 100;
/** One life in so many has sessions that are deleted, some of their logs behind a turn. */
export const ENDING_EVERY = 4;
/** See {@link ENDING_EVERY}. */
export const ENDED_SHARE = 0.3;
/** Write-behind budgets of engines of such lives: for all, and for less than a turn leaves. */
export const WRITE_BEHIND_BYTES = [1 << 28, 1 << 28, 24 * 1024, 14 * 1024];
/**
 * Lives whose contexts grow beyond the pool: three layers and six blocks of them, with room for what two such sequences need of theirs at once. Their
 * engines have host memory for it.
 */
export const TIGHT = { layerCount: 3, blockCount: 20, summarySlotCount: 40 } as const;
/** See {@link LENGTHS}: with these most of their logs outgrow six blocks. */
export const TIGHT_LENGTHS = { firstMin: 200, firstMax: 400, logMax: 540 };
/** One seed in so many lives so. */
export const TIGHT_EVERY = 32;
/**
 * Lives whose layers share choices, one seed in {@link TIGHT_EVERY}: of every two of them the contexts of one outgrow the pool. It holds two layers of such a
 * context and a block of all, which is the least with which an engine takes a choice for two layers.
 */
export const SHARED = { layerCount: 3, blockCount: 27, summarySlotCount: 40 } as const;
/** Host memory of their engines: enough for one turn at least. */
export const TIGHT_HOST_BYTES = [64 * 1024, 128 * 1024, 256 * 1024];
/** See {@link CROWDED_SHARE}. */
export const TIGHT_CROWDED_SHARE = 0.4;
/** Replies that fill blocks of their own. */
export const LONG_TOKENS = 100;
/** How a life's pages are stored, by its seed: all engines of a life agree. */
export const PAGES: readonly StoredEncoding[] = ["int8", "int4", "int8", "f16"];
/** Host memory of other engines: none, for some blocks, for all. */
export const HOST_BYTES = [0, 12 * 1024, 256 * 1024];

/** What of a life is not the usual. */
export interface LifeKind {
  /** Its contexts outgrow the pool. */
  isTight: boolean;
  /** Its layers share choices. */
  isShared: boolean;
  /** Sessions of it are deleted. */
  isEnding: boolean;
}

/** Of a seed; `tight`: whether contexts outgrow the pool, whatever the seed. */
export function kindOf(seed: number, tight: boolean | undefined): LifeKind {
  const isShared = tight === undefined && seed % TIGHT_EVERY === 18;
  const isTight = isShared ? Math.floor(seed / TIGHT_EVERY) % 2 === 1 : seed % TIGHT_EVERY === 2;
  return { isShared, isTight: tight ?? isTight, isEnding: seed % ENDING_EVERY === 1 };
}

/** The pool of such a life's engines. */
export function poolOf(kind: LifeKind): { layerCount?: number; blockCount: number; summarySlotCount?: number } {
  if (kind.isShared) return SHARED;
  return kind.isTight ? TIGHT : { blockCount: ENGINE_BLOCKS };
}
