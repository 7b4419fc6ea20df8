/** A vitest reporter that writes a {@link Tally} as JSON to the file named by QUIRE_TEST_REPORT. */
import { writeFileSync } from "node:fs";
import type { Reporter, TestCase, TestModule, TestSuite } from "vitest/node";
import type {} from "../exercised.ts";
import { emptyTally, type Tally } from "./tally.ts";

/** Counts what ran; a file, hook or stray promise that broke outside a test counts as one failure each. */
export default class TallyReporter implements Reporter {
  onTestRunEnd(testModules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const path = process.env.QUIRE_TEST_REPORT;
    if (path === undefined) return;
    const tally = emptyTally();
    for (const testModule of testModules) {
      const file = testModule.relativeModuleId;
      addBroken(tally, `${file}`, testModule);
      for (const suite of testModule.children.allSuites()) addBroken(tally, `${file} > ${suite.fullName}`, suite);
      for (const test of testModule.children.allTests()) addTest(tally, file, test);
    }
    if (unhandledErrors.length > 0) fail(tally, `${unhandledErrors.length} unhandled error(s) outside of tests`);
    writeFileSync(path, JSON.stringify(tally));
  }
}

function addBroken(tally: Tally, name: string, where: TestModule | TestSuite): void {
  if (where.errors().length > 0) fail(tally, `${name} (outside of its tests)`);
}

function addTest(tally: Tally, file: string, test: TestCase): void {
  const name = `${file} > ${test.fullName}`;
  const result = test.result();
  if (result.state === "passed") {
    tally.passed++;
    for (const what of new Set(test.meta().exercised ?? [])) tally.exercised[what] = (tally.exercised[what] ?? 0) + 1;
  } else if (result.state === "failed") {
    fail(tally, name);
  } else {
    const note = result.state === "skipped" ? result.note : undefined;
    tally.skipped.push(note === undefined ? { name } : { name, reason: note });
  }
}

function fail(tally: Tally, name: string): void {
  tally.failed++;
  tally.failures.push(name);
}
