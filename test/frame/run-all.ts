/** Runs steps in order, those of several lanes side by side, and shows what each says in one piece. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RunStepOptions, runStep, type StepResult } from "./run-step.ts";
import type { Step } from "./steps.ts";
import { tallyLine } from "./tally.ts";

/** Where steps run, until when, and who reads of it. */
export interface RunAllOptions extends Pick<RunStepOptions, "root" | "env" | "signal"> {
  /** All of it ends within this time. */
  runMs: number;
  write(text: string): void;
}

/**
 * Runs every step, also after a failure; those that have not begun when `signal` aborts are left out. A step alone has
 * this process's output; what steps say that run side by side is written when each is over. Results are in the order of
 * `steps`.
 */
export async function runAll(steps: readonly Step[], options: RunAllOptions): Promise<StepResult[]> {
  const reportFolder = mkdtempSync(join(tmpdir(), "quire-test-"));
  const run: Run = { ...options, reportFolder, endMs: performance.now() + options.runMs, results: [] };
  try {
    for (const lanes of lanesOf(steps)) {
      const [only, ...others] = lanes;
      if (only?.length === 1 && others.length === 0) await runAlone(only[0]!, run);
      else await runSideBySide(lanes, run);
    }
  } finally {
    rmSync(reportFolder, { recursive: true, force: true });
  }
  return run.results.sort((a, b) => steps.indexOf(a.step) - steps.indexOf(b.step));
}

interface Run extends RunAllOptions {
  reportFolder: string;
  endMs: number;
  results: StepResult[];
}

/** What runs at once, one after the other: neighbours that name lanes together, every other step by itself. */
export function lanesOf(steps: readonly Step[]): Step[][][] {
  const groups: Map<string | undefined, Step[]>[] = [];
  for (const step of steps) {
    const last = groups.at(-1);
    if (last === undefined || step.lane === undefined || last.has(undefined)) {
      groups.push(new Map([[step.lane, [step]]]));
    } else {
      last.set(step.lane, [...(last.get(step.lane) ?? []), step]);
    }
  }
  return groups.map((lanes) => [...lanes.values()]);
}

async function runAlone(step: Step, run: Run): Promise<void> {
  if (run.signal.aborted) return;
  run.write(`\n=== ${nameOf(step)}\n`);
  run.write(ending(await runOne(step, run, "inherit")));
}

async function runSideBySide(lanes: readonly Step[][], run: Run): Promise<void> {
  if (run.signal.aborted) return;
  run.write(`\n=== Side by side: ${lanes.map((lane) => lane.map(({ title }) => title).join(", then ")).join("; ")}\n`);
  await Promise.all(
    lanes.map(async (lane) => {
      for (const step of lane) {
        if (run.signal.aborted) return;
        const path = join(run.reportFolder, `${step.name}.log`);
        const output = openSync(path, "w");
        const result = await runOne(step, run, output).finally(() => closeSync(output));
        run.write(`\n=== ${nameOf(step)}\n${readFileSync(path, "utf8")}${ending(result)}`);
      }
    }),
  );
}

async function runOne(step: Step, run: Run, output: RunStepOptions["output"]): Promise<StepResult> {
  const timeoutMs = Math.max(1, Math.min(step.timeoutMs, run.endMs - performance.now()));
  const { root, env, signal, reportFolder } = run;
  const result = await runStep(step, { root, env, signal, reportFolder, timeoutMs, output });
  run.results.push(result);
  return result;
}

function nameOf({ title, command }: Step): string {
  return `${title} (${command.join(" ")})`;
}

function ending({ step, tally, durationMs }: StepResult): string {
  return `=== ${step.title}: ${tallyLine(tally)} in ${seconds(durationMs)}\n`;
}

/** A duration as the run prints it. */
export function seconds(durationMs: number): string {
  return `${(durationMs / 1000).toFixed(1)} s`;
}
