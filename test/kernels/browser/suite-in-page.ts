/**
 * The part of vitest's interface that the conformance suite uses, for a browser page: the bundle has this module in vitest's place. Tests
 * are collected when the suite is described, and run one after the other by {@link runSuite}.
 */
export { expect } from "./expect-in-page.ts";

type Hook = () => unknown;
type Body = (...row: unknown[]) => unknown;

interface Scope {
  name: string;
  before: Hook[];
  after: Hook[];
  children: (Scope | Test)[];
}

interface Test {
  name: string;
  body: () => unknown;
}

/** What came of one test. */
export interface TestOutcome {
  /** Names of its suites and its own. */
  name: string;
  ms: number;
  /** Absent when it passed. */
  error?: string;
  /** It did not run: there was no time left. */
  skipped?: true;
}

const root = newScope("");
/** The suites around what is being described, the innermost last. */
const open = [root];

/** As vitest's, with `each`. */
export const describe = Object.assign(
  (name: string, body: Hook): void => {
    const scope = newScope(name);
    innermost().children.push(scope);
    open.push(scope);
    body();
    open.pop();
  },
  { each: (rows: readonly unknown[]) => (name: string, body: Body) => forEachRow(rows, name, body, describe) },
);

/** As vitest's, with `each`. */
export const it = Object.assign(
  (name: string, body: () => unknown): void => {
    innermost().children.push({ name, body });
  },
  { each: (rows: readonly unknown[]) => (name: string, body: Body) => forEachRow(rows, name, body, it) },
);

/** As vitest's. */
export function beforeAll(hook: Hook): void {
  innermost().before.push(hook);
}

/** As vitest's. */
export function afterAll(hook: Hook): void {
  innermost().after.push(hook);
}

/** The suite's only use of it marks tests for the summary of `npm test`, which a page has not. */
export function beforeEach(_hook: unknown): void {}

/** Tests that were described. */
export function testCount(scope = root): number {
  return scope.children.reduce((sum, child) => sum + ("children" in child ? testCount(child) : 1), 0);
}

/** Runs all that was described, as long as `hasTime` says so; `onTest` hears of every test as it ends. */
export async function runSuite(onTest: (outcome: TestOutcome) => void, hasTime = (): boolean => true): Promise<void> {
  await runScope(root, "", { onTest, hasTime });
}

interface Run {
  onTest(outcome: TestOutcome): void;
  hasTime(): boolean;
}

async function runScope({ before, after, children }: Scope, path: string, run: Run): Promise<void> {
  for (const hook of before) await hook();
  for (const child of children) {
    const name = path === "" ? child.name : `${path} > ${child.name}`;
    if ("children" in child) {
      await runScope(child, name, run);
      continue;
    }
    if (!run.hasTime()) {
      run.onTest({ name, ms: 0, skipped: true });
      continue;
    }
    const startMs = performance.now();
    let error: string | undefined;
    try {
      await child.body();
    } catch (cause) {
      error = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
    }
    run.onTest({ name, ms: performance.now() - startMs, ...(error === undefined ? {} : { error }) });
  }
  for (const hook of after) await hook();
}

function newScope(name: string): Scope {
  return { name, before: [], after: [], children: [] };
}

function innermost(): Scope {
  return open.at(-1) ?? root;
}

function forEachRow(
  rows: readonly unknown[],
  name: string,
  body: Body,
  add: (name: string, body: () => unknown) => void,
): void {
  for (const row of rows) {
    const values = Array.isArray(row) ? row : [row];
    add(rowName(name, values), () => body(...values));
  }
}

/** `%s`, `%i`, `%d` take a row's values in order, `$field` a field of its first. */
function rowName(name: string, values: readonly unknown[]): string {
  let next = 0;
  const counted = name.replace(/%[sidj]/g, () => String(values[next++]));
  return counted.replace(/\$(\w+)/g, (whole, field: string) => {
    const value = (values[0] as Record<string, unknown> | undefined)?.[field];
    return value === undefined ? whole : String(value);
  });
}
