/**
 * Guesses of the next tokens from the context itself (prompt lookup): where the last few tokens stood before, what followed them is guessed to follow
 * again, the more of it the more of them agree and the more often such guesses have been right. The model checks all guesses in one step, and what it would have sampled is what counts, so the text is that of decoding one by
 * one: rows do not depend on their company, and noise depends on seed and position alone.
 */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { CostModel } from "../schedule/cost-model.ts";
import { MatchIndex } from "./match-index.ts";
import { draftEnd } from "./runs.ts";
import type { Sequence } from "./sequence.ts";

/** Agreements of up to so many tokens are judged together; longer ones are a class of their own. Hit rates before there was an outcome. */
const CLASS_LENGTHS = [3, 5, 8];
const HIT_RATES_START = [0.5, 0.6, 0.75, 0.9];
/** Share of a new outcome in the hit rate of a sequence, and of the engine, with which sequences begin. */
const OUTCOME_SHARE = 0.1;
const ENGINE_OUTCOME_SHARE = 0.02;
/** Where guessing does not pay, it is tried again after so many tokens. */
const PROBE_TOKENS = 64;
const PROBE_DRAFT = 3;
/** Products take so many rows at a time: a row more than a multiple costs as much as a whole tile, so longer drafts fill tiles. */
const ROW_TILE = 4;
/** The first guesses of an engine have these lengths, whatever is known: that is how it learns what they cost. */
const FIRST_DRAFTS = [3, 7, 3, 11];

const NONE = new Uint32Array(0);

/** What an engine has learnt of guesses. */
export class DraftHistory {
  /** Share of guesses that were right, by class of the agreement in front of them. */
  readonly hitRates = [...HIT_RATES_START];
  judgedCount = 0;
}

/** Guesses for one sequence. */
export class Drafter {
  readonly #sequence: Sequence;
  readonly #history: DraftHistory;
  readonly #index = new MatchIndex();
  readonly #hitRates: number[];
  /** Class of the latest guesses. */
  #class = 0;
  #probedAt = 0;

  constructor(sequence: Sequence, history: DraftHistory) {
    this.#sequence = sequence;
    this.#history = history;
    this.#hitRates = [...history.hitRates];
  }

  /**
   * The next tokens as guessed, none where that does not pay: at most `rowsMax`, within the block that is being filled (a sealed block holds
   * what was accepted), not over the border of the budget, not over more than one border of runs, and no more rows than a working set is for.
   * @param stepMs what the step takes without guesses, this sequence's part of it
   */
  propose(cost: CostModel, stepMs: number, rowsMax: number): Uint32Array {
    const sequence = this.#sequence;
    const { tokenCount, ids } = sequence;
    const position = tokenCount - 1;
    const how = sequence.wayAt(position);
    const budgetEnd = how !== undefined && position < how.budgetTokens ? how.budgetTokens : Number.POSITIVE_INFINITY;
    const blockEnd = (Math.floor(position / BLOCK_TOKENS) + 1) * BLOCK_TOKENS - 1;
    const runsEnd = draftEnd(sequence, position);
    const replyLeft = sequence.request.maxTokens - sequence.generatedCount - 1;
    const most = Math.min(
      rowsMax,
      (sequence.workingSet?.groupsMax ?? Number.POSITIVE_INFINITY) - 1,
      LIMITS.draftTokensMax,
      blockEnd - tokenCount,
      budgetEnd - tokenCount,
      runsEnd - tokenCount,
      replyLeft,
    );
    if (most < 1 || !sequence.blocks.every((block) => block?.resident)) return NONE;
    const match = this.#index.find(ids);
    if (match === undefined) return NONE;
    const { end, length } = match;
    this.#class = CLASS_LENGTHS.findLastIndex((longest) => length > longest) + 1;
    const first = FIRST_DRAFTS[this.#history.judgedCount];
    const count = first === undefined ? this.#worthwhile(cost, stepMs, most) : Math.min(first, most);
    if (count === 0) return NONE;
    // What repeats itself goes on repeating: behind the end of the text follow the guesses themselves.
    const draft = new Uint32Array(count);
    for (let i = 0; i < count; i++) draft[i] = end + i < tokenCount ? ids[end + i]! : draft[end + i - tokenCount]!;
    return draft;
  }

  /** So many of the latest guesses were right; the first wrong one ended it. */
  judged(draftCount: number, rightCount: number): void {
    this.#history.judgedCount += 1;
    for (let i = 0; i < Math.min(draftCount, rightCount + 1); i++) {
      learn(this.#hitRates, this.#class, { isRight: i < rightCount, share: OUTCOME_SHARE });
      learn(this.#history.hitRates, this.#class, { isRight: i < rightCount, share: ENGINE_OUTCOME_SHARE });
    }
  }

  /** How many guesses give the most tokens per time, at the hit rate there has been after such agreements. */
  #worthwhile(cost: CostModel, stepMs: number, most: number): number {
    const rowMs = cost.predictMs({ rows: 1, sampledRows: 1, attendedTokens: this.#sequence.tokenCount }) - cost.fixedMs;
    const hitRate = this.#hitRates[this.#class]!;
    let best = 0;
    let bestPerMs = 1 / stepMs;
    let expected = 1;
    for (let count = 1; count <= most; count++) {
      expected += hitRate ** count;
      if (count !== most && (count + 1) % ROW_TILE !== 0) continue;
      const perMs = expected / (stepMs + count * rowMs);
      if (perMs <= bestPerMs) continue;
      best = count;
      bestPerMs = perMs;
    }
    if (best > 0 || this.#sequence.tokenCount - this.#probedAt < PROBE_TOKENS) return best;
    this.#probedAt = this.#sequence.tokenCount;
    return Math.min(PROBE_DRAFT, most);
  }
}

function learn(rates: number[], index: number, { isRight, share }: { isRight: boolean; share: number }): void {
  rates[index]! += share * (Number(isRight) - rates[index]!);
}
