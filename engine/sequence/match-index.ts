/** Where the last tokens of a growing text stood before: the place that agrees with its end furthest back. */

/** Tokens that must agree. */
const GRAM_TOKENS = 3;
/** Places that are compared, the latest first, and tokens that are compared at each. */
const PLACES_MAX = 8;
const AGREEMENT_MAX = 12;

/** A place that the end of a text agrees with. */
export interface Match {
  /** Position behind it: what stands there may follow again. */
  end: number;
  /** Tokens in front of it that agree, {@link GRAM_TOKENS} to 12. */
  length: number;
}

/** Index of one text; it holds two numbers for each token. */
export class MatchIndex {
  /** End of the latest place by the hash of its tokens; places with the same hash are a chain. */
  readonly #latest = new Map<number, number>();
  readonly #earlier: number[] = [];
  #indexedCount = GRAM_TOKENS - 1;

  /** The best place for the end of a text that has only grown since the last call: the longest agreement, then the latest. */
  find(ids: Uint32Array): Match | undefined {
    for (let end = this.#indexedCount + 1; end < ids.length; end++) {
      const hash = hashOf(ids, end);
      this.#earlier[end] = this.#latest.get(hash) ?? 0;
      this.#latest.set(hash, end);
    }
    this.#indexedCount = Math.max(this.#indexedCount, ids.length - 1);
    if (ids.length <= GRAM_TOKENS) return undefined;
    let best: Match | undefined;
    let end = this.#latest.get(hashOf(ids, ids.length)) ?? 0;
    for (let count = 0; count < PLACES_MAX && end > 0; count++, end = this.#earlier[end]!) {
      const length = agreement(ids, end);
      if (length >= GRAM_TOKENS && length > (best?.length ?? 0)) best = { end, length };
    }
    return best;
  }
}

function agreement(ids: Uint32Array, end: number): number {
  let length = 0;
  while (length < Math.min(AGREEMENT_MAX, end) && ids[end - 1 - length] === ids[ids.length - 1 - length]) length += 1;
  return length;
}

/** Of the tokens that end before a position; different ones may meet, so whoever finds them compares. */
function hashOf(ids: Uint32Array, end: number): number {
  let hash = 0;
  for (let i = end - GRAM_TOKENS; i < end; i++) hash = Math.imul(hash ^ ids[i]!, 0x9e37_79b1) ^ (hash >>> 15);
  return hash;
}
