/** What somebody may have meant who typed a word that is none. */

/**
 * The name that takes the fewest letters typed, left out, changed or exchanged with their neighbour to become `word`; undefined where that is more
 * than a third of it. Upper case, `_` and `-` do not count.
 */
export function nearestName(word: string, names: readonly string[]): string | undefined {
  const plain = (text: string) => text.toLowerCase().replace(/[-_]/g, "");
  const wanted = plain(word);
  let nearest: string | undefined;
  let fewest = Math.max(1, Math.floor(wanted.length / 3));
  for (const name of names) {
    const changes = changeCount(wanted, plain(name));
    if (changes > fewest || (nearest !== undefined && changes === fewest)) continue;
    nearest = name;
    fewest = changes;
  }
  return nearest;
}

/** ` (did you mean --port?)`, or nothing. */
export function didYouMean(word: string, names: readonly string[], prefix = ""): string {
  const nearest = nearestName(word, names);
  return nearest === undefined ? "" : ` (did you mean ${prefix}${nearest}?)`;
}

/** Optimal string alignment. */
function changeCount(from: string, to: string): number {
  let [beforeLast, last]: number[][] = [[], Array.from({ length: to.length + 1 }, (_, column) => column)];
  for (let row = 1; row <= from.length; row++) {
    const costs = [row];
    for (let column = 1; column <= to.length; column++) {
      const [letter, wanted] = [from[row - 1], to[column - 1]];
      const changed = (last?.[column - 1] ?? 0) + (letter === wanted ? 0 : 1);
      const added = Math.min(costs[column - 1] ?? 0, last?.[column] ?? 0) + 1;
      const isExchange = row > 1 && column > 1 && letter === to[column - 2] && from[row - 2] === wanted;
      const exchanged = isExchange ? (beforeLast?.[column - 2] ?? 0) + 1 : Number.POSITIVE_INFINITY;
      costs.push(Math.min(changed, added, exchanged));
    }
    [beforeLast, last] = [last, costs];
  }
  return last?.at(-1) ?? 0;
}
