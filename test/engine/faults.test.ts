/** The engine over a store that errs, delays, tears, flips, truncates and forgets: replies stay those of an undisturbed run. */
import { describe, expect, it } from "vitest";
import { type FaultReport, faultRun, HEAVY } from "./fault-run.ts";

const replayed = process.env.QUIRE_FAULT_SEED;
const SEEDS = replayed === undefined ? [1, 2, 3, 4] : [Number(replayed)];

describe("sessions over a faulty store", () => {
  const reports: FaultReport[] = [];
  it.each(SEEDS)("seed %i", { timeout: 60_000 }, async (seed) => {
    reports.push(await faultRun(seed, 12));
  });

  it.runIf(replayed === undefined)("these runs reused, lost, aborted and recomputed", () => {
    const sum = (key: keyof FaultReport) => reports.reduce((total, report) => total + report[key], 0);
    for (const key of ["turns", "aborted", "kills", "storeTokens", "recomputedTokens", "faults"] as const)
      expect(sum(key), key).toBeGreaterThan(0);
  });

  it("all of it holds without faults, too", async () => {
    const none = Object.fromEntries(Object.keys(HEAVY).map((fault) => [fault, 0])) as unknown as typeof HEAVY;
    const report = await faultRun(77, 8, none);
    expect(report.faults).toBe(0);
    expect(report.turns).toBeGreaterThan(5);
  });
});
