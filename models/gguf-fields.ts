/** Typed access to a GGUF file's metadata: every refusal is one line with the file's name and the key. */
import type { GgufFile } from "./gguf.ts";
import type { GgufValue } from "./gguf-cursor.ts";
import { failFile } from "./weights-file.ts";

/** Largest dimension accepted, as in `config.json`. */
const COUNT_MAX = 2 ** 24;

/** All methods throw {QuireError} `invalid_request`: a value of another kind, or an absent one without fallback. */
export class GgufFields {
  readonly #file: Pick<GgufFile, "name" | "metadata">;

  constructor(file: Pick<GgufFile, "name" | "metadata">) {
    this.#file = file;
  }

  fail(key: string, problem: string): never {
    return failFile(this.#file.name, `${key}: ${problem}`);
  }

  text(key: string): string {
    return this.optionalText(key) ?? this.fail(key, "is missing");
  }

  optionalText(key: string): string | undefined {
    const value = this.#get(key);
    if (value === undefined || typeof value === "string") return value;
    return this.fail(key, "is not a text");
  }

  /** A whole number from 1 up. */
  count(key: string, fallback?: number): number {
    const value = this.optionalCount(key) ?? fallback ?? this.fail(key, "is missing");
    return Number.isInteger(value) && value >= 1 ? value : this.fail(key, `${value} is not a whole number above 0`);
  }

  /** A whole number from 0 up. */
  optionalCount(key: string): number | undefined {
    const value = this.#get(key);
    if (value === undefined) return undefined;
    if (Array.isArray(value)) return this.fail(key, "a value per layer is not supported");
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > COUNT_MAX) {
      return this.fail(key, `${String(value).slice(0, 80)} is not a whole number from 0 to ${COUNT_MAX}`);
    }
    return value;
  }

  /** A finite number above 0. */
  positive(key: string, fallback?: number): number {
    const value = this.#get(key) ?? fallback ?? this.fail(key, "is missing");
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    return this.fail(key, "is not above 0");
  }

  tokenId(key: string, vocabularySize: number): number | undefined {
    const id = this.optionalCount(key);
    if (id !== undefined && id >= vocabularySize) this.fail(key, `${id} is not a token id below ${vocabularySize}`);
    return id;
  }

  optionalFlag(key: string): boolean | undefined {
    const value = this.#get(key);
    if (value === undefined || typeof value === "boolean") return value;
    return this.fail(key, "is not true or false");
  }

  texts(key: string): string[] {
    const value = this.#get(key);
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
    return this.fail(key, value === undefined ? "is missing" : "is not a list of texts");
  }

  /** Undefined where absent; `count` of them where present. */
  optionalNumbers(key: string, count: number): number[] | undefined {
    const value = this.#get(key);
    if (value === undefined) return undefined;
    const isList = Array.isArray(value) && value.length === count;
    if (isList && value.every((item) => typeof item === "number")) return value;
    return this.fail(key, `is not a list of ${count} numbers`);
  }

  #get(key: string): GgufValue | undefined {
    return this.#file.metadata.get(key);
  }
}
