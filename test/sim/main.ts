/**
 * `npm run sim -- --seeds N [--first K] [--jobs J]`: lives of the seeds K to K+N-1; a failing seed prints its one-line replay. Ends after
 * `--failures` of them.
 * `npm run sim -- --tight`, with either: lives of contexts that outgrow the pool, which else are those of one seed in 32.
 * `npm run sim -- --seed K`: one life, with what it saw. `npm run sim -- --mutants`: takes each safeguard out in turn and expects a seed to fail.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { MUTANT_SEEDS_MAX, MUTANTS } from "./mutants.ts";
import { SimFailure, type SimReport } from "./report.ts";
import { simulate } from "./world.ts";

const { values } = parseArgs({
  options: {
    seeds: { type: "string" },
    seed: { type: "string" },
    first: { type: "string", default: "1" },
    jobs: { type: "string", default: "1" },
    failures: { type: "string", default: "5" },
    mutants: { type: "boolean", default: false },
    tight: { type: "boolean", default: false },
  },
});

const how = values.tight ? { tight: true } : {};

if (values.mutants) process.exitCode = await runMutants();
else if (values.seed !== undefined) process.exitCode = await replay(whole(values.seed, "seed", 0));
else {
  const range = { first: whole(values.first, "first", 0), count: whole(values.seeds ?? "100", "seeds", 1) };
  const jobs = whole(values.jobs, "jobs", 1);
  process.exitCode = jobs === 1 ? await runSeeds(range) : await runJobs(range, jobs);
}

function whole(text: string, flag: string, min: number): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= min) return value;
  console.error(`sim: --${flag} must be a whole number from ${min} on, not "${text}"`);
  process.exit(2);
}

async function replay(seed: number): Promise<number> {
  try {
    console.log(await simulate(seed, how));
    return 0;
  } catch (error) {
    console.error(error instanceof SimFailure ? error.message : error);
    return 1;
  }
}

async function runSeeds({ first, count }: { first: number; count: number }): Promise<number> {
  const startMs = performance.now();
  const failuresMax = whole(values.failures, "failures", 1);
  const total: Partial<Record<keyof SimReport, number>> = {};
  let failures = 0;
  let lives = 0;
  for (let seed = first; seed < first + count && failures < failuresMax; seed++) {
    lives += 1;
    try {
      const report = await simulate(seed, how);
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

async function runJobs({ first, count }: { first: number; count: number }, jobs: number): Promise<number> {
  const each = Math.ceil(count / jobs);
  const starts = Array.from({ length: jobs }, (_, job) => first + job * each).filter((start) => start < first + count);
  const codes = await Promise.all(
    starts.map((start) =>
      exitCode(
        child(
          [
            "--first",
            String(start),
            "--seeds",
            String(Math.min(each, first + count - start)),
            ...(values.tight ? ["--tight"] : []),
          ],
          "inherit",
        ),
      ),
    ),
  );
  return codes.some((code) => code !== 0) ? 1 : 0;
}

/** Every mutant must be caught; says by how many seeds. */
async function runMutants(): Promise<number> {
  let survived = 0;
  for (const mutant of MUTANTS) {
    const lives = ["--first", String(mutant.firstSeed ?? 1), ...(mutant.isTight ? ["--tight"] : [])];
    const flags = ["--seeds", String(MUTANT_SEEDS_MAX), "--failures", "1", ...lives];
    const run = child(flags, "pipe", mutant.name);
    let output = "";
    run.stderr?.on("data", (data: Buffer) => {
      output += data.toString();
    });
    const code = await exitCode(run);
    const caught = code === 1 && /seed \d+, round/.test(output);
    if (!caught) survived += 1;
    const first = /^.*\nseed \d+/m.exec(output)?.[0].replace("\n", "; ") ?? "";
    console.log(
      `${caught ? "caught  " : "SURVIVED"} ${mutant.name}: ${mutant.what}${caught ? ` (${first})` : `\n${output}`}`,
    );
  }
  return survived > 0 ? 1 : 0;
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
