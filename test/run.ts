/**
 * What `npm test` runs: every step, all of them also after a failure, then a summary.
 * The very last line is `N passed, N failed, N skipped`; the exit code is 1 when anything failed.
 *
 *   npm test                     everything, in under 15 minutes
 *   npm run test:full            with the long tests
 *   npm test -- lint node        only these steps
 */
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runAll, seconds } from "./frame/run-all.ts";
import type { StepResult } from "./frame/run-step.ts";
import { allSteps, runMsMax, type Step } from "./frame/steps.ts";
import { addTallies, exercisedLines, type Tally, tallyLine } from "./frame/tally.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

/** What `npm test` was asked to run; ends the process for a step or flag that does not exist. */
function chosenSteps(): { steps: Step[]; full: boolean } {
  const flags = process.argv.slice(2).filter((argument) => argument.startsWith("-"));
  const names = process.argv.slice(2).filter((argument) => !argument.startsWith("-"));
  const full = flags.includes("--full");
  const steps = allSteps({ full });
  const known = [...steps.map((step) => step.name), "--full"];
  const unknown = [...flags, ...names].find((argument) => !known.includes(argument));
  if (unknown !== undefined) {
    console.error(`npm test: unknown argument "${unknown}"; there are: ${known.join(", ")}`);
    process.exit(1);
  }
  return { steps: steps.filter((step) => names.length === 0 || names.includes(step.name)), full };
}

function environment(full: boolean): NodeJS.ProcessEnv {
  return {
    ...process.env,
    PATH: `${join(root, "node_modules/.bin")}${delimiter}${process.env.PATH ?? ""}`,
    CI: "1",
    // Tests expect the CPU device's bits, also on a machine with a GPU.
    QUIRE_DEVICE: process.env.QUIRE_DEVICE ?? "wasm",
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_SEND_ERROR_REPORTS: "false",
    ...(full ? { QUIRE_TEST_FULL: "1" } : {}),
  };
}

function printSummary(results: readonly StepResult[], sum: Tally): void {
  console.log("\n=== Summary");
  for (const { step, tally, durationMs } of results) {
    const mark = tally.failed === 0 ? "ok  " : "FAIL";
    console.log(`${mark} ${step.title.padEnd(24)} ${seconds(durationMs).padStart(8)}  ${tallyLine(tally)}`);
  }
  printList("Exercised", exercisedLines(sum));
  printList(
    "Skipped",
    sum.skipped.map(({ name, reason }) => (reason === undefined ? name : `${name} (${reason})`)),
  );
  printList("Failed", sum.failures);
  console.log("");
  console.log(tallyLine(sum));
}

function printList(title: string, lines: readonly string[]): void {
  if (lines.length === 0) return;
  console.log(`\n${title}:`);
  for (const line of lines) console.log(`  ${line}`);
}

const { steps, full } = chosenSteps();
const interrupt = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(name, () => interrupt.abort());
const results = await runAll(steps, {
  root,
  env: environment(full),
  runMs: runMsMax({ full }),
  signal: interrupt.signal,
  write: (text) => void process.stdout.write(text),
});
const sum = addTallies(results.map((result) => result.tally));
if (interrupt.signal.aborted) {
  sum.failed++;
  sum.failures.push("interrupted before the end");
}
printSummary(results, sum);
process.exitCode = sum.failed === 0 ? 0 : 1;
