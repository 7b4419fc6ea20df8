/** Provenance spans of a log (protocol/generate.ts), cut and joined as the log is. */
import type { Span } from "../../protocol/generate.ts";

/** What a token is called whose provenance nobody told: computing it again densely is always right. */
const UNKNOWN = "dense";

/** The spans of the first `end` tokens. */
export function cutSpans(spans: readonly Span[], end: number): Span[] {
  const kept: Span[] = [];
  let start = 0;
  for (const span of spans) {
    if (start >= end) break;
    kept.push({ end: Math.min(span.end, end), how: span.how });
    start = span.end;
  }
  return kept;
}

/**
 * `spans` followed by those of `next` that lie behind them, covering exactly `[0, end)`. Equal neighbours become one where each token was computed by
 * itself; where tokens chose together (`@16`) they stay apart, because those in front of a border knew nothing of those behind it.
 */
export function joinSpans(spans: readonly Span[], next: readonly Span[], end: number): Span[] {
  const joined: Span[] = [];
  let covered = 0;
  for (const span of [...spans, ...next]) {
    const spanEnd = Math.min(span.end, end);
    if (spanEnd <= covered) continue;
    append(joined, spanEnd, span.how);
    covered = spanEnd;
  }
  // The last token was sampled and never ran, so an engine may leave it out: it will be computed as its neighbours were.
  if (covered < end) append(joined, end, next.length > 0 ? (next.at(-1)?.how ?? UNKNOWN) : UNKNOWN);
  return joined;
}

/** Whether a token's KV depends on no token behind it. */
function isSingly(how: string): boolean {
  return how === UNKNOWN || /@1(?!\d)/.test(how);
}

function append(spans: Span[], end: number, how: string): void {
  const last = spans.at(-1);
  if (last?.how === how && isSingly(how)) last.end = end;
  else spans.push({ end, how });
}
