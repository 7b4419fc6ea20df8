/**
 * A programmer's error: an assertion that stays on in production.
 * @throws {AssertionError} when `condition` is falsy.
 */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Thrown by {@link assert}; never caught for control flow and never shown to a client. */
export class AssertionError extends Error {
  override readonly name = "AssertionError";
}

/** For the default branch of a switch over a closed union. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`);
}
