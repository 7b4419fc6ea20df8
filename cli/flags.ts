/** Command-line flags with environment variables behind them: declared once, parsed and explained from that. */
import { parseArgs } from "node:util";
import { QuireError } from "../protocol/errors.ts";
import type { SelectionConfiguration, SelectionRequest } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { parseRequestedSelection, parseSelection } from "../protocol/selection.ts";
import { didYouMean } from "./near-miss.ts";
import { UsageError } from "./usage-error.ts";

/** One flag. Its value is the command line's, else the variable's, else the default. */
export interface Flag<T> {
  help: string;
  /** What stands for the value in the help text. */
  placeholder: string;
  /** Environment variable. */
  env?: string;
  /** As it would be typed; absent: the flag is optional and its value undefined. */
  fallback?: string;
  /** @throws {UsageError} saying what is expected, without the flag's name. */
  parse(text: string): T;
}

/** Flags by name, without the dashes. */
export type Flags = Record<string, Flag<unknown>>;

/** The values of flags: undefined only where there is no default. */
export type FlagValues<F extends Flags> = {
  [Name in keyof F]: F[Name] extends { fallback: string }
    ? ReturnType<F[Name]["parse"]>
    : ReturnType<F[Name]["parse"]> | undefined;
};

/** Flags without a value: their help texts by name, without the dashes. */
export type Switches = Readonly<Record<string, string>>;

/** What the arguments of a command say. */
export interface CommandLine<F extends Flags> {
  values: FlagValues<F>;
  /** Names of the switches that are there. */
  given: ReadonlySet<string>;
  /** What is neither a flag nor a flag's value, in order. */
  operands: string[];
}

/**
 * Parses the arguments of one command that has nothing but flags with values.
 * @throws {UsageError} as {@link parseCommandLine}, and for a stray argument.
 */
export function parseFlags<F extends Flags>(flags: F, args: readonly string[], env: NodeJS.ProcessEnv): FlagValues<F> {
  return parseSwitched({ flags, switches: {} }, args, env).values;
}

/**
 * As {@link parseCommandLine}, of a command that takes no operands.
 * @throws {UsageError} as that, and for a stray argument.
 */
export function parseSwitched<F extends Flags>(
  declared: { flags: F; switches: Switches },
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): Omit<CommandLine<F>, "operands"> {
  const { operands, ...line } = parseCommandLine(declared, args, env);
  refuseStray(operands[0]);
  return line;
}

/**
 * As {@link parseCommandLine}, of a command without switches that is for one thing, wherever among its flags that stands.
 * @throws {UsageError} as that, for a stray argument, and `missing` where there is none.
 */
export function parseWithOperand<F extends Flags>(
  flags: F,
  args: readonly string[],
  options: { env: NodeJS.ProcessEnv; missing: string },
): { operand: string; values: FlagValues<F> } {
  const { values, operands } = parseCommandLine({ flags, switches: {} }, args, options.env);
  const [operand, stray] = operands;
  if (operand === undefined) throw new UsageError(options.missing);
  refuseStray(stray);
  return { operand, values };
}

function refuseStray(operand: string | undefined): void {
  if (operand !== undefined) throw new UsageError(`unexpected argument "${operand}"`);
}

/**
 * Parses the arguments of one command. The last of repeated flags counts; behind `--` all are operands.
 * @throws {UsageError} one line, for an unknown flag, a missing or impossible value, or a switch with one.
 */
export function parseCommandLine<F extends Flags>(
  declared: { flags: F; switches: Switches },
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): CommandLine<F> {
  const { flags, switches } = declared;
  const { texts, given, operands } = readArgs(flags, Object.keys(switches), args);
  const values: Record<string, unknown> = {};
  for (const [name, flag] of Object.entries(flags)) {
    const fromEnv = flag.env === undefined ? undefined : env[flag.env] || undefined;
    const text = texts.get(name) ?? fromEnv ?? flag.fallback;
    const source = texts.has(name) || fromEnv === undefined ? `--${name}` : `${flag.env}`;
    values[name] = text === undefined ? undefined : parseOne(flag, text, source);
  }
  return { values: values as FlagValues<F>, given, operands };
}

