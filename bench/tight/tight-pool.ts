/** `npm run bench -- tight-pool`: what it costs to decode in a pool that holds a part of the context. */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ENGINE_ENVIRONMENT, ENGINE_NODE_FLAGS } from "../../cli/engine-start.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { FsStore } from "../../storage/fs-store.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { openBenchModel } from "../decode/bench-model.ts";
import { modelFlags } from "../decode/flags.ts";
import { contentOf, fillContext } from "../resume/content.ts";
import { storeFilledSession } from "../resume/stored-session.ts";
import { countFlag, turnFlags } from "../resume/turn-flags.ts";
import { type Column, renderTable } from "../table.ts";
import { REFUSED_EXIT_CODE, type TightFigures, type TightTurn } from "./tight-turn.ts";

const TURN = fileURLToPath(new URL("./tight-turn.ts", import.meta.url));

/** One line of the result. */
export interface TightRow extends Omit<TightFigures, "ids"> {
  /** Of the context, in the pool; and where the rest is. */
  pool: number;
  behind: "-" | TightTurn["behind"];
  mode: "exact" | "default";
  tokensPerS: number;
  /** Against a pool that holds everything. */
  speedShare: number;
  missedShare: number;
  /** Exact: whether the reply is that of a pool that holds everything. */
  identical: boolean | undefined;
}

const { shape, threads, seed } = modelFlags;
const flags = {
  ...{ shape, threads, seed },
  context: countFlag("tokens of the stored session, a multiple of 256", "16384", { min: 256, max: 131_072 }),
  percent: countFlag("of the context that the smaller pool holds", "25", { min: 1, max: 99 }),
  ...turnFlags({ turns: "the turn", budget: "2048" }),
  prompt: countFlag("tokens of the turn", "64", { min: 1, max: 4_096 }),
  tokens: countFlag("tokens of the reply", "64", { min: 2, max: 4_096 }),
} as const;

const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
const columns: readonly Column<TightRow>[] = [
  { header: "pool", cell: ({ pool }) => pool.toFixed(2) },
  { header: "behind it", align: "left", cell: ({ behind }) => behind },
  { header: "mode", align: "left", cell: ({ mode }) => mode },
  { header: "tokens/s", cell: ({ tokensPerS }) => tokensPerS.toFixed(1) },
  { header: "of resident", cell: ({ speedShare }) => speedShare.toFixed(2) },
  { header: "MB in/token", cell: ({ bytesInPerToken }) => megabytes(bytesInPerToken) },
  { header: "MB out/token", cell: ({ bytesOutPerToken }) => megabytes(bytesOutPerToken) },
  { header: "missed %", cell: ({ missedShare }) => (100 * missedShare).toFixed(2) },
  { header: "pool MB", cell: ({ poolBytes }) => megabytes(poolBytes) },
  { header: "host MB", cell: ({ hostBytes }) => megabytes(hostBytes) },
  { header: "process MB", cell: ({ residentBytes }) => megabytes(residentBytes) },
  { header: "identical", align: "left", cell: ({ identical }) => (identical === undefined ? "-" : String(identical)) },
];

