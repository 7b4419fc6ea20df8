/** llama.cpp's own benchmark program as a peer. */
import { execFile } from "node:child_process";
import { basename } from "node:path";
import { promisify } from "node:util";
import { UsageError } from "../../cli/usage-error.ts";
import type { Peer, PeerCase, PeerRow } from "./peer.ts";

/** Filling a long context takes llama.cpp minutes. */
const RUN_MS_MAX = 60 * 60 * 1000;
const REPETITIONS = 2;

/** What is measured: a binary with a model. */
export interface LlamaBenchOptions {
  path: string;
  ggufPath: string;
  threads: number;
}

/** Runs the program once per case, with flash attention off and on. */
export function llamaBenchPeer(options: LlamaBenchOptions): Peer {
  return {
    name: basename(options.path),
    async measure(item, signal) {
      const run = promisify(execFile);
      try {
        const args = llamaBenchArgs(options, item);
        const { stdout } = await run(options.path, args, { signal, timeout: RUN_MS_MAX, maxBuffer: 2 ** 26 });
        return parseLlamaBench(stdout, item);
      } catch (error) {
        if (error instanceof UsageError || signal.aborted) throw error;
        const { stderr, message } = error as Error & { stderr?: string };
        const reason = (stderr || message).trim().split("\n").at(-1);
        throw new UsageError(`${options.path} failed: ${reason}`);
      }
    },
  };
}

/** The program's arguments for a case. */
export function llamaBenchArgs({ ggufPath, threads }: LlamaBenchOptions, item: PeerCase): string[] {
  const [prompt, generated] = item.kind === "prefill" ? [item.tokenCount, 0] : [0, item.tokenCount];
  return [
    ...["-m", ggufPath, "-t", String(threads), "-ngl", "0", "-fa", "0,1", "-r", String(REPETITIONS), "-o", "json"],
    ...["-p", String(prompt), "-n", String(generated), "-d", String(item.contextTokens)],
  ];
}

/** Rows of the program's JSON. @throws {UsageError} when it is of another shape. */
export function parseLlamaBench(stdout: string, item: PeerCase): PeerRow[] {
  const start = stdout.indexOf("[");
  let runs: unknown;
  try {
    runs = JSON.parse(stdout.slice(start));
  } catch {
    throw new UsageError("llama-bench wrote no JSON");
  }
  if (!Array.isArray(runs) || runs.length === 0) throw new UsageError("llama-bench measured nothing");
  return runs.map((run: Record<string, unknown>) => {
    const samples = run.samples_ts;
    if (!Array.isArray(samples) || samples.length === 0 || !samples.every((rate) => typeof rate === "number")) {
      throw new UsageError("llama-bench's JSON has no samples_ts");
    }
    const rates = samples.toSorted((a: number, b: number) => a - b);
    const isOn = ["1", "true", "on"].includes(String(run.flash_attn));
    return {
      ...item,
      tokensPerS: rates[Math.floor((rates.length - 1) / 2)]!,
      tokensPerSBest: rates.at(-1)!,
      variant: `flash attention ${isOn ? "on" : "off"}`,
    };
  });
}
