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
  /** Steps that follow each other and name lanes run side by side, those of one lane in order. */
  lane?: string;
  /** Gets what processors the others leave it: for what computes and looks at no clock. */
  isPatient?: boolean;
}

const minuteMs = 60_000;

function vitest(name: string, title: string, timeoutMs: number, args: readonly string[]): Step {
  return { name, title, kind: "vitest", timeoutMs, command: ["vitest", "run", "--allowOnly=false", ...args] };
}

function check(name: string, title: string, command: Step["command"], timeoutMs = 3 * minuteMs): Step {
  return { name, title, kind: "check", timeoutMs, command };
}

const SIM = ["node", "test/sim/main.ts"] as const;

/**
 * All steps in order. `full` gives long tests (`*.long.test.ts`) the time they need. What drives processes waits most of
 * its time, for heartbeats and deadlines; the simulation, which knows no real time, computes meanwhile.
 */
export function allSteps({ full }: { full: boolean }): Step[] {
  const stretch = full ? 6 : 1;
  return [
    check("lint", "Format and lint", ["biome", "check", "--error-on-warnings", "."]),
    check("types", "Types: Node", ["tsc", "-p", "tsconfig.json"]),
    check("types-workers", "Types: Worker", ["tsc", "-p", "workers/tsconfig.json"]),
    vitest("style", "Import rule and style", 2 * minuteMs, ["test/style"]),
    vitest("node", "Unit and conformance", 9 * minuteMs * stretch, ["--exclude", "test/style/**"]),
    {
      ...vitest("e2e", "End to end", 9 * minuteMs * stretch, ["-c", "test/e2e/vitest.config.ts"]),
      lane: "e2e",
    },
    {
      ...vitest("workers", "Worker in workerd", 5 * minuteMs * stretch, ["-c", "test/workers/vitest.config.ts"]),
      lane: "workers",
    },
    {
      ...check(
        "sim",
        full ? "Simulation, 10,000 seeds" : "Simulation, 1,000 seeds",
        [...SIM, "--seeds", full ? "10000" : "1000", "--jobs", "2"],
        9 * minuteMs * stretch,
      ),
      ...{ lane: "sim", isPatient: true },
    },
    {
      ...check(
        "sim-mutants",
        "Simulation without its safeguards",
        [...SIM, "--mutants", "--jobs", "2"],
        9 * minuteMs * stretch,
      ),
      ...{ lane: "sim", isPatient: true },
    },
  ];
}

/** The whole run ends within this time, whatever hangs. */
export function runMsMax({ full }: { full: boolean }): number {
  return (full ? 120 : 15) * minuteMs;
}
