/** Runs the bench command in this process, as its entry does in its own. */
import { EventEmitter } from "node:events";
import { main } from "../../bench/main.ts";

/** How a run ended and what it wrote. */
export interface BenchRun {
  code: number;
  out: string;
  err: string;
}

/** Runs `npm run bench -- ...args`; `signals` takes the place of the process's. */
export async function runBench(
  args: readonly string[],
  options: { env?: NodeJS.ProcessEnv; signals?: EventEmitter } = {},
): Promise<BenchRun> {
  let out = "";
  let err = "";
  const code = await main(args, {
    env: options.env ?? {},
    signals: options.signals ?? new EventEmitter(),
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
  });
  return { code, out, err };
}
