/// <reference types="@webgpu/types" />
/** `npm run bench -- gpu-host`: what a decode step costs the host, on a GPU that does nothing. */
import { parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { BLOCK_TOKENS, type StepSlice } from "../../kernels/contract.ts";
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import { USAGE } from "../../kernels/webgpu/gpu.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import type { ModelConfig, SequenceStep } from "../../models/contract.ts";
import { LlamaRunner } from "../../models/llama.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { quantile } from "../quantile.ts";
import { shapeConfig } from "../shapes.ts";
import { noiseWeights } from "./noise.ts";

const flags = {
  layers: {
    help: "layers; default those of 8b",
    placeholder: "N",
    fallback: "32",
    parse: parseInteger({ min: 1, max: 128 }),
  },
  steps: { help: "steps per case", placeholder: "N", fallback: "100", parse: parseInteger({ min: 1, max: 100_000 }) },
} as const;

/** Keeps what Dawn's `create` returned: when it is collected, the process aborts. */
const KEPT = Symbol.for("quire.webgpu.null");
const BUDGET_TOKENS = 2048;
/** Logical blocks share so many device blocks: what a step costs the host does not depend on which they are. */
const POOL_BLOCKS = 64;
const CASES = [
  { batch: 8, contextTokens: 32_768 },
  { batch: 1, contextTokens: 131_008 },
] as const;

/** One case. */
export interface HostRow {
  batch: number;
  contextTokens: number;
  policy: "dense" | "quest";
  /** Of kernels, in one step. */
  dispatches: number;
  /** Milliseconds of a step: recording, encoding, submission and readback, driver and GPU left out. */
  msPerStep: { p50: number; min: number };
  /** Of these, those before the first of a step's submissions: a GPU has nothing to do until then. */
  msToFirst: { p50: number; min: number };
}

/** The benchmark as the registry names it. */
export const gpuHostBench = defineBench({
  summary:
    "Dispatches and milliseconds of the host per decode step of the 8b shape's layers and heads, on Dawn's null backend: widths are small, kernels do not run.",
  flags,
  async run({ layers, steps }, context) {
    const firstSubmit: FirstSubmit = {};
    const device = await openNullDevice(() => {
      firstSubmit.atMs ??= performance.now();
    });
    const rows: HostRow[] = [];
    for (const { batch, contextTokens } of CASES) {
      for (const policy of ["dense", "quest"] as const) {
        const run = await decodeStep(device, { layerCount: layers, batch, contextTokens, policy });
        rows.push({
          batch,
          contextTokens,
          policy,
          ...(await timed(device, run, { steps, firstSubmit, signal: context.signal })),
        });
        print(context, rows.at(-1)!);
      }
    }
    await device.close();
    return { ok: true, data: { settings: { layers, steps }, rows } };
  },
});

function print(
  { print }: BenchContext,
  { batch, contextTokens, policy, dispatches, msPerStep, msToFirst }: HostRow,
): void {
  print(
    `${batch} x ${contextTokens} tokens, ${policy}: ${dispatches} dispatches, ` +
      `${msPerStep.p50.toFixed(2)} ms a step (fastest ${msPerStep.min.toFixed(2)}), ` +
      `${msToFirst.p50.toFixed(2)} before a GPU can begin (fastest ${msToFirst.min.toFixed(2)})`,
  );
}

/** Dawn with nothing behind it: it validates and encodes, and every dispatch is over at once. `onSubmit` hears of every submission. @throws {UsageError} where Dawn does not load. */
export async function openNullDevice(onSubmit = (): void => {}): Promise<WebGpuDevice> {
  try {
    const dawn = await import("webgpu");
    const host = globalThis as { [KEPT]?: GPU };
    host[KEPT] ??= dawn.create(["backend=null"]);
    const adapter = await host[KEPT].requestAdapter();
    if (adapter === null) throw new UsageError("Dawn has no null backend here");
    const request = adapter.requestDevice.bind(adapter);
    adapter.requestDevice = async (descriptor) => withSubmits(withZeroedReadback(await request(descriptor)), onSubmit);
    return await openWebGpuDevice({ adapter, features: [] });
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError("the npm package `webgpu` does not load on this machine");
  }
}

/** Nothing is ever copied into memory that the host reads: it must begin as zeros, not as what was there. */
function withZeroedReadback(device: GPUDevice): GPUDevice {
  const create = device.createBuffer.bind(device);
  device.createBuffer = (descriptor) => {
    if ((descriptor.usage & USAGE.mapRead) === 0) return create(descriptor);
    const buffer = create({ ...descriptor, mappedAtCreation: true });
    buffer.unmap();
    return buffer;
  };
  return device;
}

function withSubmits(device: GPUDevice, onSubmit: () => void): GPUDevice {
  const submit = device.queue.submit.bind(device.queue);
  device.queue.submit = (buffers) => {
    onSubmit();
    return submit(buffers);
  };
  return device;
}

/** What a case is made of. */
export interface HostCase {
  layerCount: number;
  batch: number;
  contextTokens: number;
  policy: string;
  /** As a model's configuration says it. */
  qkvBias?: boolean;
}

/** A function that runs the step of one token behind each context, always the same. */
export async function decodeStep(
  device: WebGpuDevice,
  { layerCount, batch, contextTokens, policy, qkvBias = false }: HostCase,
): Promise<() => Promise<unknown>> {
  const small = { width: 512, ffnWidth: 512, headDim: 32, vocabularySize: 512 };
  const config: ModelConfig = { ...shapeConfig("8b"), ...small, layerCount, qkvBias };
  const blockCapacity = contextTokens / BLOCK_TOKENS + 1;
  const { plan, summary = "min-max" } = policyNamed(policy);
  const runner = new LlamaRunner({
    ...{ device, config, rowsMax: batch, sampledMax: batch, fingerprint: "null" },
    weights: await noiseWeights({ device, seed: 1 }, config, "int4"),
    pool: device.kvPool({
      ...{ layerCount, kvHeadCount: config.kvHeadCount, headDim: config.headDim, encoding: "int8" },
      ...{ summaryKinds: [summary], blockCount: POOL_BLOCKS, openSlotCount: batch, summarySlotCount: POOL_BLOCKS },
    }),
  });
  const slice = (sequence: number): StepSlice => ({
    ...{ position: contextTokens, rowCount: 1, blockCapacity },
    blockIds: Int32Array.from({ length: layerCount * blockCapacity }, (_, i) => i % POOL_BLOCKS),
    summarySlots: Int32Array.from({ length: blockCapacity }, (_, i) => i % POOL_BLOCKS),
    openSlots: Int32Array.of(sequence),
    groupStarts: Int32Array.of(0),
    plan: plan(BUDGET_TOKENS),
  });
  const sample = {
    ...{ temperature: 0, topK: 0, topP: 1, minP: 0, frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
    ...{ seenIds: new Uint32Array(), seenCounts: new Uint32Array(), seed: 0, position: contextTokens },
    ...{ biasIds: new Uint32Array(), biasValues: new Float32Array() },
  };
  const steps = Array.from(
    { length: batch },
    (_, sequence): SequenceStep => ({ slice: slice(sequence), tokens: Uint32Array.of(1), sample, exact: false }),
  );
  return () => runner.step(steps);
}

/** When the first submission of a step was. */
interface FirstSubmit {
  atMs?: number;
}

async function timed(
  device: WebGpuDevice,
  run: () => Promise<unknown>,
  { steps, firstSubmit, signal }: { steps: number; firstSubmit: FirstSubmit; signal: AbortSignal },
): Promise<Pick<HostRow, "dispatches" | "msPerStep" | "msToFirst">> {
  const kernels: KernelTime[] = [];
  device.time(kernels);
  await run();
  device.time(undefined);
  const times: number[] = [];
  const firsts: number[] = [];
  for (let count = 0; count < steps && !signal.aborted; count++) {
    const startMs = performance.now();
    delete firstSubmit.atMs;
    await run();
    times.push(performance.now() - startMs);
    firsts.push((firstSubmit.atMs ?? startMs) - startMs);
  }
  // The first half warms up.
  const summary = (all: readonly number[]) => {
    const warm = all.slice(Math.floor(all.length / 2));
    return { p50: quantile(warm, 0.5), min: Math.min(...warm) };
  };
  return { dispatches: kernels.length, msPerStep: summary(times), msToFirst: summary(firsts) };
}
