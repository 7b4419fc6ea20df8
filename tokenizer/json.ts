/** Reading of parsed JSON whose shape is not known: each reader checks, none converts. */
import { QuireError } from "../protocol/errors.ts";

/** An object of parsed JSON. */
export type JsonObject = { readonly [key: string]: unknown };

/** True for an object that is neither null nor an array. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @throws {QuireError} `internal` naming `where` when the value is not an object. */
export function asObject(value: unknown, where: string): JsonObject {
  if (!isObject(value)) throw new QuireError("internal", `${where}: an object is missing`);
  return value;
}

/** @throws {QuireError} `internal` naming `where` when the value is neither absent nor an array. */
export function asArray(value: unknown, where: string): readonly unknown[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw new QuireError("internal", `${where}: an array is missing`);
  return value;
}
