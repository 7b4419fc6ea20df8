/** `npm run sim`: simulated lives by the command line (flags.ts); a failing seed prints its one-line replay. */
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { foldHelp } from "../../cli/fold-help.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { parseSimCommand, SIM_HELP, type SimCommand } from "./flags.ts";
import { MUTANT_SEEDS_MAX, MUTANTS, type Mutant } from "./mutants.ts";
import { SimFailure, type SimReport } from "./report.ts";
import { simulate } from "./world.ts";

try {
  const command = parseSimCommand(process.argv.slice(2));
  if (command === undefined) process.stdout.write(foldHelp(SIM_HELP));
  else process.exitCode = await run(command);
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  console.error(`sim: ${error.message}`);
  process.exitCode = 2;
}

function run(command: SimCommand): Promise<number> {
  const { mutants, seed, jobs, stack } = command;
  if (stack) return runStack(command);
  if (mutants) return runMutants(jobs);
  if (seed !== undefined) return replay(seed, command);
  return jobs === 1 ? runSeeds(command) : runJobs(command);
}

/** Loaded only here: it brings the edge and the CPU device with it. */
async function runStack({ seed, seeds, first, failures }: SimCommand): Promise<number> {
  const { runLives } = await import("../e2e/lives/run.ts");
  return runLives(seed === undefined ? { seeds, first, failures } : { seeds: 1, first: seed, failures });
}

async function replay(seed: number, { tight }: SimCommand): Promise<number> {
  try {
    console.log(await simulate(seed, tight ? { tight } : {}));
    return 0;
  } catch (error) {
    console.error(error instanceof SimFailure ? error.message : error);
    return 1;
  }
}

async function runSeeds({ first, seeds, failures: failuresMax, tight }: SimCommand): Promise<number> {
  const startMs = performance.now();
  const total: Partial<Record<keyof SimReport, number>> = {};
  let failures = 0;
  let lives = 0;
  for (let seed = first; seed < first + seeds && failures < failuresMax; seed++) {
    lives += 1;
    try {
      const report = await simulate(seed, tight ? { tight } : {});
      for (const key of Object.keys(report) as (keyof SimReport)[]) total[key] = (total[key] ?? 0) + report[key];
    } catch (error) {
      failures += 1;
      console.error(error instanceof SimFailure ? error.message : error);
    }
  }
  const seconds = (performance.now() - startMs) / 1000;
  console.log(`${lives} seeds from ${first}: ${failures} failed; ${(lives / seconds).toFixed(1)} seeds/s`);
  console.log(
    Object.entries(total)
      .map(([key, value]) => `${key} ${Math.round(value)}`)
      .join(", "),
  );
  return failures > 0 ? 1 : 0;
}

async function runJobs({ first, seeds, jobs, failures, tight }: SimCommand): Promise<number> {
  const each = Math.ceil(seeds / jobs);
  const starts = Array.from({ length: jobs }, (_, job) => first + job * each).filter((start) => start < first + seeds);
  const flagsOf = (start: number) => [
    ...["--first", String(start), "--seeds", String(Math.min(each, first + seeds - start))],
    ...["--failures", String(failures), ...(tight ? ["--tight"] : [])],
  ];
  const codes = await Promise.all(starts.map((start) => exitCode(child(flagsOf(start), "inherit"))));
  return codes.some((code) => code !== 0) ? 1 : 0;
}

/** Every mutant must be caught, so many of them tried at once; says by which seed, as each is done. */
async function runMutants(jobs: number): Promise<number> {
  const left = [...MUTANTS];
  let survived = 0;
  const tryNext = async (): Promise<void> => {
    for (let mutant = left.shift(); mutant !== undefined; mutant = left.shift()) {
      if (!(await isCaught(mutant))) survived += 1;
    }
  };
  await Promise.all(Array.from({ length: jobs }, tryNext));
  return survived > 0 ? 1 : 0;
}

async function isCaught(mutant: Mutant): Promise<boolean> {
  const lives = ["--first", String(mutant.firstSeed ?? 1), ...(mutant.isTight ? ["--tight"] : [])];
  const flags = ["--seeds", String(MUTANT_SEEDS_MAX), "--failures", "1", ...lives];
  const run = child(flags, "pipe", mutant.name);
  let output = "";
  run.stderr?.on("data", (data: Buffer) => {
    output += data.toString();
  });
  const code = await exitCode(run);
  const caught = code === 1 && /seed \d+, round/.test(output);
  const first = /^.*\nseed \d+/m.exec(output)?.[0].replace("\n", "; ") ?? "";
  console.log(
    `${caught ? "caught  " : "SURVIVED"} ${mutant.name}: ${mutant.what}${caught ? ` (${first})` : `\n${output}`}`,
  );
  return caught;
}

function child(flags: string[], stdio: "inherit" | "pipe", mutant?: string): ChildProcess {
  const hook = mutant === undefined ? [] : ["--import", new URL("./mutate.ts", import.meta.url).href];
  return spawn(process.execPath, [...hook, fileURLToPath(import.meta.url), ...flags], {
    stdio,
    env: { ...process.env, ...(mutant === undefined ? {} : { QUIRE_SIM_MUTANT: mutant }) },
  });
}

function exitCode(run: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => run.once("close", resolve));
}
