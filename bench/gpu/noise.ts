/** Random weights that are made on the GPU: nothing is drawn, quantized or packed by the host, and speed does not depend on what codes say. */
import type { DeviceBuffer, Matrix, MatrixEncoding } from "../../kernels/contract.ts";
import { ownMatrix } from "../../kernels/webgpu/buffers.ts";
import { type Kernel, write } from "../../kernels/webgpu/kernel.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import type { ModelConfig } from "../../models/contract.ts";
import type { LayerWeights, LlamaWeights, Projection } from "../../models/llama-weights.ts";
import { tableEncoding } from "../../models/plan-memory.ts";
import { mixedSeed } from "../random.ts";

const THREADS = 256;
const GROUPS_MAX = 4096;

/** `out[i] = (hash(i ^ seed) & keep) | base`; PCG hash (Jarzynski and Olano, 2020). Any grid: threads stride over `count` words. */
const FILL_NOISE: Kernel = {
  name: "bench_fill_noise",
  params: { count: "u32", seed: "u32", keep: "u32", base: "u32" },
  bindings: { out: write("u32") },
  code: /* wgsl */ `
fn hash(x: u32) -> u32 {
  let state = x * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let stride = groups.x * ${THREADS}u;
  for (var at = id.x; at < p.count; at += stride) { out[at] = (hash(at ^ p.seed) & p.keep) | p.base; }
}
`,
};

/** Which bits of a word are random, and what the others are. f32, bf16 and f16: either sign, 1/128 to 1/64. */
const WORDS: Readonly<Record<MatrixEncoding, { keep: number; base: number }>> = {
  f32: { keep: 0x807f_ffff, base: 0x3c00_0000 },
  bf16: { keep: 0x807f_807f, base: 0x3c00_3c00 },
  f16: { keep: 0x83ff_83ff, base: 0x2000_2000 },
  int8: { keep: 0xffff_ffff, base: 0 },
  int4: { keep: 0xffff_ffff, base: 0 },
};
/** Standard deviation of codes that are uniform over their range. */
const CODE_DEVIATION = { int8: 73.9, int4: 4.61 } as const;

/** What noise is made with. */
export interface NoiseSource {
  device: WebGpuDevice;
  seed: number;
}

/** A matrix of noise; a row's product with a row of normal values is about normal. */
export async function noiseMatrix(
  { device, seed }: NoiseSource,
  label: string,
  encoding: MatrixEncoding,
  shape: { outWidth: number; inWidth: number },
): Promise<Matrix> {
  const matrix = device.emptyMatrix(label, encoding, shape);
  for (const { weights, scales, firstRow } of ownMatrix(matrix).parts) {
    await fill(device, weights, { seed: mixedSeed(seed, firstRow), ...WORDS[encoding] });
    if (scales === undefined || (encoding !== "int8" && encoding !== "int4")) continue;
    const scale = 1 / (CODE_DEVIATION[encoding] * Math.sqrt(shape.inWidth));
    await fill(device, scales, { seed: 0, keep: 0, base: floatBits(scale) });
  }
  return matrix;
}

/** All weights of a model with tied embeddings: matrices of noise, norms and biases of ones. */
export async function noiseWeights(
  { device, seed }: NoiseSource,
  config: ModelConfig,
  encoding: MatrixEncoding,
): Promise<LlamaWeights> {
  let count = 0;
  const matrix = (outWidth: number, inWidth: number, as = encoding): Promise<Matrix> =>
    noiseMatrix({ device, seed: mixedSeed(seed, ++count) }, "noise", as, { outWidth, inWidth });
  const projection = async (heads: number): Promise<Projection> => ({
    matrix: await matrix(heads * config.headDim, config.width),
    ...(config.qkvBias ? { bias: ones(device, heads * config.headDim) } : {}),
  });
  const { width, ffnWidth, headCount, kvHeadCount, headDim, vocabularySize, layerCount } = config;
  const norm = ones(device, width);
  const layers: LayerWeights[] = [];
  for (let layer = 0; layer < layerCount; layer++) {
    layers.push({
      ...{ attentionNorm: norm, ffnNorm: norm },
      ...{
        query: await projection(headCount),
        key: await projection(kvHeadCount),
        value: await projection(kvHeadCount),
      },
      output: await matrix(width, headCount * headDim),
      ...{ gate: await matrix(ffnWidth, width), up: await matrix(ffnWidth, width) },
      down: await matrix(width, ffnWidth),
    });
  }
  const embeddings = await matrix(vocabularySize, width, tableEncoding(encoding));
  return { embeddings, layers, finalNorm: norm, head: embeddings };
}

function ones(device: WebGpuDevice, elements: number): DeviceBuffer {
  const buffer = device.buffer("ones", elements * 4);
  device.write(buffer, 0, new Uint8Array(new Float32Array(elements).fill(1).buffer));
  return buffer;
}

function fill(
  device: WebGpuDevice,
  buffer: GPUBuffer,
  words: { seed: number; keep: number; base: number },
): Promise<void> {
  const count = buffer.size / 4;
  const groups = Math.min(GROUPS_MAX, Math.ceil(count / THREADS));
  return device.runKernel(FILL_NOISE, { count, ...words }, [buffer], [groups]);
}

function floatBits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0] as number;
}
