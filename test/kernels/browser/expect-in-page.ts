/** The matchers of vitest that the conformance suite uses. A matcher that is not here is an error, never a pass. */

type Failure = string | undefined;
type Matcher = (actual: never, ...expected: never[]) => Failure;

const MATCHERS = {
  toBe: (actual: unknown, expected: unknown) => unless(Object.is(actual, expected), actual, "to be", expected),
  toEqual: (actual: unknown, expected: unknown) => unless(isEqual(actual, expected), actual, "to equal", expected),
  toMatchObject: (actual: unknown, expected: object) =>
    unless(matchesObject(actual, expected), actual, "to match", expected),
  toContain: (actual: Iterable<unknown>, expected: unknown) =>
    unless([...actual].includes(expected), [...actual], "to contain", expected),
  toBeUndefined: (actual: unknown) => unless(actual === undefined, actual, "to be", undefined),
  toBeDefined: (actual: unknown) => unless(actual !== undefined, actual, "to be defined, not", undefined),
  toBeGreaterThan: (actual: number, bound: number) => unless(actual > bound, actual, "to be above", bound),
  toBeGreaterThanOrEqual: (actual: number, bound: number) => unless(actual >= bound, actual, "to be at least", bound),
  toBeLessThan: (actual: number, bound: number) => unless(actual < bound, actual, "to be below", bound),
  toBeLessThanOrEqual: (actual: number, bound: number) => unless(actual <= bound, actual, "to be at most", bound),
  toHaveLength: (actual: ArrayLike<unknown>, length: number) =>
    unless(actual.length === length, actual.length, "to be the length", length),
} satisfies Record<string, Matcher>;

/** Names of what `expect(...)` and `expect` itself can do here. */
export const KNOWN = { matchers: [...Object.keys(MATCHERS), "toThrow"], statics: ["fail"] } as const;

type Assertions = { [Name in keyof typeof MATCHERS | "toThrow"]: (...expected: unknown[]) => void };
type Later = { [Name in keyof Assertions]: (...expected: unknown[]) => Promise<void> };

/** As vitest's, with `.not`, `.rejects` and `expect.fail`. */
export const expect = Object.assign(
  (actual: unknown, message = "") => ({
    ...assertions(actual, message, false),
    not: assertions(actual, message, true),
    rejects: rejections(actual, message),
  }),
  {
    fail(message: string): never {
      throw new Error(message);
    },
  },
);

function assertions(actual: unknown, message: string, isNegated: boolean): Assertions {
  const judge = (name: string, failure: Failure): void => {
    if ((failure === undefined) !== isNegated) return;
    throw new Error(`${message === "" ? "" : `${message}: `}${failure ?? `expected not ${name}: ${show(actual)}`}`);
  };
  const named = Object.entries(MATCHERS).map(([name, matcher]) => [
    name,
    (...expected: unknown[]) =>
      judge(name, (matcher as unknown as (...all: unknown[]) => Failure)(actual, ...expected)),
  ]);
  const toThrow = (expected?: unknown): void => {
    let thrown: { error: unknown } | undefined;
    try {
      (actual as () => unknown)();
    } catch (error) {
      thrown = { error };
    }
    judge("toThrow", thrown === undefined ? "expected to throw" : wrongError(thrown.error, expected));
  };
  return { ...Object.fromEntries(named), toThrow } as Assertions;
}

function rejections(actual: unknown, message: string): Pick<Later, "toThrow"> {
  return {
    async toThrow(expected) {
      let thrown: { error: unknown } | undefined;
      try {
        await (typeof actual === "function" ? actual() : actual);
      } catch (error) {
        thrown = { error };
      }
      const failure = thrown === undefined ? "expected to be rejected" : wrongError(thrown.error, expected);
      if (failure !== undefined) throw new Error(`${message} ${failure}`);
    },
  };
}

function wrongError(error: unknown, expected: unknown): Failure {
  const text = error instanceof Error ? error.message : String(error);
  if (expected === undefined) return undefined;
  if (typeof expected === "string") return unless(text.includes(expected), text, "to contain", expected);
  if (expected instanceof RegExp) return unless(expected.test(text), text, "to match", String(expected));
  if (typeof expected === "function")
    return unless(error instanceof (expected as new () => unknown), text, "to be a", expected.name);
  throw new Error(`toThrow does not know ${show(expected)}`);
}

function unless(isRight: boolean, actual: unknown, verb: string, expected: unknown): Failure {
  return isRight ? undefined : `expected ${show(actual)} ${verb} ${show(expected)}`;
}

/** Recursive, of plain objects, arrays, typed arrays, maps and sets; fields that are undefined count as absent. */
function isEqual(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  if (ArrayBuffer.isView(a) || Array.isArray(a)) {
    const [left, right] = [a, b] as unknown as ArrayLike<unknown>[];
    if (left?.length !== right?.length) return false;
    return Array.from(left as ArrayLike<unknown>).every((value, at) => isEqual(value, right?.[at]));
  }
  if (a instanceof Map || a instanceof Set) return isEqual([...a], [...(b as Iterable<unknown>)]);
  const keysOf = (value: object) => Object.entries(value).filter(([, field]) => field !== undefined);
  const entries = keysOf(a);
  return (
    entries.length === keysOf(b).length &&
    entries.every(([key, value]) => isEqual(value, (b as Record<string, unknown>)[key]))
  );
}

function matchesObject(actual: unknown, expected: unknown): boolean {
  if (typeof expected !== "object" || expected === null) return isEqual(actual, expected);
  if (typeof actual !== "object" || actual === null) return false;
  return Object.entries(expected).every(([key, value]) =>
    matchesObject((actual as Record<string, unknown>)[key], value),
  );
}

function show(value: unknown): string {
  const plain = ArrayBuffer.isView(value) ? Array.from(value as unknown as ArrayLike<number>) : value;
  const text = typeof plain === "function" ? plain.name : (JSON.stringify(plain) ?? String(plain));
  return text.length > 200 ? `${text.slice(0, 200)}...` : text;
}
