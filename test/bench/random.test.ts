import { describe, expect, it } from "vitest";
import { poissonArrivalsMs } from "../../bench/load/workload.ts";
import { drawExponential, drawPareto, drawWeighted, seededRandom } from "../../bench/random.ts";

describe("seeded randomness", () => {
  it("repeats itself by seed and stream, and only then", () => {
    const take = (seed: number, stream: number) => {
      const random = seededRandom(seed, stream);
      return Array.from({ length: 8 }, random);
    };
    expect(take(1, 2)).toEqual(take(1, 2));
    const firsts = [take(0, 0), take(0, 1), take(1, 0), take(1, 1), take(2, 0)].map(([first]) => first);
    expect(new Set(firsts).size).toBe(firsts.length);
  });

  it("is even: 100 cells of 100,000 draws by chi-square, and no correlation between neighbours or streams", () => {
    const random = seededRandom(11);
    const draws = Array.from({ length: 100_000 }, random);
    const cells = new Array<number>(100).fill(0);
    for (const draw of draws) cells[Math.floor(draw * 100)] = (cells[Math.floor(draw * 100)] ?? 0) + 1;
    const chiSquare = cells.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
    // 99 degrees of freedom: between the 0.01 % and the 99.99 % point.
    expect(chiSquare).toBeGreaterThan(56);
    expect(chiSquare).toBeLessThan(159);
    const streams = Array.from({ length: 20_000 }, (_, stream) => seededRandom(11, stream)());
    for (const values of [draws, streams]) {
      const products = values.slice(1).map((value, index) => (value - 0.5) * ((values[index] ?? 0) - 0.5));
      const correlation = (products.reduce((sum, value) => sum + value, 0) / products.length) * 12;
      expect(Math.abs(correlation)).toBeLessThan(4 / Math.sqrt(products.length));
    }
  });

  it("draws exponential, Pareto and weighted values with the right shares", () => {
    const random = seededRandom(5);
    const count = 50_000;
    const share = (draw: () => boolean) => Array.from({ length: count }, draw).filter(Boolean).length / count;
    expect(share(() => drawExponential(random, 10) > 10)).toBeCloseTo(Math.exp(-1), 1.8);
    const pareto = { min: 100, max: 10_000, alpha: 1.2 };
    const above = ((100 / 1000) ** 1.2 - (100 / 10_000) ** 1.2) / (1 - (100 / 10_000) ** 1.2);
    expect(share(() => drawPareto(random, pareto) > 1000)).toBeCloseTo(above, 1.8);
    for (let index = 0; index < 1000; index++) {
      const value = drawPareto(random, pareto);
      expect(value >= 100 && value < 10_000).toBe(true);
    }
    expect(share(() => drawWeighted(random, [70, 25, 5]) === 1)).toBeCloseTo(0.25, 1.8);
    expect(share(() => drawWeighted(random, [1, 0, 0]) === 0)).toBe(1);
    expect(share(() => drawWeighted(random, [0, 0, 3]) === 2)).toBe(1);
  });
});

describe("Poisson arrivals", () => {
  const arrivals = [...poissonArrivalsMs(seededRandom(3), { perS: 20, durationS: 1_000 })];

  it("come at the rate, in order, within the time", () => {
    // 20,000 expected, standard deviation 141.
    expect(Math.abs(arrivals.length - 20_000)).toBeLessThan(4 * 141);
    expect(arrivals.every((atMs, index) => atMs > (arrivals[index - 1] ?? 0))).toBe(true);
    expect(arrivals.at(-1)).toBeLessThan(1_000_000);
  });

  it("scatter as a Poisson process does: counts have variance equal to mean, gaps are exponential", () => {
    const counts = new Array<number>(1_000).fill(0);
    for (const atMs of arrivals) counts[Math.floor(atMs / 1000)] = (counts[Math.floor(atMs / 1000)] ?? 0) + 1;
    const mean = arrivals.length / counts.length;
    const variance = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0) / (counts.length - 1);
    // The ratio's standard deviation over 1,000 windows is sqrt(2 / 999) = 0.045.
    expect(Math.abs(variance / mean - 1)).toBeLessThan(4 * 0.045);
    const gaps = arrivals.map((atMs, index) => atMs - (arrivals[index - 1] ?? 0)).sort((a, b) => a - b);
    const distances = gaps.map((gap, index) => Math.abs(1 - Math.exp(-gap / 50) - (index + 0.5) / gaps.length));
    // Kolmogorov-Smirnov, 0.01 % point.
    expect(Math.max(...distances)).toBeLessThan(2.23 / Math.sqrt(gaps.length));
  });
});
