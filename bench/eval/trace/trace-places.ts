/** Where a trace is measured: its rows, by how much is before them. */

/** Rows whose contexts are nearly the same: their figures are one. */
export interface TracePlace {
  /** Position of the first row. */
  contextTokens: number;
  /** Ascending. */
  positions: number[];
}

/** A place's rows lie within this share of its first position from it; but within so many tokens in any case. */
const SPAN_SHARE = 1 / 4;
const SPAN_TOKENS_MIN = 64;

/** Rows, ascending, cut into places: each begins with the first row that is too far behind the beginning of the one before. */
export function placesOf(positions: readonly number[]): TracePlace[] {
  const places: TracePlace[] = [];
  for (const position of positions) {
    const place = places.at(-1);
    const span = Math.max(SPAN_TOKENS_MIN, (place?.contextTokens ?? 0) * SPAN_SHARE);
    if (place !== undefined && position < place.contextTokens + span) place.positions.push(position);
    else places.push({ contextTokens: position, positions: [position] });
  }
  return places;
}
