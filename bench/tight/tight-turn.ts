/**
 * One turn of a stored session on an engine whose pool holds a part of its context, in a process of its own, so that its resident memory tells of
 * nothing else. It reads a {@link TightTurn} as JSON and prints a {@link TightFigures}.
 */
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { openEngine } from "../../engine/open.ts";
import { ENGINE_DEFAULTS, systemClock } from "../../engine/settings.ts";
import { BLOCK_TOKENS, type KvPool } from "../../kernels/contract.ts";
import type { ModelRunner } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { QuireError } from "../../protocol/errors.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { FsStore } from "../../storage/fs-store.ts";
import { CHUNK_ROWS, openBenchModel } from "../decode/bench-model.ts";
import { residentMemory } from "../decode/resident-memory.ts";
import type { StoredTurns } from "../resume/measure-resume.ts";
import { gapMs } from "../resume/measure-resume.ts";
import { startTurn } from "../schedule/bench-engine.ts";
import type { ShapeName } from "../shapes.ts";
import { OverlaidStore } from "./overlaid-store.ts";

/** Of a turn that the engine refused; it has written why. */
export const REFUSED_EXIT_CODE = 2;

/** What to run. */
export interface TightTurn {
  shape: ShapeName;
  seed: number;
  threads: number | undefined;
  /** Of the page store. */
  folder: string;
  session: StoredTurns;
  prompt: readonly number[];
  replyTokens: number;
  selection: { policy: SelectionConfiguration; budgetTokens: number; exact: boolean };
  /** The part of the context that the pool has room for; 1: all of it, and all of it is read before the turn. */
  poolShare: number;
  /** Host memory for all that leaves the pool, or for what the turn computes and the store may not have yet. */
  behind: "host" | "disk";
}

/** What was seen. */
export interface TightFigures {
  ids: number[];
  /** Median between tokens after the first. */
  msPerToken: number;
  /** Copied into the pool and out of it between the first token and the last, per token. */
  bytesInPerToken: number;
  bytesOutPerToken: number;
  pagesSelected: number;
  pagesMissed: number;
  recomputedTokens: number;
  poolBytes: number;
  hostBytes: number;
  /** Of the process after the turn. */
  residentBytes: number;
}

/** Counts what is copied; steps are the runner's own. */
function counted(runner: ModelRunner): { runner: ModelRunner; moved: { inBytes: number; outBytes: number } } {
  const { pool } = runner;
  const moved = { inBytes: 0, outBytes: 0 };
  const countedPool: KvPool = {
    ...{ spec: pool.spec, blockBytes: pool.blockBytes, openSlotBytes: pool.openSlotBytes },
    summaryBytes: pool.summaryBytes,
    readBlock(id) {
      moved.outBytes += pool.blockBytes;
      return pool.readBlock(id);
    },
    writeBlock(id, bytes) {
      moved.inBytes += pool.blockBytes;
      pool.writeBlock(id, bytes);
    },
    readSummary: (slot, kind) => pool.readSummary(slot, kind),
    writeSummary: (...args) => pool.writeSummary(...args),
    readOpen: (slot, tokenCount) => pool.readOpen(slot, tokenCount),
    writeOpen: (slot, tokenCount, bytes) => pool.writeOpen(slot, tokenCount, bytes),
  };
  const { config, fingerprint, rowsMax, sampledMax } = runner;
  const step: ModelRunner["step"] = (sequences) => runner.step(sequences);
  const discard: ModelRunner["discard"] = (checkpoint) => runner.discard(checkpoint);
  return { runner: { config, fingerprint, rowsMax, sampledMax, pool: countedPool, step, discard }, moved };
}

/** Runs it; the process is good for nothing else afterwards, as far as memory goes. */
export async function runTightTurn(what: TightTurn): Promise<TightFigures> {
  const { session, prompt, replyTokens, selection, poolShare } = what;
  const contextTokens = session.tokens.length + prompt.length + replyTokens;
  const { summary } = policyNamed(selection.policy);
  const model = await openBenchModel({
    ...{ shape: what.shape, seed: what.seed, threads: what.threads, contextTokens, kvEncoding: "int8" },
    summaryKinds: summary === undefined ? [] : [summary],
    poolTokens: poolShare < 1 ? Math.ceil(contextTokens * poolShare) : undefined,
  });
  const { runner, moved } = counted(model.runner);
  const newBlocks = Math.ceil(contextTokens / BLOCK_TOKENS) - Math.floor(session.tokens.length / BLOCK_TOKENS);
  const hostBlocks = what.behind === "host" ? Math.ceil(contextTokens / BLOCK_TOKENS) : newBlocks;
  const hostPoolBytes = poolShare < 1 ? hostBlocks * model.config.layerCount * runner.pool.blockBytes : 0;
  const store = new OverlaidStore(await FsStore.open(what.folder));
  const opened = openEngine({
    ...{ runner, store, numericsId: model.device.numericsId, clock: systemClock, log() {} },
    settings: {
      ...ENGINE_DEFAULTS,
      ...{ engineId: "bench", modelId: "bench", contextTokensMax: model.config.contextTokensMax },
      ...{ runningMax: 1, stepRowsMax: CHUNK_ROWS, turnMsMax: 3_600_000, hostPoolBytes },
      resume: poolShare < 1 ? "lazy" : "full",
    },
  });
  const turn = startTurn(opened, {
    ...{ namespace: session.namespace, session: { id: session.sessionId }, spans: [...session.spans] },
    ...{ tokens: [...session.tokens, ...prompt], turnStart: session.tokens.length, maxTokens: replyTokens, selection },
  });
  while (turn.tokensMs.length === 0) await Promise.race([turn.ended, sleep(1)]);
  const { inBytes, outBytes } = moved;
  const ended = await turn.ended;
  const tokens = replyTokens - 1;
  const figures = {
    ids: ended.ids,
    msPerToken: gapMs(ended),
    bytesInPerToken: (moved.inBytes - inBytes) / tokens,
    bytesOutPerToken: (moved.outBytes - outBytes) / tokens,
    pagesSelected: ended.usage.pagesSelected,
    pagesMissed: ended.usage.pagesMissed,
    recomputedTokens: ended.usage.recomputedTokens,
    poolBytes: model.memory.poolBytes,
    hostBytes: opened.engine.status.hostPool.bytes,
    residentBytes: residentMemory().residentBytes,
  };
  await opened.engine.stop(60_000);
  await model.close();
  return figures;
}

if (import.meta.main) {
  try {
    const figures = await runTightTurn((await json(process.stdin)) as TightTurn);
    process.stdout.write(`${JSON.stringify(figures)}\n`);
  } catch (error) {
    if (!(error instanceof QuireError) || error.status >= 500) throw error;
    process.stderr.write(error.message);
    process.exit(REFUSED_EXIT_CODE);
  }
}
