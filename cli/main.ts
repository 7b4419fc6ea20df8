/** The `quire` command: finds the subcommand; every operating error ends as one line and exit code 1. */
import { readFileSync } from "node:fs";
import { QuireError } from "../protocol/errors.ts";
import { StoreError } from "../storage/contract.ts";
import type { Command } from "./command.ts";
import { foldHelp } from "./fold-help.ts";
import { didYouMean } from "./near-miss.ts";
import { UsageError } from "./usage-error.ts";

const overview = `quire: long-context language models from the edge

Usage: quire <command> [flags]

  start              the edge (Worker, Durable Objects, local object store) and one engine on this machine
  serve              an engine alone
  pull               a model from the hub, into a folder
  publish            what an edge needs of a model, into its bucket
  inspect            what a model is, what its context costs, and what fits into which memory
  devices            what can compute here: the CPU, and the GPU with its features and limits
  keys               API keys: create, list, revoke, rotate
  sessions           stored conversations: ls, show, rm, export, import
  gc                 deletes what no session names, what is too old, and what is beyond a tenant's bytes
  verify             checks every checksum and reference in a store
  rekey              encrypts what is stored under the first key of QUIRE_STORE_KEYS
  trace              what happened to one request, as a timeline
  calibrate          measures what "auto" should choose on a model
  profile-heads      measures which KV heads of a model look back, for selections with heads(SHARE)
  compile-tokenizer  a model's vocabulary as one file that the edge opens at once

  quire <command> --help    the flags of a command
  quire --version           the version
`;

/** Commands are loaded when they are asked for: `--help` must not wait for a device or for wrangler. */
async function loadCommand(name: string): Promise<Command | undefined> {
  switch (name) {
    case "start":
      return (await import("./start.ts")).startCommand;
    case "serve":
      return (await import("./serve.ts")).serveCommand;
    case "calibrate":
      return (await import("./calibrate.ts")).calibrateCommand;
    case "profile-heads":
      return (await import("./profile-heads.ts")).profileHeadsCommand;
    case "compile-tokenizer":
      return (await import("./compile-tokenizer.ts")).compileTokenizerCommand;
    case "pull":
      return (await import("./pull.ts")).pullCommand;
    case "publish":
      return (await import("./publish.ts")).publishCommand;
    case "keys":
      return (await import("./keys.ts")).keysCommand;
    case "devices":
      return (await import("./devices.ts")).devicesCommand;
    case "trace":
      return (await import("./trace.ts")).traceCommand;
    case "sessions":
      return (await import("./sessions.ts")).sessionsCommand;
    case "gc":
      return (await import("./gc.ts")).gcCommand;
    case "verify":
      return (await import("./verify.ts")).verifyCommand;
    case "rekey":
      return (await import("./rekey.ts")).rekeyCommand;
    case "inspect":
      return (await import("./inspect.ts")).inspectCommand;
    default:
      return undefined;
  }
}

/** Runs one invocation and resolves to its exit code; arguments are those after the program's name. */
export async function main(args: readonly string[]): Promise<number> {
  // `quire help start` is `quire start --help`.
  const [name, ...rest] = args[0] === "help" && args[1] !== undefined ? [args[1], "--help"] : args;
  try {
    if (name === undefined || name === "--help" || name === "-h" || name === "help") {
      process.stdout.write(foldHelp(overview));
      return 0;
    }
    if (name === "--version" || name === "-v") {
      process.stdout.write(`${version()}\n`);
      return 0;
    }
    if (name.startsWith("-")) throw new UsageError(`unknown flag ${name}; quire --help lists the commands`);
    const command = await loadCommand(name);
    if (command === undefined) {
      throw new UsageError(`unknown command "${name}"${didYouMean(name, commandNames())}; quire --help lists them`);
    }
    if (rest.includes("--help") || rest.includes("-h")) {
      process.stdout.write(foldHelp(command.help()));
      return 0;
    }
    return await command.run(rest);
  } catch (error) {
    if (error instanceof UsageError || error instanceof QuireError || error instanceof StoreError) {
      process.stderr.write(`quire: ${error.message}\n`);
      return 1;
    }
    throw error;
  }
}

/** As the overview lists them. */
function commandNames(): string[] {
  return [...overview.matchAll(/^ {2}([a-z-]+) {2,}/gm)].map(([, name]) => name ?? "");
}

function version(): string {
  const text = readFileSync(new URL("../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}
