/** The steps of `npm test`, cheap ones first. */

/** One command of the run; `vitest` steps write a tally, others count as one check that passes or fails. */
export interface Step {
  /** What to type after `npm test --` to run this step alone. */
  name: string;
  title: string;
  command: readonly [string, ...string[]];
  kind: "check" | "vitest";
  /** The step is killed, with all its children, after this long. */
  timeoutMs: number;
}

const minuteMs = 60_000;

function vitest(name: string, title: string, timeoutMs: number, args: readonly string[]): Step {
  return { name, title, kind: "vitest", timeoutMs, command: ["vitest", "run", "--allowOnly=false", ...args] };
}

function check(name: string, title: string, command: Step["command"], timeoutMs = 3 * minuteMs): Step {
  return { name, title, kind: "check", timeoutMs, command };
}

const SIM = ["node", "test/sim/main.ts"] as const;

/** All steps in order. `full` gives long tests (`*.long.test.ts`) the time they need. */
export function allSteps({ full }: { full: boolean }): Step[] {
  const stretch = full ? 6 : 1;
  return [
    check("lint", "Format and lint", ["biome", "check", "--error-on-warnings", "."]),
    check("types", "Types: Node", ["tsc", "-p", "tsconfig.json"]),
    check("types-workers", "Types: Worker", ["tsc", "-p", "workers/tsconfig.json"]),
    vitest("style", "Import rule and style", 2 * minuteMs, ["test/style"]),
    vitest("node", "Unit and conformance", 9 * minuteMs * stretch, ["--exclude", "test/style/**"]),
    check(
      "sim",
      "Simulation, 1,000 seeds",
      [...SIM, "--seeds", full ? "10000" : "1000", "--jobs", "2"],
      5 * minuteMs * stretch,
    ),
    check("sim-mutants", "Simulation without its safeguards", [...SIM, "--mutants"], 5 * minuteMs),
    vitest("workers", "Worker in workerd", 5 * minuteMs * stretch, ["-c", "test/workers/vitest.config.ts"]),
    vitest("e2e", "End to end", 9 * minuteMs * stretch, ["-c", "test/e2e/vitest.config.ts"]),
  ];
}

/** The whole run ends within this time, whatever hangs. */
export function runMsMax({ full }: { full: boolean }): number {
  return (full ? 120 : 15) * minuteMs;
}
