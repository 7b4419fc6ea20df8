/** Runs one stage as a process that cannot take the others with it. */
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { GpuStage } from "./stages.ts";

/** What came of a stage. */
export interface StageOutcome {
  name: string;
  /** `failed`: ended with another code than 0; `timeout`: killed at its limit; `stopped`: killed with the run; `no time`: never begun. */
  status: "done" | "failed" | "timeout" | "stopped" | "no time";
  seconds: number;
  /** What its benchmark wrote; also of a stage that failed or was killed, as far as it came. */
  result?: unknown;
  /** The end of what it printed. */
  tail?: string;
}

const TAIL_CHARS = 4000;
const KILL_MS_MAX = 5000;
const MAIN = join(import.meta.dirname, "../main.ts");

/** Resolves when the process has ended, by itself or killed at its limit or with `signal`. Never rejects. */
export async function runStage(
  { name, args, limitS }: GpuStage,
  {
    folder,
    env,
    signal,
    program = MAIN,
    after = onTimer,
  }: {
    folder: string;
    env: NodeJS.ProcessEnv;
    signal: AbortSignal;
    /** For tests: what runs in the place of `bench/main.ts`. */
    program?: string;
    /** For tests: calls `fire` after so many milliseconds, unless what it returns is called before. */
    after?: (ms: number, fire: () => void) => () => void;
  },
): Promise<StageOutcome> {
  const jsonPath = join(folder, `${name}.json`);
  const startMs = performance.now();
  const child = spawn(process.execPath, [program, ...args, `--json=${jsonPath}`], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let tail = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      tail = (tail + text).slice(-TAIL_CHARS);
    });
  }
  const ended = Promise.withResolvers<number | null>();
  child.once("close", (code) => ended.resolve(code));
  child.once("error", (error) => {
    tail += error.message;
    ended.resolve(null);
  });
  let isLate = false;
  const kill = (): void => {
    child.kill("SIGKILL");
    // One that hangs in its driver does not end even so: the run goes on without it.
    setTimeout(() => ended.resolve(null), KILL_MS_MAX).unref();
  };
  const forget = after(limitS * 1000, () => {
    isLate = true;
    kill();
  });
  signal.addEventListener("abort", kill, { once: true });
  const code = await ended.promise;
  forget();
  signal.removeEventListener("abort", kill);
  const result = await readJson(jsonPath);
  const status = isLate ? "timeout" : code === 0 ? "done" : signal.aborted ? "stopped" : "failed";
  return {
    name,
    status,
    seconds: (performance.now() - startMs) / 1000,
    ...(result === undefined ? {} : { result }),
    tail,
  };
}

function onTimer(ms: number, fire: () => void): () => void {
  const timer = setTimeout(fire, ms);
  return () => clearTimeout(timer);
}

/** undefined where the stage has written nothing, or only half of it. */
async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch {
    return undefined;
  }
}
