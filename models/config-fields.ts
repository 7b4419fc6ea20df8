/** Fields of somebody's `config.json`, checked one by one: every refusal names the field. */
import { QuireError } from "../protocol/errors.ts";

/** A parsed JSON object. */
export type Json = Readonly<Record<string, unknown>>;

/** Largest count accepted for any dimension: well above real models, well below what overflows arithmetic on sizes. */
const DIMENSION_MAX = 2 ** 24;

/** A whole number from 1 up. @throws {QuireError} `invalid_request` naming the field. */
export function dimension(json: Json, field: string, fallback?: number): number {
  const value = json[field] ?? fallback;
  if (!Number.isSafeInteger(value) || (value as number) < 1 || (value as number) > DIMENSION_MAX) {
    fail(field, value === undefined ? "is missing" : `${show(value)} is not a whole number from 1 to ${DIMENSION_MAX}`);
  }
  return value as number;
}

/** A finite number above 0. @throws {QuireError} `invalid_request` naming the field. */
export function positive(json: Json, field: string, fallback?: number): number {
  const value = json[field] ?? fallback;
  if (value === undefined) fail(field, "is missing");
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) fail(field, `${show(value)} is not above 0`);
  return value;
}

/** True or false; absent and null are `fallback`. @throws {QuireError} `invalid_request` naming the field. */
export function flag(json: Json, field: string, fallback = false): boolean {
  const value = json[field] ?? fallback;
  if (typeof value !== "boolean") fail(field, `${show(value)} is not true or false`);
  return value;
}

/** One id or a list of ids below `vocabularySize`; undefined where absent or null. @throws {QuireError} `invalid_request`. */
export function tokenIds(json: Json, field: string, vocabularySize: number): number[] | undefined {
  const value = json[field];
  if (value == null) return undefined;
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= vocabularySize) {
      fail(field, `${show(id)} is not a token id below ${vocabularySize}`);
    }
  }
  return ids as number[];
}

/** @throws {QuireError} `invalid_request` when `value` is not a JSON object. */
export function object(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail(name, "is not a JSON object");
  return value as Json;
}

/** A value as JSON, short enough for one line. */
export function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}

/** @throws {QuireError} `invalid_request`, one line: the field (also in `param`) and what is wrong with it. */
export function fail(field: string, problem: string): never {
  throw new QuireError("invalid_request", `model config: ${field}: ${problem}`, { param: field });
}