/** The benchmark as the registry names it. */
export const tightPoolBench = defineBench({
  summary:
    "Stores a session in a folder, then runs a turn of it in processes of their own: with a pool that holds all of it, and with one that holds a part, the\n" +
    "rest in host memory or in the folder. Seeded weights and KV (keys that drift, as those of a text do).",
  flags,
  async run(values, context) {
    if (values.context % 256 !== 0) throw new UsageError("--context: must be a multiple of 256 (whole segments)");
    const folder = await mkdtemp(join(tmpdir(), "quire-tight-"));
    try {
      const base = await storedTurn(values, folder, context);
      const rows = await measure(base, values.percent / 100, context);
      context.print(`${values.shape}, ${values.context} tokens, ${values.policy} ${values.budget}`);
      for (const line of renderTable(columns, rows)) context.print(line);
      return { ok: rows.every(({ identical }) => identical !== false), data: { settings: values, rows } };
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
});

interface Settings extends Pick<TightTurn, "shape" | "seed"> {
  threads: number | undefined;
  context: number;
  policy: TightTurn["selection"]["policy"];
  budget: number;
  prompt: number;
  tokens: number;
}

/** Leaves the session in the folder; its model is closed again. */
async function storedTurn(values: Settings, folder: string, { progress }: BenchContext): Promise<TightTurn> {
  const { summary } = policyNamed(values.policy);
  if (summary === undefined) throw new UsageError("--policy: must be one that scores pages");
  const content = await contentOf({ ...values, keys: "drift" }, values.context);
  progress(`storing a session of ${values.context} tokens`);
  const model = await openBenchModel({
    ...{ shape: values.shape, seed: values.seed, threads: values.threads },
    ...{ contextTokens: values.context, summaryKinds: [summary], kvEncoding: "int8" },
  });
  const selection = { policy: values.policy, budgetTokens: values.budget, exact: true };
  const session = {
    ...{ namespace: "00000000000be4c4", sessionId: "tight", tokens: content.context(values.context) },
    spans: [{ end: values.context, how: "dense" }],
  };
  try {
    await fillContext(model, content, values.context, { policy: values.policy, budgetTokens: values.budget });
    await storeFilledSession({ model, store: await FsStore.open(folder), ...session });
  } finally {
    await model.close();
  }
  const { shape, seed, threads } = values;
  const prompt = content.prompt(values.context, 1, values.prompt);
  const turn = { shape, seed, threads, folder, session, prompt, replyTokens: values.tokens, selection };
  return { ...turn, poolShare: 1, behind: "disk" };
}

async function measure(base: TightTurn, share: number, { progress, signal }: BenchContext): Promise<TightRow[]> {
  const rows: TightRow[] = [];
  const whole: Partial<Record<TightRow["mode"], TightFigures>> = {};
  for (const [poolShare, behind] of [
    [1, "-"],
    [share, "host"],
    [share, "disk"],
  ] as const) {
    for (const mode of ["exact", "default"] as const) {
      if (signal.aborted) return rows;
      progress(`a pool of ${poolShare} of the context, ${mode} mode`);
      const selection = { ...base.selection, exact: mode === "exact" };
      const turn = { ...base, selection, poolShare, behind: behind === "-" ? base.behind : behind };
      const { ids, ...figures } = await inProcess(turn);
      whole[mode] ??= { ids, ...figures };
      rows.push({
        ...{ pool: poolShare, behind, mode, ...figures },
        tokensPerS: 1000 / figures.msPerToken,
        speedShare: whole[mode].msPerToken / figures.msPerToken,
        missedShare: figures.pagesMissed / Math.max(1, figures.pagesSelected),
        identical: mode === "exact" ? ids.join() === whole[mode].ids.join() : undefined,
      });
    }
  }
  return rows;
}

/** @throws {UsageError} for what the engine refuses. @throws {Error} with what it wrote, when it ends with anything else but its figures. */
async function inProcess(turn: TightTurn): Promise<TightFigures> {
  const child = spawn(process.execPath, [...ENGINE_NODE_FLAGS, TURN], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...ENGINE_ENVIRONMENT, ...process.env },
  });
  child.stdin.end(JSON.stringify(turn));
  let [out, err] = ["", ""];
  child.stdout.on("data", (data: Buffer) => {
    out += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    err += data.toString();
  });
  const code = await new Promise((resolve) => child.once("close", resolve));
  if (code === REFUSED_EXIT_CODE) throw new UsageError(`a pool of ${turn.poolShare} of the context: ${err}`);
  if (code !== 0) throw new Error(`a turn's process ended with ${code}: ${err.slice(0, 2000)}`);
  return JSON.parse(out) as TightFigures;
}
