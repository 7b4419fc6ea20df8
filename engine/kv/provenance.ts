/**
 * Provenance: how each token's KV was computed. It is hashed into the chain that names stored bytes, and a lost span is recomputed by
 * replaying it. A *span* (protocol) is `{end, how}`; `how` is "dense" or `<selection>.<version>:<budgetTokens>@<groupTokens>`
 * (selection: a configuration in its canonical form, protocol/selection.ts), with `~<nonce>` behind it where a selected page was missing
 * and not waited for (approximate: kept for its session, never shared).
 *
 * Query groups are the rows of one span that lie in one page, or half or whole block (prefill), or single rows (decode), so no group crosses a block border
 * and any block can be recomputed by itself. Where a selection reuses its choices (`reuse(R)`), decode rows form runs: those between two multiples
 * of R, as far as they are computed alike; the first row of a run chooses for it, so a row still depends on none behind it. A policy is dense while its group's page lies below the budget: those tokens are
 * named dense, so that they are shared with dense requests.
 */
import { BLOCK_TOKENS, PAGE_TOKENS } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { describeSpans } from "../../protocol/block-chain.ts";
import type { Span } from "../../protocol/generate.ts";

/** Provenance of KV that was attended in full. */
export const DENSE = "dense";

/** A parsed `how`. */
export interface How {
  policy: string;
  version: number;
  budgetTokens: number;
  /** Rows of a query group: 1 (decode), a page, or what `group` says (prefill). */
  groupTokens: number;
  /** Set where pages were missing: unique to the turn. */
  nonce?: string;
}

const HOW =
  /^([a-z][a-z0-9-]*(?:\+[a-z][a-z0-9-]*\([a-z0-9.,-]+\))*)\.(\d{1,4}):(\d{1,9})@(\d{1,3})(?:~([0-9a-f]{1,32}))?$/;

/** Writes the canonical form. */
export function formatHow(how: How): string {
  return `${how.policy}.${how.version}:${how.budgetTokens}@${how.groupTokens}${how.nonce === undefined ? "" : `~${how.nonce}`}`;
}

/** Parses a canonical form; undefined for dense. @throws {AssertionError} for anything else: validate at the border with {@link isHow}. */
export function parseHow(how: string): How | undefined {
  if (how === DENSE) return undefined;
  const match = HOW.exec(how);
  assert(match, `not a provenance: ${how}`);
  const [, policy, version, budget, group, nonce] = match;
  assert(policy !== undefined, "provenance has a policy");
  const parsed = { policy, version: Number(version), budgetTokens: Number(budget), groupTokens: Number(group) };
  return nonce === undefined ? parsed : { ...parsed, nonce };
}

/** Whether a string from outside is a provenance. */
export function isHow(how: string): boolean {
  if (how === DENSE) return true;
  const group = Number(HOW.exec(how)?.[4]);
  return group === 1 || (group >= PAGE_TOKENS && BLOCK_TOKENS % group === 0);
}

/** A span with its start, as {@link SpanList.at} finds it. */
export interface LocatedSpan {
  start: number;
  end: number;
  how: string;
}

/** The spans of a sequence, in order, without holes. Mutable; the last one grows while tokens are generated. */
export class SpanList {
  readonly #spans: Span[] = [];

  constructor(spans: readonly Span[] = []) {
    for (const span of spans) this.append(span.end, span.how);
  }

  /** Exclusive end of the last span. */
  get end(): number {
    return this.#spans.at(-1)?.end ?? 0;
  }

  /** Adds a span up to `end`; an empty one is left out. */
  append(end: number, how: string): void {
    assert(end >= this.end, "spans ascend");
    if (end > this.end) this.#spans.push({ end, how });
  }

  /** Grows the last span by one token if it is `how`, otherwise starts a new one. */
  extend(how: string): void {
    const last = this.#spans.at(-1);
    if (last?.how === how) last.end += 1;
    else this.#spans.push({ end: this.end + 1, how });
  }

  /** The span of a position below `end`. */
  at(position: number): LocatedSpan {
    let start = 0;
    for (const span of this.#spans) {
      if (position < span.end) return { start, end: span.end, how: span.how };
      start = span.end;
    }
    throw new RangeError(`position ${position} has no span`);
  }

  /** The tokens around a position that are computed as it is, whether they are of one span or of neighbours. */
  stretch(position: number): LocatedSpan {
    let [start, end, how] = [0, 0, ""];
    for (const span of this.#spans) {
      if (span.how !== how) {
        if (position < end) break;
        [start, how] = [end, span.how];
      }
      end = span.end;
    }
    if (position >= end) throw new RangeError(`position ${position} has no span`);
    return { start, end, how };
  }

  /** Whether a query group has rows on both sides of `position`: KV of those before it depends on those behind it. */
  splitsGroup(position: number): boolean {
    if (position >= this.end) return false;
    const { start, how } = this.at(position);
    const parsed = parseHow(how);
    if (parsed === undefined || position % parsed.groupTokens === 0) return false;
    return position > Math.max(start, parsed.budgetTokens);
  }

  /** {@link describe} of the first `tokenCount` tokens from `from` on; undefined where that would split a query group. */
  describeWhole(from: number, tokenCount: number): string | undefined {
    return this.splitsGroup(from + tokenCount) ? undefined : this.describe(from, from + tokenCount);
  }

  /** Copies the spans that end after `from`. */
  since(from: number): Span[] {
    return this.#spans.filter((span) => span.end > from).map((span) => ({ ...span }));
  }

  /** Copies the spans of `[0, to)`. */
  until(to: number): Span[] {
    const spans: Span[] = [];
    for (const { end, how } of this.#spans) {
      spans.push({ end: Math.min(end, to), how });
      if (end >= to) break;
    }
    return spans;
  }

  /** Gives the tokens `[from, to)` of selected spans a nonce; dense ones cannot have missed anything. */
  markApproximate(from: number, to: number, nonce: string): void {
    const pieces: Span[] = [];
    let start = 0;
    for (const { end, how } of this.#spans) {
      for (const piece of cut(start, end, [from, to])) {
        const parsed = piece.start >= from && piece.end <= to ? parseHow(how) : undefined;
        pieces.push({ end: piece.end, how: parsed ? formatHow({ ...parsed, nonce }) : how });
      }
      start = end;
    }
    this.#spans.splice(0, this.#spans.length, ...pieces);
  }

  /**
   * The provenance of tokens `[from, to)` as text, canonical; the edge writes the same (`protocol/block-chain.ts`).
   */
  describe(from: number, to: number): string {
    return describeSpans(this.#spans, from, to);
  }
}

function* cut(start: number, end: number, at: readonly number[]): Generator<{ start: number; end: number }> {
  let from = start;
  for (const point of at) {
    if (point > from && point < end) {
      yield { start: from, end: point };
      from = point;
    }
  }
  if (end > from) yield { start: from, end };
}

/** First rows (relative to `from`) of the query groups of rows `[from, to)`, all computed alike; `groupTokens` divides a block. */
export function groupStarts(from: number, to: number, groupTokens: number): Int32Array {
  if (groupTokens === 1) return Int32Array.from({ length: to - from }, (_, row) => row);
  assert(BLOCK_TOKENS % groupTokens === 0, "a query group lies within a block");
  const starts = [0];
  for (let position = (Math.floor(from / groupTokens) + 1) * groupTokens; position < to; position += groupTokens)
    starts.push(position - from);
  return Int32Array.from(starts);
}
