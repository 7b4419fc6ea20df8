/** Reads the fields of a request body one by one; whatever nobody asked for is refused at the end, by name. */
import { QuireError } from "../protocol/errors.ts";

/** Bounds of a number, both inclusive. */
export interface NumberRange {
  min: number;
  max: number;
  integer?: boolean;
}

/**
 * The fields of one JSON object. `null` counts as absent, as OpenAI has it. Every method throws {@link QuireError}
 * `invalid_request` with `param` for a value of the wrong type or out of range.
 */
export class Fields {
  readonly #record: Record<string, unknown>;
  readonly #prefix: string;
  readonly #known = new Set<string>();

  constructor(record: Record<string, unknown>, prefix = "") {
    this.#record = record;
    this.#prefix = prefix;
  }

  /** The path of a field as the client wrote it. */
  path(name: string): string {
    return `${this.#prefix}${name}`;
  }

  /** Marks a field as known and returns it as it is; `null` becomes undefined. */
  raw(name: string): unknown {
    if (!Object.hasOwn(this.#record, name)) return undefined;
    this.#known.add(name);
    const value = this.#record[name];
    return value === null ? undefined : value;
  }

  number(name: string, range: NumberRange): number | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : checkNumber(value, this.path(name), range);
  }

  boolean(name: string): boolean | undefined {
    const value = this.raw(name);
    if (value === undefined || typeof value === "boolean") return value;
    throw invalidType(this.path(name), "a boolean", value);
  }

  string(name: string): string | undefined {
    const value = this.raw(name);
    if (value === undefined || typeof value === "string") return value;
    throw invalidType(this.path(name), "a string", value);
  }

  object(name: string): Fields | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    return new Fields(asRecord(value, this.path(name)), `${this.path(name)}.`);
  }

  record(name: string): Record<string, unknown> | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : asRecord(value, this.path(name));
  }

  array(name: string): unknown[] | undefined {
    const value = this.raw(name);
    if (value === undefined || Array.isArray(value)) return value;
    throw invalidType(this.path(name), "an array", value);
  }

  /** A field of the OpenAI API that is the caller's own affair: it has to be of its type, and nothing is done with it. */
  label(name: string, type: "string" | "boolean" | "object"): void {
    const value = this.raw(name);
    const isOfType = type === "object" ? !Array.isArray(value) && typeof value === type : typeof value === type;
    if (value === undefined || isOfType) return;
    throw invalidType(this.path(name), type === "object" ? "an object" : `a ${type}`, value);
  }

  /** A field of the OpenAI API that means nothing here when it holds one of the `noOps`; any other value is refused. */
  unsupported(name: string, isNoOp: (value: unknown) => boolean): void {
    const value = this.raw(name);
    if (value === undefined || isNoOp(value)) return;
    throw invalid(this.path(name), `'${this.path(name)}' is not supported by this server.`);
  }

  /** A method was asked for every field that is there. */
  get isAllKnown(): boolean {
    for (const name in this.#record) if (!this.#known.has(name)) return false;
    return true;
  }

  /** @throws {QuireError} naming the first field that no method was asked for. */
  refuseOthers(): void {
    for (const name of Object.keys(this.#record)) {
      if (this.#known.has(name)) continue;
      const path = this.path(quoted(name));
      throw invalid(path, `Unrecognized request argument supplied: ${path}`);
    }
  }
}

/** How much of a caller's own words an error repeats. */
const QUOTED_LENGTH_MAX = 64;

/** The beginning of what a caller wrote, for an error's text: an answer is not as long as its request. */
export function quoted(text: string): string {
  return text.length <= QUOTED_LENGTH_MAX ? text : `${text.slice(0, QUOTED_LENGTH_MAX).toWellFormed()}...`;
}

/** The error for a value that cannot be. */
export function invalid(param: string, message: string): QuireError {
  return new QuireError("invalid_request", message, { param });
}

/** The error for a value of the wrong type. */
export function invalidType(param: string, expected: string, value: unknown): QuireError {
  return invalid(param, `Invalid type for '${param}': expected ${expected}, but got ${typeName(value)} instead.`);
}

/** The value as a number within bounds. @throws {QuireError} `invalid_request` with `param` otherwise. */
export function checkNumber(value: unknown, param: string, range: NumberRange): number {
  const kind = range.integer ? "integer" : "decimal";
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw invalidType(param, range.integer ? "an integer" : "a number", value);
  }
  if (range.integer && !Number.isSafeInteger(value)) throw invalidType(param, "an integer", value);
  if (value < range.min) {
    throw invalid(
      param,
      `Invalid '${param}': ${kind} below minimum value. Expected a value >= ${range.min}, but got ${value} instead.`,
    );
  }
  if (value > range.max) {
    throw invalid(
      param,
      `Invalid '${param}': ${kind} above maximum value. Expected a value <= ${range.max}, but got ${value} instead.`,
    );
  }
  return value;
}

/** The value as a plain object. @throws {QuireError} `invalid_request` with `param` otherwise. */
export function asRecord(value: unknown, param: string): Record<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw invalidType(param, "an object", value);
}

/** "a string", "null", ...: how OpenAI's messages name what they got. */
function typeName(value: unknown): string {
  if (value === null) return "null";
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object") return "an object";
  if (typeof value === "number") {
    if (Number.isSafeInteger(value)) return "an integer";
    return Number.isInteger(value) || !Number.isFinite(value) ? "a number that is too large" : "a decimal";
  }
  return `a ${typeof value}`;
}
