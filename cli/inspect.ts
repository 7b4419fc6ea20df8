/** `quire inspect MODEL`: what a model is, what a token of its context costs, and which context fits into which memory. */
import { resolve } from "node:path";
import { poolForm } from "../engine/pool-form.ts";
import { BLOCK_TOKENS, type KvEncoding } from "../kernels/contract.ts";
import { HEAP_BYTES_MAX } from "../kernels/wasm/heap.ts";
import { adapterReport, requestAdapter } from "../kernels/webgpu/adapter.ts";
import { poolBlocksMax } from "../kernels/webgpu/pool.ts";
import type { ModelConfig } from "../models/contract.ts";
import { architectureNotes, type ModelCosts, modelCosts } from "../models/describe-model.ts";
import { locateModel, openModelFiles } from "../models/model-files.ts";
import { parameterCount, poolUnitBytes } from "../models/plan-memory.ts";
import { describeCalibration } from "../models/selection/calibration.ts";
import { QuireError } from "../protocol/errors.ts";
import { kvGeometry } from "../storage/geometry.ts";
import { segmentBytes } from "../storage/segment.ts";
import { calibrationBeside } from "./calibration-beside.ts";
import type { Command } from "./command.ts";
import { engineFlags } from "./engine-flags.ts";
import { describeFlags, type FlagValues, parseBytes, parseChoice, parseCommandLine } from "./flags.ts";
import { UsageError } from "./usage-error.ts";

const inspectFlags = {
  weights: engineFlags.weights,
  kv: engineFlags.kv,
  "page-encoding": engineFlags["page-encoding"],
  summaries: engineFlags.summaries,
  "host-pool-mib": engineFlags["host-pool-mib"],
  device: {
    help: "webgpu: also the tokens that a pool on this machine's GPU may hold",
    placeholder: "KIND",
    fallback: "wasm",
    parse: parseChoice(["wasm", "webgpu"]),
  },
  memory: {
    help: "a memory size to fit the longest context into; without it a few usual ones",
    placeholder: "BYTES",
    parse: parseBytes,
  },
} as const;

const gibibyte = 2 ** 30;
const usualMemoryBytes = [1, 2, 3, 4, 8, 16].map((count) => count * gibibyte);

const switches = { json: "one JSON object instead of text" } as const;

/** The command. */
export const inspectCommand: Command = {
  help: () =>
    `Usage: quire inspect MODEL [flags]\n\n  MODEL    HF model folder or GGUF file\n\n${describeFlags(inspectFlags, switches)}\n`,
  async run(args) {
    const { values, given, operands } = parseCommandLine({ flags: inspectFlags, switches }, args, process.env);
    const [model] = operands;
    if (model === undefined || operands.length > 1) throw new UsageError("inspect needs one model folder or GGUF file");
    const report = await inspect(model, values);
    process.stdout.write(given.has("json") ? `${JSON.stringify(report, undefined, 2)}\n` : describe(report));
    return 0;
  },
};

type InspectValues = FlagValues<typeof inspectFlags>;

async function inspect(path: string, values: InspectValues) {
  const { format } = await locateModel(path);
  const { config, source } = await openModelFiles(path);
  await source.close();
  const { layerCount, kvHeadCount, headDim } = config;
  const summaryKinds = values.summaries;
  const memoryBytes = values.memory === undefined ? usualMemoryBytes : [values.memory];
  const settings = { config, weights: values.weights, kv: values.kv, summaryKinds };
  const costs = modelCosts({ ...settings, memoryBytes });
  const hostPoolBytes = values["host-pool-mib"] * 2 ** 20;
  const { encoding, rounding } = poolForm(values.kv, values["page-encoding"]);
  const pages = rounding ?? encoding;
  const geometry = kvGeometry({ layerCount, kvHeadCount, headDim, summaryKinds, encoding: pages });
  const storedTokenBytes = (layerCount * geometry.blockBytes) / BLOCK_TOKENS;
  return {
    model: resolve(path),
    format,
    parameterCount: parameterCount(config),
    notes: architectureNotes(config),
    config,
    auto: await describeAuto(path),
    weights: values.weights,
    kv: values.kv,
    summaryKinds,
    pages,
    segmentBytes: segmentBytes(geometry),
    /** The longest context on the CPU device, however much memory the machine has. */
    cpuContextTokensMax: modelCosts({ ...settings, memoryBytes: [HEAP_BYTES_MAX] }).fits[0]!.contextTokensMax,
    /** Only with `--device webgpu`: what the pool of this machine's GPU may hold, whatever memory it has. */
    gpu: values.device === "webgpu" ? await gpuPool(config, values.kv) : undefined,
    hostPoolBytes,
    /** Tokens that left the page pool and are still found in host memory, of all conversations together. */
    hostPoolTokens: Math.floor(hostPoolBytes / (storedTokenBytes + costs.summaryTokenBytes)),
    ...costs,
  };
}

