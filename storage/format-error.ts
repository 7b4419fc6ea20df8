import { StoreError } from "./contract.ts";

/** Why stored bytes were refused. */
export type FormatErrorCode =
  /** Damaged, cut, or never ours. */
  | "corrupt"
  /** Intact, but of a version that is not read here, newer or too old: leave it alone. */
  | "unsupported_version"
  /** Intact, but not what was asked for: another geometry, chain or position. */
  | "mismatch";

/** The one error that a decoder of this folder throws, whatever the bytes. Callers treat it as a miss. */
export class FormatError extends Error {
  override readonly name = "FormatError";
  readonly code: FormatErrorCode;
  /** Version of the store object the bytes came from, where they came from one: lets a caller replace it. */
  readonly etag: string | undefined;

  constructor(code: FormatErrorCode, message: string, options: { cause?: unknown; etag?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.etag = options.etag;
  }
}

/** @throws {FormatError} `corrupt` when `condition` is false. */
export function refuseUnless(condition: boolean, message: string): asserts condition {
  if (!condition) throw new FormatError("corrupt", message);
}

/** The version of an object that its store finds damaged, if that tells; for reads that fail. @throws what it is given where that is no such damage. */
export function damagedEtag(error: unknown): string | undefined {
  if (error instanceof StoreError && error.code === "corrupt") return error.etag;
  throw error;
}

/** Whether an error tells of which version of an object it is that nobody can read: that one can be replaced. */
export function isReplaceable(error: unknown): error is FormatError & { etag: string } {
  return error instanceof FormatError && error.code === "corrupt" && error.etag !== undefined;
}

/** Whether an error says that stored bytes are not as they should be, rather than that a store failed. */
export function isDamage(error: unknown): error is FormatError | StoreError {
  return error instanceof FormatError || (error instanceof StoreError && error.code === "corrupt");
}
