/**
 * Pacing to reading speed, in the manner of Andes (Liu et al., 2024): while a prompt waits, a stream whose reader has plenty still to read leaves the
 * step to it. Its reader has this much text in hand, and goes on to get his tokens as fast as he reads.
 */
import type { Sequence } from "../sequence/sequence.ts";

/** What a reader has in hand before his stream gives way. */
const LEAD_MS = 2_000;

/** Whether a sequence is so far ahead of somebody who reads `paceTokensPerS` from its first token on; without a pace nobody is. */
export function isAhead(sequence: Sequence, nowMs: number, paceTokensPerS: number | undefined): boolean {
  if (paceTokensPerS === undefined) return false;
  const { queuedAtMs, usage, generatedCount } = sequence;
  const readingMs = nowMs - (queuedAtMs + usage.firstTokenMs);
  return (1000 * generatedCount) / paceTokensPerS - readingMs > LEAD_MS;
}
