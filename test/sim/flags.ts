/** The command line of `npm run sim`. */
import { describeFlags, parseInteger, parseSwitched } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";

const SEED_MAX = 2 ** 48;

const count = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

const flags = {
  seeds: count("how many lives, of the seeds from --first on", "100", { min: 1, max: 1e9 }),
  first: count("the first seed", "1", { min: 0, max: SEED_MAX }),
  jobs: count("processes that share them, or the mutants", "1", { min: 1, max: 64 }),
  failures: count("lives that may fail before a run ends", "5", { min: 1, max: 1e9 }),
  seed: {
    help: "one life, with what it saw: the line that a failing seed prints",
    placeholder: "SEED",
    parse: parseInteger({ min: 0, max: SEED_MAX }),
  },
} as const;

const switches = {
  tight: "lives of contexts that outgrow the pool, which else are those of one seed in 32",
  mutants: "takes each safeguard out in turn, and expects a seed to fail",
  stack: "lives of the whole stack instead: real processes, real time, and all of it is killed",
} as const;

/** What is to be lived. */
export interface SimCommand {
  seeds: number;
  first: number;
  jobs: number;
  failures: number;
  seed: number | undefined;
  tight: boolean;
  mutants: boolean;
  stack: boolean;
}

/** Reads the arguments; undefined where help is asked for. @throws {UsageError} one line. */
export function parseSimCommand(args: readonly string[]): SimCommand | undefined {
  if (args.includes("--help")) return undefined;
  const { values, given } = parseSwitched({ flags, switches }, args, {});
  const chosen = { tight: given.has("tight"), mutants: given.has("mutants"), stack: given.has("stack") };
  if (chosen.stack && (chosen.tight || chosen.mutants || values.jobs > 1))
    throw new UsageError("--stack goes with --seeds, --first, --seed and --failures");
  return { ...values, ...chosen };
}

/** What `--help` prints. */
export const SIM_HELP = `Usage: npm run sim -- [flags]

Lives the lives of seeded worlds: the real engines over simulated stores, clocks and deaths, against a plain transcript (docs/reliability.md).

${describeFlags(flags, switches)}
`;
