/** Seeded randomness: the same seed makes the same workload. */

/** Uniform in [0, 1). */
export type Random = () => number;

/**
 * A generator of its own for each `stream` of a seed (SplitMix32), so that what one session draws does not depend on what
 * another one drew before. Both are unsigned 32 bit.
 */
export function seededRandom(seed: number, stream = 0): Random {
  let state = mixedSeed(seed, stream);
  return () => {
    state = (state + 0x9e37_79b9) | 0;
    return mix(state) / 2 ** 32;
  };
}

/** A seed of its own for each `stream` of a seed; both unsigned 32 bit. */
export function mixedSeed(seed: number, stream: number): number {
  return mix(mix(seed) ^ Math.imul(stream, 0x9e37_79b9));
}

function mix(value: number): number {
  let bits = value | 0;
  bits = Math.imul(bits ^ (bits >>> 16), 0x21f0_aaad);
  bits = Math.imul(bits ^ (bits >>> 15), 0x735a_2d97);
  return (bits ^ (bits >>> 15)) >>> 0;
}

/** A whole number from `min` to `max`, both included. */
export function drawInteger(random: Random, { min, max }: { min: number; max: number }): number {
  return min + Math.floor(random() * (max - min + 1));
}

/** One of `items`, which are not empty. */
export function drawOne<T>(random: Random, items: readonly T[]): T {
  return items[Math.floor(random() * items.length)] as T;
}

/** The items in an order drawn with `random`; the list stays as it is (Fisher and Yates). */
export function shuffled<T>(random: Random, items: readonly T[]): T[] {
  const order = [...items];
  for (let end = order.length - 1; end > 0; end--) {
    const other = drawInteger(random, { min: 0, max: end });
    [order[end], order[other]] = [order[other] as T, order[end] as T];
  }
  return order;
}

/** An exponential value of the given mean: waits between events of a Poisson process. */
export function drawExponential(random: Random, mean: number): number {
  return -Math.log1p(-random()) * mean;
}

/** A Pareto value cut to [min, max): many small ones, few large ones; a smaller `alpha` has a heavier tail. */
export function drawPareto(random: Random, { min, max, alpha }: { min: number; max: number; alpha: number }): number {
  const rest = 1 - (min / max) ** alpha;
  return min / (1 - random() * rest) ** (1 / alpha);
}

/** Index of a weight, drawn in proportion; weights are not negative and not all 0. */
export function drawWeighted(random: Random, weights: readonly number[]): number {
  const target = random() * weights.reduce((sum, weight) => sum + weight, 0);
  let passed = 0;
  for (const [index, weight] of weights.entries()) {
    passed += weight;
    if (target < passed) return index;
  }
  return weights.findLastIndex((weight) => weight > 0);
}
