/** `quire start` as a user runs it: the real command, on free ports, in a folder of its own, gone afterwards. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { quirePath } from "../../cli/run-quire.ts";
import { repositoryRoot } from "../../style/source-tree.ts";

const readyMsMax = 90_000;
const pollMs = 50;

/** What the ready block says. */
export interface Ready {
  url: string;
  apiKey: string;
  playgroundUrl: string;
  engineUrl: string;
  enginePid: number;
  dataPath: string;
  /** The line to paste into a shell. */
  curl: string;
}

/** A process below the command. */
export interface Descendant {
  pid: number;
  name: string;
  /** Program and arguments, blanks between. */
  command: string;
}

/** How a process ended. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A running `quire start`. */
export interface QuireProcess extends Ready {
  /** Of the command that was spawned (npm, when asked for). */
  pid: number;
  stdout(): string;
  stderr(): string;
  ended: Promise<Ended>;
  /** Living processes that descend from the command, itself among them; Linux only, elsewhere always empty. */
  descendants(): Descendant[];
  /** Sends a signal and waits for the end. */
  signal(name: NodeJS.Signals): Promise<Ended>;
  /** Ends it if it still runs, at once. */
  kill(): Promise<void>;
}

/** How it is started. */
export interface StartOptions {
  dataPath: string;
  /** Through `npm start`, as the README says, rather than by the program itself. */
  throughNpm?: boolean;
  args?: readonly string[];
}

/** Starts it and waits for its ready block. @throws {Error} with its whole output when that does not come. */
export async function startQuire(options: StartOptions): Promise<QuireProcess> {
  const args = ["--port=0", "--engine-port=0", `--data=${options.dataPath}`, ...(options.args ?? [])];
  const mark = `QUIRE_E2E_MARK=${randomUUID()}`;
  const [program, ...before] = options.throughNpm
    ? ["npm", "start", "--silent", "--"]
    : [process.execPath, quirePath, "start"];
  const child = spawn(program ?? "", [...before, ...args], {
    cwd: repositoryRoot,
    env: { QUIRE_MODEL: "weights/house-0", ...process.env, [mark.split("=")[0] ?? ""]: mark.split("=")[1] },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output = collect(child);
  const ended = new Promise<Ended>((resolve) => child.once("close", (code, signal) => resolve({ code, signal })));
  const kill = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
    await ended;
    for (const { pid } of marked(mark)) killQuietly(pid);
  };
  try {
    const ready = await untilReady(child, output);
    return {
      ...ready,
      pid: child.pid ?? 0,
      ...output,
      ended,
      descendants: () => marked(mark),
      signal: (name) => {
        child.kill(name);
        return ended;
      },
      kill,
    };
  } catch (error) {
    await kill();
    throw error;
  }
}

interface Output {
  stdout(): string;
  stderr(): string;
}

function collect(child: ChildProcess): Output {
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]?.setEncoding("utf8").on("data", (text: string) => {
      texts[name] += text;
    });
  }
  return { stdout: () => texts.stdout, stderr: () => texts.stderr };
}

async function untilReady(child: ChildProcess, output: Output): Promise<Ready> {
  const endMs = performance.now() + readyMsMax;
  while (!output.stdout().includes("Ctrl-C stops everything.")) {
    if (child.exitCode !== null || performance.now() > endMs) {
      throw new Error(`quire start did not get ready:\n${output.stdout()}\n${output.stderr()}`);
    }
    await sleep(pollMs);
  }
  return parseReady(output.stdout());
}

/** Reads the block by the words in front of its facts. */
function parseReady(text: string): Ready {
  const fact = (pattern: RegExp): string => {
    const found = pattern.exec(text)?.[1];
    if (found === undefined) throw new Error(`the ready block has no ${pattern}:\n${text}`);
    return found;
  };
  return {
    url: fact(/^Quire is ready on (http:\S+)$/m),
    apiKey: fact(/^ *API key +(\S+)$/m),
    playgroundUrl: fact(/^ *playground +(\S+)$/m),
    engineUrl: fact(/^ *engine +(http:\S+), pid \d+$/m),
    enginePid: Number(fact(/^ *engine +http:\S+, pid (\d+)$/m)),
    dataPath: fact(/^ *data +(\S+)$/m),
    curl: fact(/^(curl .*)$/m),
  };
}

/** Living processes whose environment carries the mark. */
function marked(mark: string): Descendant[] {
  if (!existsSync("/proc/self/environ")) return [];
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((pid) => {
      try {
        const isOurs = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(mark);
        if (!isOurs) return [];
        const name = readFileSync(`/proc/${pid}/comm`, "utf8").trim();
        return [
          { pid: Number(pid), name, command: readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ") },
        ];
      } catch {
        // Ended meanwhile, or somebody else's.
        return [];
      }
    });
}

/** SIGKILL to what may be gone already. */
export function killQuietly(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** A folder below the system's temporary one, and how to remove it. */
export async function temporaryFolder(): Promise<{ path: string; remove(): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), "quire-e2e-"));
  return { path, remove: () => rm(path, { recursive: true, force: true, maxRetries: 3 }) };
}

/** Asks until the answer is true. @throws {Error} naming what did not come. */
export async function until(isTrue: () => boolean | Promise<boolean>, what: string, msMax = 30_000): Promise<void> {
  const endMs = performance.now() + msMax;
  while (!(await isTrue())) {
    if (performance.now() > endMs) throw new Error(`waited ${msMax} ms for ${what}`);
    await sleep(pollMs);
  }
}
