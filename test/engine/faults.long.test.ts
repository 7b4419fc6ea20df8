/** Many more seeds of `faults.test.ts`, for `npm run test:full`. */
import { expect, it } from "vitest";
import { faultRun } from "./fault-run.ts";

const FIRST = 1000;
const COUNT = 40;

it.each(Array.from({ length: COUNT }, (_, index) => FIRST + index))("seed %i", { timeout: 60_000 }, async (seed) => {
  const report = await faultRun(seed, 16);
  expect(report.turns).toBeGreaterThan(16);
  expect(report.faults).toBeGreaterThan(0);
});
