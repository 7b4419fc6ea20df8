/** `quire pull REPO`: a model from the hub into a folder that `quire serve` and `quire start` take. */
import { join } from "node:path";
import type { Command } from "./command.ts";
import { describeFlags, type FlagValues, parseHttpUrl, parseInteger, parseText, parseWithOperand } from "./flags.ts";
import { HubClient } from "./pull/hub-client.ts";
import { PullProgress } from "./pull/progress.ts";
import { pullModel } from "./pull/pull-model.ts";
import { patience } from "./pull/retry.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

const pullFlags = {
  revision: { help: "branch, tag or commit", placeholder: "NAME", fallback: "main", parse: parseRevision },
  endpoint: {
    help: "address of the hub",
    placeholder: "URL",
    env: "HF_ENDPOINT",
    fallback: "https://huggingface.co",
    parse: parseEndpoint,
  },
  out: {
    help: "folder of the model; without it .data/models/ and the repository's name",
    placeholder: "DIR",
    parse: parseText,
  },
  include: {
    help: "which weights, with * and ?, such as *Q4_K_M.gguf; without it model.safetensors, its shards, or the one GGUF file",
    placeholder: "GLOB",
    parse: parseText,
  },
  concurrency: { help: "files at a time", placeholder: "N", fallback: "4", parse: parseInteger({ min: 1, max: 16 }) },
} as const;

/** As a shell reports a command that Ctrl-C ended. */
const interruptedCode = 130;

/** The command. */
export const pullCommand: Command = {
  help: () =>
    `Usage: quire pull REPO [flags]\n\n  REPO     OWNER/NAME on the hub; HF_TOKEN is sent where it is set\n\n${describeFlags(pullFlags)}\n`,
  async run(args) {
    const missing = "pull needs a repository: OWNER/NAME";
    const { operand: repo, values } = parseWithOperand(pullFlags, args, { env: process.env, missing });
    return runPull(parseRepo(repo), values);
  },
};

async function runPull(repo: string, values: FlagValues<typeof pullFlags>): Promise<number> {
  const token = readToken(process.env);
  const { stderr } = process;
  const progress = new PullProgress({
    write: (text) => stderr.write(text),
    isTerminal: stderr.isTTY === true,
    columns: () => stderr.columns ?? 80,
    nowMs: () => performance.now(),
  });
  const stop = new AbortController();
  process.channel?.unref();
  const { requested } = listenForStop(process, () => performance.now());
  void requested.then((why) => stop.abort(why));
  const out = values.out ?? join(".data/models", repo.split("/").at(-1)!);
  const { endpoint, revision, include, concurrency } = values;
  try {
    const { commit, paths, downloadedCount } = await pullModel(
      { repo, revision, out, include, concurrency },
      {
        hub: new HubClient({ endpoint, token, patience, fetch }),
        patience,
        signal: stop.signal,
        random: Math.random,
        observer: progress,
      },
    );
    const news = downloadedCount === 0 ? "already there" : `${downloadedCount} of ${paths.length} files downloaded`;
    const model = paths.length > 1 || paths[0] === undefined ? out : join(out, paths[0]);
    process.stdout.write(`quire: ${out} holds ${repo} at ${commit} (${news})\nquire: quire serve --model ${model}\n`);
    return 0;
  } catch (error) {
    progress.close();
    if (!stop.signal.aborted) throw error;
    stderr.write(`quire: ${stop.signal.reason}: stopped; the same command goes on from here\n`);
    return interruptedCode;
  } finally {
    progress.close();
  }
}

function parseRepo(text: string): string {
  if (/^(?:[A-Za-z0-9][\w.-]{0,95}\/)?[A-Za-z0-9][\w.-]{0,95}$/.test(text)) return text;
  throw new UsageError(`"${text}" is not a repository's name: OWNER/NAME`);
}

function parseRevision(text: string): string {
  if (/^[\w][\w./-]{0,250}$/.test(text) && !text.includes("..")) return text;
  throw new UsageError("must be a branch, tag or commit");
}

function parseEndpoint(text: string): string {
  const endpoint = parseHttpUrl(text);
  const { username, password, search, hash } = new URL(endpoint);
  if (username + password + search + hash === "") return endpoint;
  throw new UsageError("must hold no user, password, ? or #");
}

/** Not a flag: flags are seen by other users and quoted in messages. */
function readToken(env: NodeJS.ProcessEnv): string | undefined {
  const token = env.HF_TOKEN?.trim() || undefined;
  if (token === undefined || /^[\x21-\x7e]+$/.test(token)) return token;
  throw new UsageError("HF_TOKEN holds characters that no token has");
}
