/** A child of `quire start`: its own process group, its output in a log file, its warnings passed on. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { ChildLog } from "./child-log.ts";

/** What to run and where its output goes. */
export interface ChildOptions {
  /** How messages call it: `edge`, `engine`. */
  name: string;
  program: string;
  args: readonly string[];
  cwd: string;
  env: NodeJS.ProcessEnv;
  logPath: string;
  /** Called with each line of output that a user should see. */
  onWarning(line: string): void;
  /** True for a line that {@link onWarning} gets. */
  isWarning(line: string): boolean;
  /** True for a line that is not worth a place in the log. */
  isNoise?(line: string): boolean;
}

/** A running child. */
export interface Child {
  readonly name: string;
  /** Undefined where it could not be started. */
  readonly pid: number | undefined;
  readonly logPath: string;
  /** Resolves, never rejects, when the process is gone; the text says how it ended. */
  readonly ended: Promise<string>;
  /** Undefined while it runs. */
  readonly endedWith: string | undefined;
  /** The last lines of its output, oldest first. */
  lastLines(): string[];
  /** Asks it to end (SIGTERM), kills the whole group after `graceMs`; resolves when nothing of it is left. */
  stop(graceMs: number): Promise<void>;
  /** Kills the whole group at once. */
  kill(): void;
}

const lastLinesMax = 20;

/** Starts a child. It also ends when this process ends without stopping it: the IPC channel tells it. */
export function startChild(options: ChildOptions): Child {
  const log = new ChildLog({ path: options.logPath, onGap: (message) => options.onWarning(message) });
  const child = spawn(options.program, options.args, {
    cwd: options.cwd,
    env: options.env,
    stdio: ["ignore", "pipe", "pipe", "ipc"],
    detached: process.platform !== "win32",
  });
  child.channel?.unref();
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue;
    createInterface({ input: stream }).on("line", (line) => {
      if (options.isNoise?.(line) === true) return;
      log.write(line);
      lines.push(line);
      if (lines.length > lastLinesMax) lines.shift();
      if (options.isWarning(line)) options.onWarning(line);
    });
  }
  let isGone = false;
  let endedWith: string | undefined;
  const ended = new Promise<string>((resolve) => {
    const end = (how: string): void => {
      endedWith ??= how;
      log.close();
      resolve(endedWith);
    };
    child.once("error", (error) => end(`cannot start: ${error.message}`));
    child.once("exit", () => {
      killGroup(child);
      isGone = true;
    });
    child.once("close", (code, signal) => end(code === null ? `ended by ${signal}` : `ended with exit code ${code}`));
  });
  const kill = (): void => {
    if (!isGone) killGroup(child);
  };
  return {
    name: options.name,
    pid: child.pid,
    logPath: options.logPath,
    ended,
    get endedWith() {
      return endedWith;
    },
    lastLines: () => [...lines],
    stop: async (graceMs) => {
      if (!isGone) child.kill("SIGTERM");
      const timer = setTimeout(kill, graceMs);
      await ended;
      clearTimeout(timer);
    },
    kill,
  };
}

/** SIGKILL to the group: also what outlived its parent in it. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    if (process.platform === "win32") child.kill("SIGKILL");
    else process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ESRCH" && code !== "EPERM") throw error;
  }
}
