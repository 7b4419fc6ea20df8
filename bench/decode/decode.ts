/** `npm run bench -- decode`: what one more token costs, by context, policy and budget. */
import { parseBytes, parseChoice, parseInteger } from "../../cli/flags.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { defineBench } from "../bench.ts";
import { type Column, renderTable } from "../table.ts";
import { type BenchModel, openBenchModel } from "./bench-model.ts";
import { fillRandom } from "./fill-random.ts";
import { batchFlag, budgetFlag, contextsFlag, deviceFlags, modelFlags, policiesFlag } from "./flags.ts";
import { type DecodeRow, listCases, measureDecode } from "./measure-decode.ts";
import { type ResidentMemory, residentMemory } from "./resident-memory.ts";

const columns: readonly Column<DecodeRow>[] = [
  { header: "context", cell: (row) => String(row.contextTokens) },
  { header: "policy", align: "left", cell: (row) => row.policy },
  { header: "budget", cell: (row) => String(row.budgetTokens ?? "-") },
  { header: "ms/token p50", cell: (row) => row.msPerToken.p50.toFixed(2) },
  { header: "min", cell: (row) => row.msPerToken.min.toFixed(2) },
  { header: "tokens/s", cell: (row) => row.tokensPerS.toFixed(1) },
  { header: "KV MB/token", cell: (row) => (row.kvBytesPerToken / 1e6).toFixed(2) },
  { header: "metadata MB/token", cell: (row) => (row.metadataBytesPerToken / 1e6).toFixed(2) },
  { header: "pages %", cell: (row) => (row.pagesShare * 100).toFixed(1) },
];

const gpuColumns: readonly Column<DecodeRow>[] = [
  { header: "GPU ms", cell: (row) => row.gpu?.spanMs.toFixed(2) ?? "" },
  { header: "kernels ms", cell: (row) => row.gpu?.kernelsMs.toFixed(2) ?? "" },
  { header: "outside ms", cell: (row) => row.gpu?.outsideMs.toFixed(2) ?? "" },
];

/** Lines of the table of some rows. */
export function decodeTable(rows: readonly DecodeRow[]): string[] {
  const isTimed = rows.some(({ gpu }) => gpu !== undefined);
  return renderTable(isTimed ? [...columns, ...gpuColumns] : columns, rows);
}

/** The summary kinds that some policies score by. */
export function summaryKindsOf(policies: readonly SelectionConfiguration[]) {
  const kinds = policies.map((name) => policyNamed(name).summary).filter((kind) => kind !== undefined);
  return [...new Set(kinds)];
}

const decodeFlags = {
  ...modelFlags,
  ...deviceFlags,
  batch: batchFlag,
  contexts: contextsFlag("0,1024,4096,16384,32768,65536"),
  policies: policiesFlag("dense,quest,mean-deviation"),
  budget: budgetFlag("1024,2048"),
  fill: {
    help: "how contexts are filled: random (seeded keys and values, no prefill)",
    placeholder: "HOW",
    fallback: "random",
    parse: parseChoice(["random"]),
  },
  tokens: {
    help: "tokens decoded per case",
    placeholder: "COUNT",
    fallback: "32",
    parse: parseInteger({ min: 1, max: 4096 }),
  },
  kv: { help: "encoding of sealed KV", placeholder: "KIND", fallback: "int8", parse: parseChoice(["int8", "f32"]) },
  memory: {
    help: "memory of the device, such as 2G (default: all it can have)",
    placeholder: "SIZE",
    parse: parseBytes,
  },
} as const;

/** The benchmark as the registry names it. */
export const decodeBench = defineBench({
  summary:
    "Decodes one sequence behind contexts filled with seeded KV: time, bytes of KV and bytes of metadata per token.",
  flags: decodeFlags,
  async run(values, context) {
    const { contexts, policies, budget, tokens, memory, kv, batch, ...rest } = values;
    const contextTokens = Math.max(...contexts) + tokens;
    const summaryKinds = summaryKindsOf(policies);
    const start = residentMemory();
    const model = await openBenchModel({
      ...rest,
      ...{ contextTokens, summaryKinds, kvEncoding: kv, memoryBytesMax: memory, batch },
    });
    try {
      context.progress(`filling ${Math.max(...contexts)} tokens`);
      for (let sequence = 0; sequence < batch; sequence++) {
        const { config, device, runner, capacityTokens } = model;
        const filled = { config, device, runner, capacityTokens, blockTable: () => model.blockTable(sequence) };
        await fillRandom(filled, rest.seed + sequence, Math.max(...contexts));
      }
      const rows: DecodeRow[] = [];
      for (const item of listCases(contexts, policies, budget)) {
        if (context.signal.aborted) break;
        rows.push(await measureDecode(model, item, { tokenCount: tokens, signal: context.signal, batch }));
        context.progress(decodeTable(rows.slice(-1))[1]!);
        await context.save({ settings: values, device: model.device.report.description, rows });
      }
      const device = model.device.report.description;
      const memory = memoryAccount(model.memory, start);
      const sequences = batch === 1 ? "one sequence" : `${batch} sequences`;
      context.print(`${values.model ?? values.shape}, ${device}, ${values.weights} weights, ${kv} KV, ${sequences}`);
      for (const line of decodeTable(rows)) context.print(line);
      // Of a GPU weights and pool are in memory of its own: what is resident here says nothing of them.
      if (values.device === "wasm") for (const line of describeMemory(memory)) context.print(line);
      return { ok: true, data: { settings: values, device, rows, memory } };
    } finally {
      await model.close();
    }
  },
});

/** What the process holds now beside weights and pool, in three parts that add up to it. */
function memoryAccount(planned: BenchModel["memory"], start: ResidentMemory) {
  const { residentBytes: rssBytes, heapBytes } = residentMemory();
  const aboveBytes = rssBytes - planned.weightBytes - planned.poolBytes;
  const heapGrowthBytes = heapBytes - start.heapBytes;
  const restBytes = aboveBytes - start.residentBytes - heapGrowthBytes;
  return { ...planned, rssBytes, aboveBytes, startBytes: start.residentBytes, heapGrowthBytes, restBytes };
}

function describeMemory(memory: ReturnType<typeof memoryAccount>): string[] {
  const { weightBytes, poolBytes, aboveBytes, startBytes, heapGrowthBytes, restBytes, activationBytes } = memory;
  return [
    `memory: ${megabytes(weightBytes)} weights, ${megabytes(poolBytes)} KV pool, ${megabytes(aboveBytes)} above them resident`,
    `above them: ${megabytes(startBytes)} the program before it opened anything, ${megabytes(heapGrowthBytes)} JavaScript heap since, ` +
      `${megabytes(restBytes)} activations and RoPE tables (${megabytes(activationBytes)} reserved), the fill's, threads`,
  ];
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(0)} MB`;
}
