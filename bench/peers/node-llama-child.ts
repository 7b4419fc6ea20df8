/** One measurement with node-llama-cpp, in a process of its own: a JSON case as the only argument, a JSON row as the only line of output. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { writeLongState } from "./llama-state.ts";
import type { PeerCase, PeerRow } from "./peer.ts";

/** What the parent asks for. */
export interface ChildCase extends PeerCase {
  /** The package's entry file. */
  entryPath: string;
  ggufPath: string;
  threads: number;
  flashAttention: boolean;
}

interface Sequence {
  evaluateWithoutGeneratingNewTokens(tokens: number[]): Promise<void>;
  evaluate(tokens: number[]): AsyncGenerator<number>;
  clearHistory(): Promise<void>;
  saveStateToFile(path: string): Promise<unknown>;
  loadStateFromFile(path: string, risk: { acceptRisk: true }): Promise<unknown>;
}

/** Tokens of the state that is repeated to a long one. */
const SEED_TOKENS = 64;
const WARM_TOKENS = 3;

async function main(item: ChildCase): Promise<void> {
  const { getLlama } = await import(pathToFileURL(item.entryPath).href);
  const { threads } = item;
  const llama = await getLlama({
    gpu: false,
    build: "never",
    maxThreads: threads,
    logLevel: "error",
    progressLogs: false,
  });
  const model = await llama.loadModel({ modelPath: item.ggufPath, gpuLayers: 0 });
  const context = await model.createContext({
    contextSize: item.contextTokens + item.tokenCount + SEED_TOKENS,
    sequences: 1,
    batchSize: 512,
    threads: { ideal: threads, min: threads },
    flashAttention: item.flashAttention,
  });
  const sequence: Sequence = context.getSequence();
  const row = item.kind === "prefill" ? await prefill(sequence, item) : await decode(sequence, item);
  process.stdout.write(`${JSON.stringify(row)}\n`);
  await context.dispose();
  await model.dispose();
}

function drawTokens(count: number): number[] {
  return Array.from({ length: count }, (_, i) => 300 + ((i * 7919) % 1000));
}

async function prefill(sequence: Sequence, item: ChildCase): Promise<PeerRow> {
  await sequence.evaluateWithoutGeneratingNewTokens(drawTokens(SEED_TOKENS));
  await sequence.clearHistory();
  const tokens = drawTokens(item.tokenCount);
  const startMs = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(tokens);
  const rate = (item.tokenCount / (performance.now() - startMs)) * 1000;
  return row(item, rate, rate);
}

async function decode(sequence: Sequence, item: ChildCase): Promise<PeerRow> {
  if (item.contextTokens > 0) await fillContext(sequence, item.contextTokens);
  const times: number[] = [];
  let lastMs = performance.now();
  for await (const _ of sequence.evaluate([300])) {
    times.push(performance.now() - lastMs);
    lastMs = performance.now();
    if (times.length === WARM_TOKENS + item.tokenCount) break;
  }
  const measured = times.slice(WARM_TOKENS).sort((a, b) => a - b);
  return row(item, 1000 / measured[Math.floor(measured.length / 2)]!, 1000 / measured[0]!);
}

async function fillContext(sequence: Sequence, tokenCount: number): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "quire-peer-"));
  try {
    await sequence.evaluateWithoutGeneratingNewTokens(drawTokens(SEED_TOKENS));
    const [short, long] = [join(folder, "short.state"), join(folder, "long.state")];
    await sequence.saveStateToFile(short);
    await sequence.clearHistory();
    await writeLongState(await readFile(short), tokenCount, long);
    await sequence.loadStateFromFile(long, { acceptRisk: true });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function row(item: ChildCase, tokensPerS: number, tokensPerSBest: number): PeerRow {
  const { kind, contextTokens, tokenCount } = item;
  const variant = `flash attention ${item.flashAttention ? "on" : "off"}`;
  return { kind, contextTokens, tokenCount, tokensPerS, tokensPerSBest, variant };
}

if (import.meta.main) {
  await main(JSON.parse(process.argv[2] ?? "{}") as ChildCase);
  // Its threads outlive its contexts.
  process.exit(0);
}
