/** `npm run bench -- peers`: this engine and others on the same machine, in the same run, in turns. */
import { availableParallelism, loadavg } from "node:os";
import type { FlagValues } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { type BenchModel, openBenchModel } from "../decode/bench-model.ts";
import { summaryKindsOf } from "../decode/decode.ts";
import { fillRandom } from "../decode/fill-random.ts";
import { type DecodeCase, measureDecode } from "../decode/measure-decode.ts";
import { measurePrefill } from "../prefill/measure-prefill.ts";
import { renderTable } from "../table.ts";
import { peersFlags } from "./flags.ts";
import { llamaBenchPeer } from "./llama-bench.ts";
import { nodeLlamaPeer, ownModulesPath } from "./node-llama.ts";
import type { Peer, PeerCase } from "./peer.ts";
import { besideRows, CONTEXTS, computeRatios, type NamedPeerRow, type OurRow, type Ratios } from "./ratios.ts";
import { withSeededHeads } from "./seeded-heads.ts";

type PeersValues = FlagValues<typeof peersFlags>;

const THREADS_DEFAULT_MAX = 8;

/** Rows of both sides, as they come. */
interface Rows {
  ours: OurRow[];
  peers: NamedPeerRow[];
  /** Processes that wanted a core, after each round. */
  loadAverages: number[];
}

/** The benchmark as the registry names it. */
export const peersBench = defineBench({
  summary:
    "Measures this engine and its peers (llama-bench, node-llama-cpp) in turns and prints the ratios. Contexts are filled with seeded KV.",
  flags: peersFlags,
  async run(given, context) {
    const { gguf } = given;
    if (gguf === undefined) throw new UsageError("--gguf PATH is needed: `make-shape` writes one");
    const threads = given.threads ?? Math.min(availableParallelism(), THREADS_DEFAULT_MAX);
    const peers = findPeers(given, gguf, threads);
    const contextTokens = Math.max(given.prefill, ...given.contexts.map((each) => each + given.tokens));
    const model = await openBenchModel({
      ...{ shape: given.shape, model: given.model, seed: given.seed, threads, contextTokens },
      ...{ kvEncoding: "int8", summaryKinds: summaryKindsOf([given.policy, given.beside]) },
    });
    const named = (selection: SelectionConfiguration) => withSeededHeads(selection, model.config, given.seed);
    const values = { ...given, policy: named(given.policy), beside: named(given.beside) };
    const rows: Rows = { ours: [], peers: [], loadAverages: [] };
    try {
      for (let round = 0; round < values.rounds && !context.signal.aborted; round++) {
        await runRound({ values, model, peers, context, rows });
        rows.loadAverages.push(loadavg()[0] ?? 0);
      }
    } catch (error) {
      // What was measured until Ctrl-C is reported.
      if (!context.signal.aborted) throw error;
    } finally {
      await model.close();
    }
    return report({ values, threads, context, rows });
  },
});

function findPeers(values: PeersValues, ggufPath: string, threads: number): Peer[] {
  const path = values["llama-bench"];
  const found = [
    path === undefined ? undefined : llamaBenchPeer({ path, ggufPath, threads }),
    nodeLlamaPeer({ modulesPath: values.modules ?? ownModulesPath, ggufPath, threads }),
  ].filter((peer) => peer !== undefined);
  if (found.length > 0) return found;
  throw new UsageError("no peer found: give --llama-bench PATH, or --modules DIR with node-llama-cpp in it");
}

interface Round {
  values: PeersValues;
  model: BenchModel;
  peers: readonly Peer[];
  context: BenchContext;
  rows: Rows;
}

/** Prefill, then every context: ours, then each peer. Prefill overwrites the start of the context, so the fill comes behind it. */
async function runRound({ values, model, peers, context, rows }: Round): Promise<void> {
  const { tokens, seed, prefill } = values;
  const addOurs = (row: OurRow) => {
    rows.ours.push(row);
    context.progress(`ours, ${row.selection}: ${describe(row)}`);
  };
  const measurePeers = async (item: PeerCase) => {
    for (const peer of peers) {
      for (const row of await peer.measure(item, context.signal)) {
        rows.peers.push({ peer: peer.name, ...row });
        context.progress(`${peer.name}, ${row.variant}: ${describe(row)}`);
      }
    }
  };
  const dense: DecodeCase = { contextTokens: 0, policy: "dense", budgetTokens: undefined };
  const { ms, tokensPerS } = await measurePrefill(model, dense, { tokenCount: prefill, seed });
  const prefillCase = { kind: "prefill", contextTokens: 0, tokenCount: prefill } as const;
  addOurs({ ...prefillCase, selection: "dense", tokensPerS, tokensPerSBest: tokensPerS, msPerToken: ms / prefill });
  await measurePeers(prefillCase);
  await fillRandom(model, seed, Math.max(...values.contexts));
  for (const contextTokens of values.contexts) {
    const item = { kind: "decode", contextTokens, tokenCount: tokens } as const;
    for (const { selection, ...each } of decodeCases(values, contextTokens)) {
      const { msPerToken, tokensPerS: rate } = await measureDecode(model, each, {
        tokenCount: tokens,
        signal: context.signal,
      });
      const best = 1000 / msPerToken.min;
      addOurs({ ...item, selection, tokensPerS: rate, tokensPerSBest: best, msPerToken: msPerToken.p50 });
    }
    if (values["peer-contexts"].includes(contextTokens)) await measurePeers(item);
  }
}

