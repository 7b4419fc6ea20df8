import { describe, expect, it } from "vitest";
import { UsageError } from "../../cli/usage-error.ts";
import { parseSimCommand, SIM_HELP } from "./flags.ts";

describe("the command line of the simulation", () => {
  it("is read with its defaults", () => {
    const usual = { seeds: 100, first: 1, jobs: 1, failures: 5, seed: undefined, tight: false };
    const whole = { ...usual, mutants: false, stack: false };
    expect(parseSimCommand([])).toEqual(whole);
    const args = ["--seeds", "1000", "--jobs=2", "--first", "7", "--failures", "1", "--tight"];
    expect(parseSimCommand(args)).toEqual({ ...whole, seeds: 1000, jobs: 2, first: 7, failures: 1, tight: true });
    expect(parseSimCommand(["--mutants", "--seed", "0"])).toEqual({ ...whole, seed: 0, mutants: true });
  });

  it("lives the whole stack on its own, by the same seeds", () => {
    expect(parseSimCommand(["--stack", "--seed", "3"])).toMatchObject({ stack: true, seed: 3 });
  });

  it("is explained where that is asked for, whatever else there is", () => {
    expect(parseSimCommand(["--seeds", "x", "--help"])).toBeUndefined();
    for (const flag of ["seeds", "first", "jobs", "failures", "seed", "tight", "mutants", "stack"])
      expect(SIM_HELP).toContain(`\n  --${flag} `);
  });

  it.each([
    [["--sedes", "5"], "unknown flag --sedes (did you mean --seeds?); --help lists them"],
    [["--seeds"], "--seeds needs a value"],
    [["--seeds", "0"], '--seeds: must be a whole number from 1 to 1000000000, not "0"'],
    [["--jobs", "1.5"], '--jobs: must be a whole number from 1 to 64, not "1.5"'],
    [["--stack", "--tight"], "--stack goes with --seeds, --first, --seed and --failures"],
    [["42"], 'unexpected argument "42"'],
  ])("refuses %j with one clear line", (args, message) => {
    expect(() => parseSimCommand(args)).toThrow(new UsageError(message));
  });
});
