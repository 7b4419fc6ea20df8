/**
 * Guesses of the next tokens from the context itself (prompt lookup): where the last few tokens stood before, what followed them is guessed to follow
 * again. The model checks all guesses in one step, and what it would have sampled is what counts, so the text is that of decoding one by
 * one: rows do not depend on their company, and noise depends on seed and position alone.
 */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { parseHow } from "../kv/provenance.ts";
import type { CostModel } from "../schedule/cost-model.ts";
import { draftEnd } from "./runs.ts";
import type { Sequence } from "./sequence.ts";

/** Tokens that must have stood together before. */
const GRAM_TOKENS = 3;
/** Share of a new outcome in the hit rate, and the rate before there was one. */
const OUTCOME_SHARE = 0.1;
const HIT_RATE_START = 0.6;
/** Where guessing does not pay, it is tried again after so many tokens. */
const PROBE_TOKENS = 64;
const PROBE_DRAFT = 4;
/** The first guesses of a sequence have these lengths, whatever is known: that is how the engine learns what they cost. */
const FIRST_DRAFTS = [2, 8, 4, 8];

const NONE = new Uint32Array(0);

/** Guesses for one sequence. */
export class Drafter {
  readonly #sequence: Sequence;
  /** End of the latest place of each run of {@link GRAM_TOKENS}, but for the one that ends the text. */
  readonly #ends = new Map<string, number>();
  #indexedCount = 0;
  #hitRate = HIT_RATE_START;
  #probedAt = 0;
  #judgedCount = 0;

  constructor(sequence: Sequence) {
    this.#sequence = sequence;
  }

  /**
   * The next tokens as guessed, none where that does not pay: at most `rowsMax`, within the block that is being filled (a sealed block holds
   * what was accepted), not over the border of the budget, and not over more than one border of runs.
   * @param stepMs what the step takes without guesses, this sequence's part of it
   */
  propose(cost: CostModel, stepMs: number, rowsMax: number): Uint32Array {
    const sequence = this.#sequence;
    const { tokenCount, ids } = sequence;
    const position = tokenCount - 1;
    const how = parseHow(sequence.spans.at(position).how);
    const budgetEnd = how !== undefined && position < how.budgetTokens ? how.budgetTokens : Number.POSITIVE_INFINITY;
    const blockEnd = (Math.floor(position / BLOCK_TOKENS) + 1) * BLOCK_TOKENS - 1;
    const runsEnd = draftEnd(sequence, position);
    const replyLeft = sequence.request.maxTokens - sequence.generatedCount - 1;
    const most = Math.min(
      rowsMax,
      LIMITS.draftTokensMax,
      blockEnd - tokenCount,
      budgetEnd - tokenCount,
      runsEnd - tokenCount,
      replyLeft,
    );
    if (most < 1 || !sequence.blocks.every((block) => block?.resident)) return NONE;
    const first = FIRST_DRAFTS[this.#judgedCount];
    const count = first === undefined ? this.#worthwhile(cost, stepMs, most) : Math.min(first, most);
    if (count === 0) return NONE;
    const end = this.#find();
    if (end === undefined) return NONE;
    // What repeats itself goes on repeating: behind the end of the text follow the guesses themselves.
    const draft = new Uint32Array(count);
    for (let i = 0; i < count; i++) draft[i] = end + i < tokenCount ? ids[end + i]! : draft[end + i - tokenCount]!;
    return draft;
  }

  /** So many of the guesses were right; the first wrong one ended it. */
  judged(draftCount: number, rightCount: number): void {
    this.#judgedCount += 1;
    for (let i = 0; i < Math.min(draftCount, rightCount + 1); i++)
      this.#hitRate += OUTCOME_SHARE * ((i < rightCount ? 1 : 0) - this.#hitRate);
  }

  /** How many guesses give the most tokens per time, at the hit rate there has been. */
  #worthwhile(cost: CostModel, stepMs: number, most: number): number {
    const rowMs = cost.predictMs({ rows: 1, sampledRows: 1, attendedTokens: this.#sequence.tokenCount }) - cost.fixedMs;
    let best = 0;
    let bestPerMs = 1 / stepMs;
    let expected = 1;
    for (let count = 1; count <= most; count++) {
      expected += this.#hitRate ** count;
      const perMs = expected / (stepMs + count * rowMs);
      if (perMs <= bestPerMs) continue;
      best = count;
      bestPerMs = perMs;
    }
    if (best > 0 || this.#sequence.tokenCount - this.#probedAt < PROBE_TOKENS) return best;
    this.#probedAt = this.#sequence.tokenCount;
    return Math.min(PROBE_DRAFT, most);
  }

  /** Where the last tokens stood before: the position behind them. */
  #find(): number | undefined {
    const { ids, tokenCount } = this.#sequence;
    if (tokenCount <= GRAM_TOKENS) return undefined;
    for (let end = Math.max(GRAM_TOKENS, this.#indexedCount + 1); end < tokenCount; end++)
      this.#ends.set(gram(ids, end), end);
    this.#indexedCount = Math.max(this.#indexedCount, tokenCount - 1);
    return this.#ends.get(gram(ids, tokenCount));
  }
}

/** Names the tokens that end before a position. */
function gram(ids: Uint32Array, end: number): string {
  return String.fromCharCode(
    ...Array.from(ids.subarray(end - GRAM_TOKENS, end), (id) => [id >>> 16, id & 0xffff]).flat(),
  );
}
