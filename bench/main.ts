/** `npm run bench -- NAME [flags]`: finds the benchmark, runs it, writes its result. */
import { appendFile, stat, writeFile } from "node:fs/promises";
import { foldHelp } from "../cli/fold-help.ts";
import { listenForStop, type SignalSource } from "../cli/stop-request.ts";
import { UsageError } from "../cli/usage-error.ts";
import { QuireError } from "../protocol/errors.ts";
import { replaceFile } from "../storage/replace-file.ts";
import type { BenchContext, BenchResult, BenchTerminal } from "./bench.ts";
import { describeMachine, machineLine } from "./machine.ts";
import { benches } from "./registry.ts";

/** Of results: they are for everybody whom the process's mask lets. */
const READABLE_MODE = 0o666;

/** What the command needs of its process. */
export interface MainOptions {
  env: NodeJS.ProcessEnv;
  /** Where Ctrl-C and SIGTERM come from. */
  signals: SignalSource;
  out(text: string): void;
  err(text: string): void;
  /** Of a user who looks on. */
  terminal?: BenchTerminal | undefined;
}

function overview(): string {
  const width = Math.max(...Object.keys(benches).map((name) => name.length));
  const names = Object.entries(benches).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`);
  return `Usage: npm run bench -- NAME [flags] [--json FILE]\n\n${names.join("\n")}\n\n  npm run bench -- NAME --help    the flags of one\n`;
}

/**
 * Runs one invocation and resolves to its exit code: 0, or 1 when the command line cannot be used (one line on `err`) or
 * something failed that should not have.
 */
export async function main(args: readonly string[], options: MainOptions): Promise<number> {
  try {
    return await runNamed(args, options);
  } catch (error) {
    // What a model or an engine refuses is as much the command line's; what fails in them is ours, and keeps its stack.
    const isRefusal = error instanceof UsageError || (error instanceof QuireError && error.status < 500);
    if (!isRefusal) throw error;
    options.err(`bench: ${error.message}\n`);
    return 1;
  }
}

async function runNamed([name, ...rest]: readonly string[], options: MainOptions): Promise<number> {
  if (name === undefined || name === "--help" || name === "-h") {
    options.out(foldHelp(overview()));
    return 0;
  }
  if (name.startsWith("-")) throw new UsageError(`unknown flag ${name}; the benchmark's name comes first`);
  const entry = Object.hasOwn(benches, name) ? benches[name] : undefined;
  if (entry === undefined) {
    throw new UsageError(`unknown benchmark "${name}"; there is: ${Object.keys(benches).join(", ")}`);
  }
  const bench = await entry.load();
  if (rest.includes("--help") || rest.includes("-h")) {
    options.out(foldHelp(`Usage: npm run bench -- ${name} [flags]\n\n${bench.help()}`));
    return 0;
  }
  const { jsonPath, run } = bench.prepare(rest, options.env);
  // A file that cannot be written is said before the run, not after it.
  if (jsonPath !== undefined) await writeOrRefuse(jsonPath, (path) => appendFile(path, ""));
  const machine = describeMachine();
  const startedAt = new Date().toISOString();
  options.out(`${machineLine(machine)}\n`);
  const save = async (outcome: Partial<BenchResult>): Promise<void> => {
    if (jsonPath === undefined) return;
    const { ok, data } = outcome;
    const text = `${JSON.stringify({ bench: name, startedAt, machine, ok, ...data }, undefined, 2)}\n`;
    await writeOrRefuse(jsonPath, (path) => writeWhole(path, text));
  };
  const outcome = await run(contextOf(options, (data) => save({ data })));
  await save(outcome);
  if (jsonPath !== undefined) options.out(`result: ${jsonPath}\n`);
  return outcome.ok ? 0 : 1;
}

function contextOf(options: MainOptions, save: BenchContext["save"]): BenchContext {
  const stop = listenForStop(options.signals, () => performance.now());
  const life = new AbortController();
  void stop.requested.then(() => {
    options.err("bench: stopping early (once more: at once)\n");
    life.abort();
  });
  return {
    print: (line) => options.out(`${line}\n`),
    progress: (line) => options.err(`${line}\n`),
    save,
    signal: life.signal,
    insisted: stop.insisted,
    env: options.env,
    terminal: options.terminal,
  };
}

/** Whoever reads a file meanwhile, or after the process was killed, finds the old text or the new one. */
async function writeWhole(path: string, text: string): Promise<void> {
  if (!(await stat(path)).isFile()) return writeFile(path, text);
  // Its folder may not be ours to write.
  await replaceFile(path, text, READABLE_MODE).catch(() => writeFile(path, text));
}

async function writeOrRefuse(path: string, write: (path: string) => Promise<void>): Promise<void> {
  try {
    await write(path);
  } catch (error) {
    throw new UsageError(`--json: ${path} cannot be written (${(error as NodeJS.ErrnoException).code})`);
  }
}

if (import.meta.main) {
  const { stderr } = process;
  const terminal = { write: (text: string) => void stderr.write(text), columns: () => stderr.columns };
  const options: MainOptions = {
    terminal: stderr.isTTY ? terminal : undefined,
    env: process.env,
    signals: process,
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
  };
  process.exit(await main(process.argv.slice(2), options));
}
