import { expect, it } from "vitest";
import { quantile } from "../../bench/quantile.ts";

it("counts through the sorted values and never past them", () => {
  const values = [9, 1, 5, 3, 7, 10, 2, 8, 6, 4];
  expect([0, 0.1, 0.5, 0.9, 1].map((share) => quantile(values, share))).toEqual([1, 2, 6, 10, 10]);
  expect(quantile([2, 1], 0.5)).toBe(2);
  expect(quantile([3], 0.9)).toBe(3);
  expect(quantile([], 0.5)).toBeNaN();
  expect(values[0]).toBe(9);
});
