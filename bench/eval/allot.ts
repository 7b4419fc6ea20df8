/** Divides a limit of bytes among KV heads, so that what streaming damages is saved where a byte saves most (as HeadKV and Ada-KV do by attention). */

/** What a head damages and reads if it may take a share of a budget. */
export interface HeadOption {
  /** As in `head-budgets`. */
  share: number;
  damage: number;
  /** In any unit; the same for all heads. */
  bytes: number;
}

/**
 * A share for each head. All begin with their first option; then, again and again, the head whose next worthwhile option saves most damage per byte gets
 * it, while all fit `bytesMax` together. Worthwhile are the options on the lower convex hull of damage over bytes; ties go to the first head.
 */
export function allotShares(heads: readonly (readonly HeadOption[])[], bytesMax: number): number[] {
  const hulls = heads.map(lowerHull);
  const chosen = hulls.map(() => 0);
  let bytes = hulls.reduce((sum, [first]) => sum + (first?.bytes ?? 0), 0);
  for (;;) {
    const steps = hulls.flatMap((hull, head) => {
      const [now, next] = [hull[chosen[head] as number], hull[(chosen[head] as number) + 1]];
      if (now === undefined || next === undefined || bytes + next.bytes - now.bytes > bytesMax) return [];
      return [{ head, bytes: next.bytes - now.bytes, gain: gainPerByte(now, next) }];
    });
    const [first, ...others] = steps;
    if (first === undefined) return hulls.map((hull, head) => hull[chosen[head] as number]?.share ?? 0);
    const best = others.reduce((top, step) => (step.gain > top.gain ? step : top), first);
    chosen[best.head] = (chosen[best.head] as number) + 1;
    bytes += best.bytes;
  }
}

/** Options of ascending bytes and falling damage, each of which saves less per byte than the one before. */
function lowerHull(options: readonly HeadOption[]): HeadOption[] {
  const hull: HeadOption[] = [];
  for (const option of [...options].sort((a, b) => a.bytes - b.bytes || a.damage - b.damage)) {
    const last = hull.at(-1);
    if (last !== undefined && (option.damage >= last.damage || option.bytes === last.bytes)) continue;
    while (hull.length > 1 && gainPerByte(at(hull, -2), at(hull, -1)) <= gainPerByte(at(hull, -1), option)) hull.pop();
    hull.push(option);
  }
  return hull;
}

function gainPerByte(from: HeadOption, to: HeadOption): number {
  return (from.damage - to.damage) / (to.bytes - from.bytes);
}

function at(hull: readonly HeadOption[], index: number): HeadOption {
  return hull.at(index) as HeadOption;
}
