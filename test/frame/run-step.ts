/** Runs one step as a process group of its own, so that a hang or an interrupt leaves nothing behind. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import type { Step } from "./steps.ts";
import { emptyTally, type Tally } from "./tally.ts";

/** How a step ended. */
export interface StepResult {
  step: Step;
  tally: Tally;
  durationMs: number;
}

/** Where a step runs and what stops it. */
export interface RunStepOptions {
  root: string;
  /** An existing folder for reports; each step leaves none behind. */
  reportFolder: string;
  env: NodeJS.ProcessEnv;
  timeoutMs: number;
  signal: AbortSignal;
  /** Where the step's output goes; a number is a file descriptor. */
  output: "inherit" | "ignore" | number;
}

/** Runs a step to its end. Never throws: whatever goes wrong is a failure in the tally. */
export async function runStep(step: Step, options: RunStepOptions): Promise<StepResult> {
  const startMs = performance.now();
  const reportPath = join(options.reportFolder, `${step.name}.json`);
  const reporter = join(options.root, "test/frame/tally-reporter.ts");
  const [program, ...args] = step.command;
  if (step.kind === "vitest") args.push("--reporter=default", `--reporter=${reporter}`);
  const child = spawn(join(options.root, "node_modules/.bin", program), args, {
    cwd: options.root,
    env: { ...options.env, QUIRE_TEST_REPORT: reportPath },
    stdio: ["ignore", options.output, options.output],
    detached: process.platform !== "win32",
    shell: process.platform === "win32",
  });
  if (step.isPatient && child.pid !== undefined) yieldToOthers(child.pid);
  const outcome = await waitForEnd(child, options);
  const tally = step.kind === "vitest" ? readTally(reportPath) : emptyTally();
  rmSync(reportPath, { force: true });
  if (outcome === "ok") {
    if (step.kind === "check") tally.passed++;
  } else if (tally.failed === 0 || outcome !== "exit 1") {
    tally.failed++;
    tally.failures.push(`${step.title}: ${outcome}`);
  }
  return { step, tally, durationMs: performance.now() - startMs };
}

/**
 * The lowest priority for a process and those that it starts. Where Linux shares processors among sessions first, which
 * each step is one of, a process's own priority counts only within its session: the session gets the same.
 */
function yieldToOthers(pid: number): void {
  const { PRIORITY_LOW } = constants.priority;
  setPriority(pid, PRIORITY_LOW);
  const session = `/proc/${pid}/autogroup`;
  if (!existsSync(session)) return;
  try {
    writeFileSync(session, String(PRIORITY_LOW));
  } catch {
    // Who is not root may change one in a tenth of a second on the whole machine: then the step is merely less patient.
  }
}

/** "ok", or what happened instead. */
async function waitForEnd(child: ChildProcess, { timeoutMs, signal }: RunStepOptions): Promise<string> {
  let killed: string | undefined;
  const kill = (reason: string): void => {
    killed = reason;
    killGroup(child);
  };
  const onAbort = (): void => kill("interrupted");
  const timer = setTimeout(() => kill(`no end after ${Math.round(timeoutMs / 1000)} s, killed`), timeoutMs);
  signal.addEventListener("abort", onAbort);
  try {
    return await new Promise<string>((resolve) => {
      child.once("error", (error) => resolve(`cannot start: ${error.message}`));
      child.once("exit", (code, name) => resolve(killed ?? (code === 0 ? "ok" : `exit ${code ?? name}`)));
    });
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
    killGroup(child);
  }
}

/** Also after a normal end: a test that leaves a process behind must not keep the machine busy. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    if (process.platform === "win32") child.kill("SIGKILL");
    else process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

function readTally(path: string): Tally {
  if (existsSync(path)) return JSON.parse(readFileSync(path, "utf8")) as Tally;
  return { ...emptyTally(), failed: 1, failures: ["vitest wrote no report: it did not come to its end"] };
}