/** Dense where the peers are compared with it, the policy and the one beside it wherever there is something to select. */
function decodeCases(
  { policy, beside, budget, ...values }: PeersValues,
  contextTokens: number,
): (DecodeCase & Pick<OurRow, "selection">)[] {
  const dense = { selection: "dense", contextTokens, policy: "dense", budgetTokens: undefined } as const;
  if (contextTokens === 0) return [dense];
  const select = { selection: "select", contextTokens, policy, budgetTokens: budget } as const;
  const other = { ...select, selection: "beside", policy: beside } as const;
  const selecting = beside === policy ? [select] : [select, other];
  return values["peer-contexts"].includes(contextTokens) ? [dense, ...selecting] : selecting;
}

function describe({ kind, contextTokens, tokensPerS, tokensPerSBest }: Omit<OurRow, "selection" | "msPerToken">) {
  return `${kind} at ${contextTokens}: ${tokensPerS.toFixed(1)} tokens/s, best ${tokensPerSBest.toFixed(1)}`;
}

function report({ values, threads, context, rows }: Pick<Round, "values" | "context" | "rows"> & { threads: number }) {
  const both = (ours: readonly OurRow[]) => ({
    medians: computeRatios(ours, rows.peers, { rate: "tokensPerS", contexts: CONTEXTS }),
    best: computeRatios(ours, rows.peers, { rate: "tokensPerSBest", contexts: CONTEXTS }),
  });
  const compared = both(rows.ours);
  const beside = both(besideRows(rows.ours));
  context.print(
    `${values.model ?? values.shape}, ${threads} threads, ${values.policy} with ${values.budget} tokens, ${values.rounds} rounds`,
  );
  const table = renderTable(
    [
      { header: "side", align: "left", cell: (row) => row.side },
      { header: "what", align: "left", cell: (row) => row.kind },
      { header: "context", cell: (row) => String(row.contextTokens) },
      { header: "tokens/s", cell: (row) => row.tokensPerS.toFixed(1) },
      { header: "best", cell: (row) => row.tokensPerSBest.toFixed(1) },
    ],
    [
      ...rows.ours.map((row) => ({ ...row, side: `ours, ${row.selection}` })),
      ...rows.peers.map((row) => ({ ...row, side: `${row.peer}, ${row.variant}` })),
    ].sort((a, b) => a.kind.localeCompare(b.kind) || a.contextTokens - b.contextTokens || (a.side < b.side ? -1 : 1)),
  );
  for (const line of [...table, ""]) context.print(line);
  printRatios(context, `ratio to the fastest peer, ${values.policy}`, compared);
  if (values.beside !== values.policy) {
    context.print(`beside it, ${values.beside}:`);
    printRatios(context, "ratio to the fastest peer", beside);
  }
  const load = rows.loadAverages.map((each) => each.toFixed(1)).join(", ");
  context.print(`load average after each round: ${load} (${threads} of it are the run's own)`);
  return {
    ok: true,
    data: {
      settings: { ...values, threads },
      ...{ ratios: compared.medians, ratiosOfBest: compared.best },
      ...{ ratiosBeside: beside.medians, ratiosBesideOfBest: beside.best },
      ...rows,
    },
  };
}

function printRatios(
  context: BenchContext,
  header: string,
  { medians, best }: { medians: Ratios; best: Ratios },
): void {
  const names = [...new Set([...Object.keys(medians), ...Object.keys(best)])] as (keyof Ratios)[];
  const show = (ratio: number | undefined) => (ratio === undefined ? "-" : ratio.toFixed(2));
  const table = renderTable(
    [
      { header, align: "left", cell: (name: keyof Ratios) => name },
      { header: "of medians", cell: (name) => show(medians[name]) },
      { header: "of the best", cell: (name) => show(best[name]) },
    ],
    names,
  );
  for (const line of table) context.print(line);
}
