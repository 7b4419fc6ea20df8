/** What a trace's `__metadata__` says. */
import { failFile } from "../../../models/weights-file.ts";

const TEXT_LENGTH_MAX = 200;

/** `__metadata__`, field by field; every refusal is a QuireError `invalid_request` that names the file, the field, and what it may be. */
export class TraceFields {
  readonly #file: string;
  readonly #fields: ReadonlyMap<string, string>;

  constructor(file: string, fields: ReadonlyMap<string, string>) {
    this.#file = file;
    this.#fields = fields;
  }

  /** One of some words; it must be there. */
  choice<const Choice extends string>(name: string, choices: readonly Choice[]): Choice {
    const value = this.#fields.get(name);
    const found = choices.find((choice) => choice === value);
    if (found !== undefined) return found;
    const given = value === undefined ? "is missing" : `is ${JSON.stringify(value.slice(0, 40))}`;
    return this.#fail(name, `${given}; it is ${choices.map((choice) => `"${choice}"`).join(" or ")}`);
  }

  /** One line of printable characters; undefined where it is not there. */
  text(name: string): string | undefined {
    const value = this.#fields.get(name);
    if (value === undefined) return undefined;
    if (value.length <= TEXT_LENGTH_MAX && /^[^\p{C}\p{Zl}\p{Zp}]+$/u.test(value)) return value;
    return this.#fail(name, `is no line of 1 to ${TEXT_LENGTH_MAX} printable characters`);
  }

  /** In decimals, within a range; undefined where it is not there. */
  number(name: string, { min, max }: { min: number; max: number }): number | undefined {
    const text = this.#fields.get(name);
    if (text === undefined) return undefined;
    const value = /^\d{1,30}(\.\d{1,30})?(e[+-]?\d{1,3})?$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    return this.#fail(name, `is ${JSON.stringify(text.slice(0, 40))}, not a number from ${min} to ${max}`);
  }

  /** Whole numbers between commas, ascending, each once; undefined where they are not there. */
  numbers(name: string, { countMax, max }: { countMax: number; max: number }): number[] | undefined {
    const text = this.#fields.get(name);
    if (text === undefined) return undefined;
    const parts = text.split(",", countMax + 1);
    if (parts.length > countMax) this.#fail(name, `names more than ${countMax}`);
    let before = -1;
    return parts.map((part) => {
      const value = /^\d{1,9}$/.test(part.trim()) ? Number(part) : Number.NaN;
      if (!(value > before && value <= max)) {
        const what = `whole numbers between commas, ascending, each once, at most ${max}`;
        this.#fail(name, `has ${JSON.stringify(part.slice(0, 40))}; it is of ${what}`);
      }
      before = value;
      return value;
    });
  }

  #fail(name: string, problem: string): never {
    failFile(this.#file, `__metadata__.${name} ${problem}`);
  }
}
