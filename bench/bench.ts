/** What a benchmark is to the command: flags, a run, a result. */
import { setTimeout as sleep } from "node:timers/promises";
import {
  describeFlags,
  type Flag,
  type Flags,
  type FlagValues,
  parseChoice,
  parseFlags,
  parseText,
} from "../cli/flags.ts";

const STOP_MS_MAX = 200;

/** Somebody looks on: lines may be written over. */
export interface BenchTerminal {
  write(text: string): void;
  columns(): number;
}

/** What a run is given of the outside world. */
export interface BenchContext {
  /** Writes one line of the report. */
  print(line: string): void;
  /** Writes one line about what goes on; no part of the report. */
  progress(line: string): void;
  /** Writes what is known so far where `--json` will have the result, so that a run that is killed leaves that; without the flag nothing. */
  save(data: Record<string, unknown>): Promise<void>;
  /** Fires when the user stops the run: what was measured until then is reported. */
  signal: AbortSignal;
  /** Fires when the user insists: whatever still runs is killed. */
  insisted: Promise<void>;
  env: NodeJS.ProcessEnv;
  /** Where what goes on can be shown in place; absent where progress lines are all there is. */
  terminal?: BenchTerminal | undefined;
}

/** What a run measured. */
export interface BenchResult {
  /** False when something failed that should not have: the command ends with exit code 1. */
  ok: boolean;
  /** What `--json` writes, beside the head that all benchmarks share (`bench/README.md`). */
  data: Record<string, unknown>;
}

/** A run whose flags have been read. */
export interface PreparedBench {
  jsonPath: string | undefined;
  run(context: BenchContext): Promise<BenchResult>;
}

/** A benchmark as the registry holds it. */
export interface Bench {
  /** The lines of `npm run bench -- NAME --help` behind the first. */
  help(): string;
  /** @throws {UsageError} one line, for flags that cannot be used. */
  prepare(args: readonly string[], env: NodeJS.ProcessEnv): PreparedBench;
}

const jsonFlag = {
  help: "file for the result as JSON",
  placeholder: "FILE",
  parse: parseText,
} as const satisfies Flag<string>;

/**
 * What was asked of a process that a terminal's Ctrl-C ends together with this one (a workerd); undefined where the run was stopped meanwhile.
 * @throws what `asked` rejects with in a run that goes on.
 */
export async function unlessStopped<T>(asked: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  try {
    return await asked;
  } catch (error) {
    // The other process may have heard of it first.
    if (!signal.aborted) await sleep(STOP_MS_MAX);
    if (signal.aborted) return undefined;
    throw error;
  }
}

/** A flag without a value: it is there ("true") or not ("false"). */
export function switchFlag(help: string) {
  return { help, placeholder: "", fallback: "false", parse: parseChoice(["true", "false"]) } as const;
}

/** Makes a benchmark of flags and a run; `--json` is every benchmark's. */
export function defineBench<F extends Flags>(options: {
  summary: string;
  flags: F;
  run(values: FlagValues<F>, context: BenchContext): Promise<BenchResult>;
}): Bench {
  const flags: Flags = { ...options.flags, json: jsonFlag };
  return {
    help: () => `${options.summary}\n\n${describeFlags(flags).replace(/ +$/gm, "")}\n`,
    prepare(args, env) {
      const given = parseFlags(flags, spellOutSwitches(flags, args), env);
      const { json, ...values } = given;
      return {
        jsonPath: json as string | undefined,
        run: (context) => options.run(values as FlagValues<F>, context),
      };
    },
  };
}

/** `--name` alone is `--name=true` where the flag takes no value. */
function spellOutSwitches(flags: Flags, args: readonly string[]): string[] {
  const switches = new Set(
    Object.entries(flags)
      .filter(([, flag]) => flag.placeholder === "")
      .map(([name]) => `--${name}`),
  );
  return args.map((arg) => (switches.has(arg) ? `${arg}=true` : arg));
}
