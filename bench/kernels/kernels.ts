/** `npm run bench -- kernels`: every op of a device against what the machine can do. */
import { type FlagValues, parseBudget, parseChoice, parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { batchFlag, benchDeviceFlag, parseList, threadsFlag } from "../decode/flags.ts";
import { GPU_LIMIT_SIZES, type GpuLimits, measureGpuLimits } from "../gpu/gpu-limits.ts";
import { noiseMatrix } from "../gpu/noise.ts";
import { hasClock, openGpu } from "../gpu/open-gpu.ts";
import { timeKernel } from "../gpu/time-kernel.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { mixedSeed } from "../random.ts";
import { shapeConfig, shapeFlag } from "../shapes.ts";
import { type Column, renderTable } from "../table.ts";
import { type AttentionInput, attentionCases } from "./attention-cases.ts";
import { type KernelCase, type KernelRow, measureKernel } from "./kernel-case.ts";
import { type CaseInput, linearCases } from "./linear-cases.ts";
import { type MachineLimits, measureMachineLimits } from "./machine-limits.ts";

/** Short enough to fit between interruptions. */
const LIMIT_WINDOW_MS = 2;

const kernelsFlags = {
  shape: shapeFlag,
  device: benchDeviceFlag,
  weights: {
    help: "encodings of the weights whose products are timed, between commas: int8, int4, bf16, f32",
    placeholder: "LIST",
    fallback: "int8",
    parse: parseList(parseChoice(["int8", "int4", "bf16", "f32"])),
  },
  batch: batchFlag,
  part: {
    help: "linear (products and row-wise ops), attention (append, select, attend) or all",
    placeholder: "PART",
    fallback: "all",
    parse: parseChoice(["all", "linear", "attention"]),
  },
  threads: threadsFlag,
  seed: seedFlag,
  context: {
    help: "tokens of context behind which attention runs",
    placeholder: "TOKENS",
    fallback: "16384",
    parse: parseInteger({ min: 64, max: 131_072 }),
  },
  budget: { help: "budget of selection in tokens", placeholder: "TOKENS", fallback: "2048", parse: parseBudget },
  rows: {
    help: "rows of a prefill chunk",
    placeholder: "COUNT",
    fallback: "512",
    parse: parseInteger({ min: 64, max: 512 }),
  },
  ms: {
    help: "milliseconds per kernel, half of them before the clock counts",
    placeholder: "MS",
    fallback: "400",
    parse: parseInteger({ min: 1, max: 60_000 }),
  },
} as const;

const columns: readonly Column<KernelRow>[] = [
  { header: "op", align: "left", cell: (row) => row.op },
  { header: "size", align: "left", cell: (row) => row.size },
  { header: "MB", cell: (row) => (row.bytes / 1e6).toFixed(3) },
  { header: "Mop", cell: (row) => (row.ops / 1e6).toFixed(2) },
  { header: "limit ms", cell: (row) => row.limitMs.toFixed(4) },
  { header: "bound", align: "left", cell: (row) => row.bound },
  { header: "ms", cell: (row) => row.ms.min.toFixed(4) },
  { header: "p50", cell: (row) => row.ms.p50.toFixed(4) },
  { header: "GB/s", cell: (row) => row.gigabytesPerS.toFixed(1) },
  { header: "GOP/s", cell: (row) => row.gigaopsPerS.toFixed(1) },
  { header: "share %", cell: (row) => (row.share * 100).toFixed(0) },
];

/** What the attention cases and the linear ones are made from. */
type Input = Omit<AttentionInput, "device">;
type Values = FlagValues<typeof kernelsFlags>;

/** CPU: larger than its caches; GPU: larger than theirs, of which the largest hold 50 to 256 MB. */
const COPIES_BYTES = { wasm: 96 * 2 ** 20, webgpu: 512 * 2 ** 20 } as const;
/** Of a GPU the layers are large, and take long to fill. */
const LAYERS_MAX = { wasm: 4, webgpu: 2 } as const;

/** The benchmark as the registry names it. */
export const kernelsBench = defineBench({
  summary:
    "Times every op of a device at a shape. The time that its bytes and operations imply comes from limits that are measured first.",
  flags: kernelsFlags,
  async run(values, context) {
    if (values.context % BLOCK_TOKENS !== 0) throw new UsageError(`--context must be a multiple of ${BLOCK_TOKENS}`);
    const input: Input = {
      ...{ config: shapeConfig(values.shape), seed: values.seed, rows: values.rows, batch: values.batch },
      ...{ contextTokens: values.context, budgetTokens: values.budget, encodings: values.weights },
      copiesBytes: COPIES_BYTES[values.device],
      layersMax: LAYERS_MAX[values.device],
    };
    const measured =
      values.device === "wasm" ? await onCpu(values, input, context) : await onGpu(values, input, context);
    const { device, limits, rows } = measured;
    context.print(`${values.shape}, ${device}, ${values.weights.join(" and ")} weights, int8 KV`);
    context.print(limitsLine(limits));
    for (const line of renderTable(columns, rows)) context.print(line);
    return { ok: true, data: { settings: values, device, limits, rows } };
  },
});

interface Measured {
  device: string;
  limits: MachineLimits | GpuLimits;
  rows: KernelRow[];
}

async function onCpu(values: Values, input: Input, context: BenchContext): Promise<Measured> {
  const { threads } = values;
  const device = await openDevice({ kind: "wasm", ...(threads === undefined ? {} : { threads }) });
  try {
    context.progress("measuring the machine's limits");
    const limits = await measureMachineLimits(device.report.threadCount, LIMIT_WINDOW_MS);
    const rows: KernelRow[] = [];
    for (const item of await casesOf(values, { ...input, device })) {
      if (context.signal.aborted) break;
      rows.push(await measureKernel(device, item, { limits, ms: values.ms }));
    }
    return { device: device.report.description, limits, rows };
  } finally {
    await device.close();
  }
}

/** Matrices of noise are made on the GPU. */
async function onGpu(values: Values, input: Input, context: BenchContext): Promise<Measured> {
  const device = await openGpu();
  try {
    if (!hasClock(device)) throw new UsageError("this GPU has no timestamp-query: its kernels cannot be timed");
    context.progress("measuring the GPU's limits");
    const limits = await measureGpuLimits(device, GPU_LIMIT_SIZES[values.shape === "tiny" ? "small" : "full"]);
    let count = 0;
    const matrix: CaseInput["matrix"] = (name, encoding, shape) =>
      noiseMatrix({ device, seed: mixedSeed(values.seed, ++count) }, name, encoding, shape);
    const rows: KernelRow[] = [];
    for (const item of await casesOf(values, { ...input, device, matrix })) {
      if (context.signal.aborted) break;
      context.progress(`${item.op}, ${item.size}`);
      rows.push(await timeKernel(device, item, { limits, ms: values.ms }));
      await context.save({ settings: values, device: device.report.description, limits, rows });
    }
    return { device: device.report.description, limits, rows };
  } finally {
    await device.close();
  }
}

async function casesOf({ part }: Values, input: AttentionInput): Promise<KernelCase[]> {
  return [
    ...(part === "attention" ? [] : await linearCases(input)),
    ...(part === "linear" ? [] : await attentionCases(input)),
  ];
}

function limitsLine(limits: Measured["limits"]): string {
  const { readBytesPerS, int8OpsPerS, f32OpsPerS } = limits;
  const [read, int8, f32] = [readBytesPerS, int8OpsPerS, f32OpsPerS].map((rate) => (rate / 1e9).toFixed(1));
  const copy =
    "copyBytesPerS" in limits ? `, copy ${(limits.copyBytesPerS / 1e9).toFixed(1)} GB/s (shares are of this)` : "";
  return `limits of the machine: memory read ${read} GB/s${copy}, int8 ${int8} GOP/s, f32 ${f32} GOP/s`;
}
