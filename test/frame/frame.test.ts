import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { repositoryRoot } from "../style/source-tree.ts";
import { LONGEST_FIRST, longestFirst } from "./longest-first.ts";
import { lanesOf, runAll } from "./run-all.ts";
import { runStep } from "./run-step.ts";
import { allSteps, type Step } from "./steps.ts";
import { addTallies, emptyTally, exercisedLines, type Tally, tallyLine } from "./tally.ts";

const fixtureArgs = ["run", "-c", "test/frame/fixtures/vitest.config.ts"];

async function inTempFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "quire-frame-"));
  try {
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function run(step: Step, timeoutMs = 60_000, signal = new AbortController().signal) {
  return inTempFolder((reportFolder) =>
    runStep(step, { root: repositoryRoot, reportFolder, env: process.env, timeoutMs, signal, output: "ignore" }),
  );
}

const checkOf = (command: Step["command"]): Step => ({ name: "x", title: "X", kind: "check", timeoutMs: 1, command });

describe("the tally", () => {
  it("counts every outcome of a real vitest run: a file that does not load is a failure, not a silence", async () => {
    const step: Step = { name: "x", title: "X", kind: "vitest", timeoutMs: 1, command: ["vitest", ...fixtureArgs] };
    const { tally } = await run(step);
    expect(tally).toEqual({
      passed: 1,
      failed: 2,
      skipped: [
        { name: "mixed.fixture.ts > mixed > needs ../shared/data, which is not here" },
        { name: "mixed.fixture.ts > mixed > skips itself", reason: "no abacus found" },
        { name: "mixed.fixture.ts > mixed > later" },
      ],
      failures: expect.arrayContaining([
        "broken.fixture.ts (outside of its tests)",
        "mixed.fixture.ts > mixed > fails",
      ]) as string[],
      exercised: { "device: abacus": 1 },
    } satisfies Tally);
  });

  it("agrees with vitest's own JSON report on the same files", () =>
    inTempFolder((folder) => {
      const path = join(folder, "report.json");
      const args = [...fixtureArgs, "--reporter=json", `--outputFile=${path}`];
      spawnSync(join(repositoryRoot, "node_modules/.bin/vitest"), args, { cwd: repositoryRoot });
      const report = JSON.parse(readFileSync(path, "utf8")) as Record<string, number>;
      expect([report.numPassedTests, report.numFailedTests]).toEqual([1, 1]);
      expect((report.numPendingTests ?? 0) + (report.numTodoTests ?? 0)).toBe(3);
      return Promise.resolve();
    }));

  it("adds up and prints", () => {
    const one: Tally = { ...emptyTally(), passed: 2, exercised: { "store: fs": 2 }, skipped: [{ name: "a" }] };
    const two: Tally = { ...emptyTally(), passed: 1, failed: 1, failures: ["b"], exercised: { "store: fs": 1 } };
    const sum = addTallies([one, two]);
    expect(tallyLine(sum)).toBe("3 passed, 1 failed, 1 skipped");
    expect(exercisedLines(sum)).toEqual(["store: fs (3 tests)"]);
    expect(exercisedLines(two)).toEqual(["store: fs (1 test)"]);
  });
});

describe("a step", () => {
  it("passes and fails with its command's exit code", async () => {
    expect(tallyLine((await run(checkOf(["node", "-e", ""]))).tally)).toBe("1 passed, 0 failed, 0 skipped");
    const { tally } = await run(checkOf(["node", "-e", "process.exit(3)"]));
    expect(tally.failures).toEqual(["X: exit 3"]);
  });

  it("fails when its program is not there", async () => {
    const { tally } = await run(checkOf(["no-such-program"]));
    expect(tally.failures[0]).toMatch(/^X: cannot start/);
  });

  it("is killed at its deadline, with what it started", async () => {
    const hang = "require('child_process').spawn('sleep',['30'],{stdio:'ignore'}); setInterval(()=>{},1000)";
    const { tally, durationMs } = await run(checkOf(["node", "-e", hang]), 700);
    expect(tally.failures).toEqual(["X: no end after 1 s, killed"]);
    expect(durationMs).toBeLessThan(10_000);
  });

  it("fails a vitest run that wrote no report", async () => {
    const step: Step = { name: "x", title: "X", kind: "vitest", timeoutMs: 1, command: ["node", "-e", "", "--"] };
    expect((await run(step)).tally.failed).toBe(1);
  });

  it("stops when interrupted", async () => {
    const interrupt = new AbortController();
    setTimeout(() => interrupt.abort(), 300);
    const { tally } = await run(checkOf(["node", "-e", "setInterval(()=>{},1000)"]), 60_000, interrupt.signal);
    expect(tally.failures).toEqual(["X: interrupted"]);
  });
});

describe("the run", () => {
  const node = (name: string, code: string, more: Partial<Step> = {}): Step => ({
    ...checkOf(["node", "-e", code]),
    ...{ name, title: name.toUpperCase(), timeoutMs: 60_000 },
    ...more,
  });

  async function runOf(steps: readonly Step[], signal = new AbortController().signal) {
    let text = "";
    const write = (piece: string): void => {
      text += piece;
    };
    const results = await runAll(steps, { root: repositoryRoot, env: process.env, runMs: 60_000, signal, write });
    return { text, results };
  }

  it("takes steps one by one but for neighbours that name lanes", () => {
    const [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map((name) => node(name, ""));
    const [inOne, inTwo, inOneAgain] = [
      { ...b!, lane: "one" },
      { ...c!, lane: "two" },
      { ...d!, lane: "one" },
    ];
    expect(lanesOf([a!, inOne, inTwo, inOneAgain, e!])).toEqual([[[a]], [[inOne, inOneAgain], [inTwo]], [[e]]]);
    const all = allSteps({ full: false });
    expect(lanesOf(all).flat(2).toSorted(byName)).toEqual(all.toSorted(byName));
  });

  it("has steps of two lanes at once, and fails with either of them; what each says is in one piece", async () => {
    await inTempFolder(async (folder) => {
      const [here, there] = [join(folder, "here"), join(folder, "there")];
      // Each waits for the other one to be there, says two words with a pause between, and takes its exit code.
      const meet = (own: string, other: string, code: number): string =>
        `const fs = require("fs"); fs.writeFileSync(${JSON.stringify(own)}, "");
        const timer = setInterval(() => { if (!fs.existsSync(${JSON.stringify(other)})) return;
          clearInterval(timer); console.log("begun");
          setTimeout(() => { console.log("over"); process.exit(${code}); }, 100); }, 10);`;
      // Where there are none, a session counts as patient.
      const patience = `setTimeout(() => {
        let session = "nice 19";
        try { session = require("fs").readFileSync("/proc/self/autogroup", "utf8"); } catch {}
        console.log(require("os").getPriority(), session.includes("nice 19"));
      }, 200);`;
      const steps = [
        node("first", meet(here, there, 0), { lane: "one" }),
        node("second", meet(there, here, 3), { lane: "two" }),
        node("third", patience, { lane: "two", isPatient: true }),
      ];
      const { text, results } = await runOf(steps);
      expect(results.map(({ step }) => step.name)).toEqual(["first", "second", "third"]);
      expect(results.map(({ tally }) => tallyLine(tally))).toEqual([
        "1 passed, 0 failed, 0 skipped",
        "0 passed, 1 failed, 0 skipped",
        "1 passed, 0 failed, 0 skipped",
      ]);
      expect(text).toMatch(/=== FIRST \(node -e [\s\S]*\)\nbegun\nover\n=== FIRST: 1 passed/);
      expect(text).toMatch(/=== SECOND \(node -e [\s\S]*\)\nbegun\nover\n=== SECOND: 0 passed, 1 failed/);
      expect(text).toMatch(/=== THIRD \([\s\S]*\)\n19 true\n=== THIRD/);
    });
  });

  it("begins nothing once it is interrupted, in no lane", async () => {
    const interrupt = new AbortController();
    const hang = "setInterval(() => {}, 1000)";
    const steps = [
      node("a", hang, { lane: "one" }),
      node("b", hang, { lane: "two" }),
      node("c", hang, { lane: "two" }),
      node("d", hang),
    ];
    setTimeout(() => interrupt.abort(), 300);
    const { results } = await runOf(steps, interrupt.signal);
    expect(results.flatMap(({ tally }) => tally.failures)).toEqual(["A: interrupted", "B: interrupted"]);
  });

  it("begins with the files that take longest, all of which are there", () => {
    for (const name of LONGEST_FIRST) expect(existsSync(join(repositoryRoot, name)), name).toBe(true);
    const [longest, next] = LONGEST_FIRST;
    const files = ["/q/test/b.test.ts", `/q/${next}`, "/q/test/a.test.ts", `C:\\q\\${longest.replaceAll("/", "\\")}`];
    expect(longestFirst(files, (file) => file)).toEqual([files[3], files[1], files[0], files[2]]);
  });
});

function byName(a: Step, b: Step): number {
  return a.name < b.name ? -1 : 1;
}