/** Which flags have which text, which switches are there, and what else. */
function readArgs(flags: Flags, switches: readonly string[], args: readonly string[]) {
  const options = Object.fromEntries(Object.keys(flags).map((name) => [name, { type: "string" as const }]));
  const { tokens } = parseArgs({ args: [...args], options, strict: false, allowPositionals: true, tokens: true });
  const texts = new Map<string, string>();
  const given = new Set<string>();
  const operands: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") operands.push(token.value);
    if (token.kind !== "option") continue;
    if (switches.includes(token.name)) {
      if (token.value !== undefined) throw new UsageError(`${token.rawName} takes no value`);
      given.add(token.name);
      continue;
    }
    if (!Object.hasOwn(flags, token.name)) {
      const meant = didYouMean(token.name, [...Object.keys(flags), ...switches], "--");
      throw new UsageError(`unknown flag ${token.rawName}${meant}; --help lists them`);
    }
    // A number below 0 is a value, if an impossible one; what else begins with a dash is the next flag.
    const isFlag = token.inlineValue === false && /^-(?![\d.])/.test(token.value);
    const isMissing = token.value === undefined || isFlag;
    if (isMissing) throw new UsageError(`${token.rawName} needs a value`);
    texts.set(token.name, token.value ?? "");
  }
  return { texts, given, operands };
}

function parseOne(flag: Flag<unknown>, text: string, source: string): unknown {
  try {
    return flag.parse(text);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    const isQuoted = error.message.includes(JSON.stringify(text));
    throw new UsageError(`${source}: ${error.message}${isQuoted ? "" : `, not "${text}"`}`);
  }
}

/** The help text's lines, one flag each, and behind them the switches (flags without a value), which are their help texts by name. */
export function describeFlags(flags: Flags, switches: Switches = {}): string {
  const rows = Object.entries(flags).map(([name, flag]): [left: string, right: string] => {
    const notes = [flag.fallback === undefined ? "" : `default ${flag.fallback}`, flag.env ?? ""].filter(Boolean);
    const suffix = notes.length === 0 ? "" : ` (${notes.join(", ")})`;
    return [`  --${name} ${flag.placeholder}`, `${flag.help}${suffix}`];
  });
  for (const [name, help] of Object.entries(switches)) rows.push([`  --${name}`, help]);
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return rows.map(([left, right]) => left.padEnd(width) + right).join("\n");
}

/** Any text but the empty one. */
export function parseText(text: string): string {
  if (text === "") throw new UsageError("must not be empty");
  return text;
}

/** A whole number in a closed range, as a parser for a flag. */
export function parseInteger(range: { min: number; max: number }): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= range.min && value <= range.max) return value;
    throw new UsageError(`must be a whole number from ${range.min} to ${range.max}`);
  };
}

/** A TCP port; 0 takes one that is free. */
export const parsePort = parseInteger({ min: 0, max: 65_535 });

/** A number above 0, in decimals or with an exponent. @throws {UsageError} */
export function parseNumber({ max }: { max: number }): (text: string) => number {
  return (text) => {
    const value = /^\d+(\.\d+)?(e-\d+)?$/.test(text) ? Number(text) : Number.NaN;
    if (value > 0 && value <= max) return value;
    throw new UsageError(`must be a number above 0, at most ${max}`);
  };
}

const budget = { min: LIMITS.budgetTokensMin, max: 1_048_576 };

/** Tokens in whole pages of 16, as many as a request may ask for: the edge puts a flag's value into every request that names none. */
export function parseBudget(text: string): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value % 16 === 0 && value >= budget.min && value <= budget.max) return value;
  throw new UsageError(`must be a multiple of 16 (whole pages) from ${budget.min} to ${budget.max}`);
}

/** A selection configuration (protocol/selection.ts), in canonical form. */
export function parseSelectionFlag(text: string): SelectionConfiguration {
  return asUsageError(() => parseSelection(text).canonical);
}

/** As {@link parseSelectionFlag}, or `auto`. */
export function parseRequestedSelectionFlag(text: string): SelectionRequest["policy"] {
  return asUsageError(() => parseRequestedSelection(text));
}

function asUsageError<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof QuireError) throw new UsageError(error.message.replace(/^Invalid '[^']*': |\.$/g, ""));
    throw error;
  }
}

/** One of a few words, as a parser for a flag. */
export function parseChoice<const Choice extends string>(choices: readonly Choice[]): (text: string) => Choice {
  return (text) => {
    const found = choices.find((choice) => choice === text);
    if (found === undefined) throw new UsageError(`must be one of ${choices.join(", ")}`);
    return found;
  };
}

const unitBytes: Record<string, number> = { "": 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3 };

/** A size in bytes: a whole number, alone or with K, M or G (1024 each). */
export function parseBytes(text: string): number {
  const match = /^(\d+)([KMG]?)$/.exec(text);
  const bytes = match ? Number(match[1]) * (unitBytes[match[2] ?? ""] ?? Number.NaN) : Number.NaN;
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new UsageError("must be a size such as 512M or 2G");
}

/** An http or https address, without a slash at its end. */
export function parseHttpUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol === "http:" || url?.protocol === "https:") return text.replace(/\/+$/, "");
  throw new UsageError("must be an http or https address");
}
