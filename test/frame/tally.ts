/** What a run of tests amounted to; tallies of several runs add up. */

/** Counts of one run and the lists behind them. */
export interface Tally {
  passed: number;
  failed: number;
  /** Full name and, where the test gave one beside its name, the reason. */
  skipped: { name: string; reason?: string }[];
  /** Names of what failed: tests, and files or hooks that broke outside a test. */
  failures: string[];
  /** `kind: name` to how many passed tests exercised it. */
  exercised: Record<string, number>;
}

/** A tally of nothing. */
export function emptyTally(): Tally {
  return { passed: 0, failed: 0, skipped: [], failures: [], exercised: {} };
}

/** The sum of tallies, as a new object. */
export function addTallies(tallies: readonly Tally[]): Tally {
  const sum = emptyTally();
  for (const tally of tallies) {
    sum.passed += tally.passed;
    sum.failed += tally.failed;
    sum.skipped.push(...tally.skipped);
    sum.failures.push(...tally.failures);
    for (const [name, count] of Object.entries(tally.exercised)) {
      sum.exercised[name] = (sum.exercised[name] ?? 0) + count;
    }
  }
  return sum;
}

/** The last line of `npm test`. */
export function tallyLine(tally: Tally): string {
  return `${tally.passed} passed, ${tally.failed} failed, ${tally.skipped.length} skipped`;
}

/** Lines such as `device: wasm (212 tests)`, ordered by name. */
export function exercisedLines(tally: Tally): string[] {
  return Object.entries(tally.exercised)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, count]) => `${name} (${count} ${count === 1 ? "test" : "tests"})`);
}