/** What `auto` chooses, by what lies beside the model; a file that is none is what the engine ignores, too. */
async function describeAuto(path: string): Promise<string> {
  try {
    return describeCalibration(await calibrationBeside(path));
  } catch (error) {
    if (!(error instanceof QuireError)) throw error;
    return `${describeCalibration(undefined)} (${error.message})`;
  }
}

/** @throws {NoAdapterError} one line, where there is no GPU. */
async function gpuPool(config: ModelConfig, encoding: KvEncoding) {
  const { description, storageBuffersMax, bindingBytesMax, bufferBytesMax } = adapterReport(await requestAdapter());
  const { blockBytes } = poolUnitBytes(config, encoding, []);
  const limits = { storageBuffersMax, bindingBytesMax: Math.min(bindingBytesMax, bufferBytesMax) };
  const blockCount = poolBlocksMax(limits, blockBytes);
  const poolTokensMax = Math.floor(blockCount / config.layerCount) * BLOCK_TOKENS;
  return { description, blockBytesMax: blockCount * blockBytes, poolTokensMax };
}

type Report = Awaited<ReturnType<typeof inspect>>;

function describe(report: Report): string {
  const { config } = report;
  const rows: [string, string][] = [
    ["model", `${report.model} (${report.format})`],
    ["architecture", `${config.modelType}: ${report.notes.join("; ")}`],
    [
      "shape",
      `${config.layerCount} layers of width ${config.width}, FFN ${config.ffnWidth}, heads of ${config.headDim}`,
    ],
    ["parameters", `${count(report.parameterCount)}, vocabulary ${config.vocabularySize}`],
    ["context", `${config.contextTokensMax} tokens`],
    ["auto", report.auto],
    ["weights", `${size(report.weightBytes)} in ${report.weights}`],
    [
      "a token's KV",
      `${size(report.kvTokenBytes)} in ${report.kv} (open block: ${size(report.kvOpenTokenBytes)} in f32)`,
    ],
    [
      "its summaries",
      `${size(report.summaryTokenBytes)} (${report.summaryKinds.join(", ")}), on the device ${size(report.centreTokenBytes)} more`,
    ],
    [
      "host memory",
      `${report.hostPoolTokens} tokens behind the pool in ${size(report.hostPoolBytes)} (--host-pool-mib)`,
    ],
    ["a segment", `${size(report.segmentBytes)} in the store for 256 tokens (${report.pages})`],
    ...(report.gpu === undefined ? [] : [["this GPU", describeGpu(report.gpu)] satisfies [string, string]]),
  ];
  const width = Math.max(...rows.map(([name]) => name.length)) + 2;
  const facts = rows.map(([name, text]) => name.padEnd(width) + text).join("\n");
  return `${facts}\n\nmemory for one sequence, all of it resident\n${contexts(report)}\n\nlongest context\n${fits(report)}\n`;
}

function describeGpu({ description, blockBytesMax, poolTokensMax }: NonNullable<Report["gpu"]>): string {
  return `${description}: its buffers hold at most ${poolTokensMax} tokens of all conversations together (${size(blockBytesMax)})`;
}

function contexts({ contexts: rows }: ModelCosts): string {
  return rows
    .map(({ contextTokens, poolBytes, totalBytes }) => {
      const tokens = `${contextTokens} tokens`.padStart(16);
      const note = totalBytes > HEAP_BYTES_MAX ? `  (the CPU device ends at ${size(HEAP_BYTES_MAX)})` : "";
      return `${tokens}  pool ${size(poolBytes).padStart(10)}  all ${size(totalBytes).padStart(10)}${note}`;
    })
    .join("\n");
}

function fits({ fits: rows, cpuContextTokensMax }: Report): string {
  return rows
    .map(({ memoryBytes, contextTokensMax }) => {
      const answer = contextTokensMax === 0 ? "does not fit" : `${contextTokensMax} tokens`;
      const isBeyond = contextTokensMax > cpuContextTokensMax;
      const note = isBeyond ? `  (the CPU device ends at ${size(HEAP_BYTES_MAX)}: ${cpuContextTokensMax})` : "";
      return `${size(memoryBytes).padStart(16)}  ${answer}${note}`;
    })
    .join("\n");
}

function count(value: number): string {
  if (value < 1e6) return `${(value / 1e3).toFixed(1)} thousand`;
  return value < 1e9 ? `${(value / 1e6).toFixed(1)} million` : `${(value / 1e9).toFixed(2)} billion`;
}

function size(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[power]}`;
}
