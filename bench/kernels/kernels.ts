/** `npm run bench -- kernels`: every op of the CPU device against what the machine can do. */
import { parseBudget, parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { defineBench } from "../bench.ts";
import { threadsFlag } from "../decode/flags.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { shapeConfig, shapeFlag } from "../shapes.ts";
import { type Column, renderTable } from "../table.ts";
import { attentionCases } from "./attention-cases.ts";
import { type KernelRow, measureKernel } from "./kernel-case.ts";
import { linearCases } from "./linear-cases.ts";
import { type MachineLimits, measureMachineLimits } from "./machine-limits.ts";

/** Short enough to fit between interruptions. */
const LIMIT_WINDOW_MS = 2;

const kernelsFlags = {
  shape: shapeFlag,
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

/** The benchmark as the registry names it. */
export const kernelsBench = defineBench({
  summary:
    "Times every op of the CPU device at a shape. The time that its bytes and operations imply comes from limits that are measured first.",
  flags: kernelsFlags,
  async run(values, context) {
    if (values.context % BLOCK_TOKENS !== 0) throw new UsageError(`--context must be a multiple of ${BLOCK_TOKENS}`);
    const { threads } = values;
    const device = await openDevice({ kind: "wasm", ...(threads === undefined ? {} : { threads }) });
    try {
      context.progress("measuring the machine's limits");
      const limits = await measureMachineLimits(device.report.threadCount, LIMIT_WINDOW_MS);
      const { seed, rows: chunkRows, context: contextTokens, budget: budgetTokens } = values;
      const input = { device, config: shapeConfig(values.shape), seed, rows: chunkRows, contextTokens, budgetTokens };
      const rows: KernelRow[] = [];
      for (const item of [...linearCases(input), ...(await attentionCases(input))]) {
        if (context.signal.aborted) break;
        rows.push(await measureKernel(device, item, { limits, ms: values.ms }));
      }
      context.print(`${values.shape}, ${device.report.description}, int8 weights, int8 KV`);
      context.print(limitsLine(limits));
      for (const line of renderTable(columns, rows)) context.print(line);
      return { ok: true, data: { settings: values, device: device.report.description, limits, rows } };
    } finally {
      await device.close();
    }
  },
});

function limitsLine({ readBytesPerS, int8OpsPerS, f32OpsPerS }: MachineLimits): string {
  const [read, int8, f32] = [readBytesPerS, int8OpsPerS, f32OpsPerS].map((rate) => (rate / 1e9).toFixed(1));
  return `limits of the machine: memory read ${read} GB/s, int8 ${int8} GOP/s, f32 ${f32} GOP/s`;
}
