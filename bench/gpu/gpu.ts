/** `npm run bench -- gpu`: the GPU device: is it right, and how fast is each kernel against the GPU's copy bandwidth. */
import { parseChoice, parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { NoAdapterError } from "../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { type Column, renderTable } from "../table.ts";
import { checkCorrectness } from "./correctness.ts";
import { randomBytes } from "./random-memory.ts";
import { GPU_SIZES, type GpuSizes } from "./sizes.ts";
import { attentionRows, copyCase, productCase, type StepRow, stepRows } from "./speed.ts";
import { type GpuRow, timeCase } from "./timing.ts";

/** Bytes of noise, and of one write. */
const NOISE_BYTES = 1 << 24;

const flags = {
  size: {
    help: "8b (real hardware), or tiny: shows on a software GPU that everything runs",
    placeholder: "NAME",
    fallback: "8b",
    parse: parseChoice(["8b", "tiny"]),
  },
  ms: {
    help: "milliseconds per case",
    placeholder: "MS",
    fallback: "500",
    parse: parseInteger({ min: 1, max: 60_000 }),
  },
  seed: seedFlag,
} as const;

/** The benchmark as the registry names it. */
export const gpuBench = defineBench({
  summary:
    "Checks the GPU device against the reference, then times its kernels by timestamp queries, and whole decode steps.",
  flags,
  async run(values, context) {
    const sizes: GpuSizes = GPU_SIZES[values.size];
    const first = await open();
    const { adapter } = first;
    context.print(`${adapter.description}; ${adapter.features.join(", ")}`);
    const reference = openReferenceDevice();
    const correctness = await checkCorrectness(first, reference, values.seed);
    await Promise.all([first.close(), reference.close()]);
    const ok = correctness.every((row) => row.ok);
    for (const { name, error } of correctness.filter((row) => !row.ok)) context.print(`WRONG ${name}: off by ${error}`);
    context.print(
      `${correctness.filter((row) => row.ok).length} of ${correctness.length} ops as the reference computes them`,
    );
    const hasClock = adapter.features.includes("timestamp-query");
    if (!hasClock) context.print("no timestamp-query: nothing is timed");
    const { rows, failures } = hasClock ? await measure(sizes, values, context) : { rows: [], failures: [] };
    for (const failure of failures) context.print(`not measured: ${failure}`);
    const copy = rows[0]?.gigabytesPerS ?? 1;
    for (const line of renderTable(columns(copy), rows)) context.print(line);
    for (const row of rows.filter(isStep)) {
      context.print(
        `${row.name}: ${row.wallMs.toFixed(2)} ms, of which ${(row.wallMs - row.ms).toFixed(2)} outside of kernels`,
      );
    }
    return { ok, data: { settings: values, adapter, correctness, rows, failures } };
  },
});

/** @throws {UsageError} where there is no GPU. */
async function open(): Promise<WebGpuDevice> {
  try {
    return await openWebGpuDevice();
  } catch (error) {
    if (error instanceof NoAdapterError) throw new UsageError(error.message);
    throw error;
  }
}

async function measure(
  sizes: GpuSizes,
  { ms, seed }: { ms: number; seed: number },
  context: BenchContext,
): Promise<{ rows: GpuRow[]; failures: string[] }> {
  const rows: GpuRow[] = [];
  const failures: string[] = [];
  const bytes = randomBytes(NOISE_BYTES, seed);
  /** Each on a device of its own: its memory goes with it. */
  const onDevice = async (what: string, run: (device: WebGpuDevice) => Promise<readonly GpuRow[]>): Promise<void> => {
    if (context.signal.aborted) return;
    context.progress(what);
    const device = await open();
    try {
      rows.push(...(await run(device)));
    } catch (error) {
      // A GPU with too little memory says so by failing; what it can hold is still worth measuring.
      failures.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
    } finally {
      await device.close();
    }
  };
  const { width, ffnWidth } = sizes.shape;
  await onDevice("copy", async (device) => [await timeCase(device, copyCase({ device, sizes, ms, seed, bytes }), ms)]);
  for (const encoding of ["int4", "int8", "bf16"] as const) {
    await onDevice(`${encoding} products`, async (device) => {
      const input = { device, sizes, ms, seed, bytes };
      const products: GpuRow[] = [];
      for (const count of [1, sizes.batch, sizes.chunkRows]) {
        const shape = { outWidth: ffnWidth, inWidth: width, rows: count };
        products.push(await timeCase(device, productCase(input, encoding, shape), ms));
      }
      return products;
    });
  }
  for (const tokens of sizes.contexts) {
    await onDevice(`attention, ${tokens} tokens`, (device) =>
      attentionRows({ device, sizes, ms, seed, bytes }, tokens),
    );
  }
  for (const step of sizes.steps) {
    await onDevice(`decode steps, ${step.contextTokens} tokens`, (device) =>
      stepRows({ device, sizes, ms, seed, bytes }, step),
    );
  }
  return { rows, failures };
}

function isStep(row: GpuRow): row is StepRow {
  return "wallMs" in row;
}

function columns(copyGigabytesPerS: number): Column<GpuRow>[] {
  return [
    { header: "case", align: "left", cell: (row) => row.name },
    { header: "MB", cell: (row) => (row.bytes / 1e6).toFixed(2) },
    { header: "ms", cell: (row) => row.ms.toFixed(4) },
    { header: "GB/s", cell: (row) => row.gigabytesPerS.toFixed(1) },
    { header: "GOP/s", cell: (row) => row.gigaopsPerS?.toFixed(0) ?? "" },
    { header: "share of copy %", cell: (row) => ((row.gigabytesPerS / copyGigabytesPerS) * 100).toFixed(0) },
  ];
}
