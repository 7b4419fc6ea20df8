/// <reference types="@webgpu/types" />
/**
 * Which optional features of a GPU the kernels use: those that the adapter has, that nobody forbade, and that give the right bits on a small
 * self-check when the device is opened. A feature that fails it is left out with a note; nothing else changes, because every lane gives the
 * same bits.
 */
import { QuireError } from "../../protocol/errors.ts";
import { SUBGROUP_MATRIX } from "./adapter.ts";
import { CommandList, type Grid, StepBuffers } from "./command-list.ts";
import { Gpu } from "./gpu.ts";
import { type Kernel, type Lane, type MatrixShape, PLAIN_LANE } from "./kernel.ts";
import { HALVES, HALVES_COUNT, halvesExpected, LANE_CHECK_SIZES, laneCheck, laneCheckExpected } from "./wgsl/checks.ts";
import { GEMM_TILE, gemm } from "./wgsl/matmul.ts";
import { fitsTiles, gemmByMatrices, MATRIX_COLUMNS, MATRIX_ROWS } from "./wgsl/matmul-matrix.ts";
import { productCheck } from "./wgsl/product-check.ts";
import { Words } from "./words.ts";

/** Features of kernels, as `QUIRE_WEBGPU_FEATURES` names them. */
const KERNEL_FEATURES = ["subgroups", "f16", "subgroup-matrix"] as const;
/** One of {@link KERNEL_FEATURES}. */
export type KernelFeature = (typeof KERNEL_FEATURES)[number];

/** What WebGPU calls them. */
const GPU_FEATURES: Readonly<Record<KernelFeature, readonly GPUFeatureName[]>> = {
  subgroups: ["subgroups"],
  f16: ["shader-f16"],
  "subgroup-matrix": ["subgroups", "shader-f16", SUBGROUP_MATRIX],
};

/** `auto`, `none`, or names between commas. @throws {QuireError} `invalid_request` for another word. */
export function parseFeatures(text: string): readonly KernelFeature[] {
  if (text === "auto" || text === "") return KERNEL_FEATURES;
  if (text === "none") return [];
  return text.split(",").map((word) => {
    const feature = KERNEL_FEATURES.find((name) => name === word);
    if (feature !== undefined) return feature;
    const message = `QUIRE_WEBGPU_FEATURES: ${JSON.stringify(word.slice(0, 64))} is none of auto, none, ${KERNEL_FEATURES.join(", ")}`;
    throw new QuireError("invalid_request", message, { param: "QUIRE_WEBGPU_FEATURES" });
  });
}

/** What the kernels of a device use, and in words what they might have used and do not. */
export interface SettledLane {
  lane: Lane;
  used: readonly KernelFeature[];
  notes: readonly string[];
}

/** Asks the GPU, with small kernels. `shapes`: see {@link matrixShapes}. */
export async function settleLane(
  device: GPUDevice,
  wanted: readonly KernelFeature[],
  shapes: readonly MatrixShape[] = [],
): Promise<SettledLane> {
  const lane: Lane = { ...PLAIN_LANE };
  const used: KernelFeature[] = [];
  const notes: string[] = [];
  for (const feature of KERNEL_FEATURES) {
    if (!wanted.includes(feature) || !GPU_FEATURES[feature].every((name) => device.features.has(name))) continue;
    const failure = await SETTLE[feature]({ device, shapes, lane });
    if (failure === undefined) used.push(feature);
    else notes.push(`${feature} not used, self-check failed: ${failure}`);
  }
  return { lane, used, notes };
}

/** The subgroup matrices of an adapter that the kernels could use, best first. */
export function matrixShapes(adapter: GPUAdapter): MatrixShape[] {
  const { subgroupMatrixConfigs = [] } = adapter.info as { subgroupMatrixConfigs?: readonly MatrixConfig[] };
  const shapes = subgroupMatrixConfigs
    .filter(({ componentType, resultComponentType }) => componentType === "f16" && resultComponentType === "f32")
    .map(({ M: m, N: n, K: k }) => ({ m, n, k }))
    .filter(fitsTiles);
  return shapes.sort((a, b) => b.m * b.n * b.k - a.m * a.n * a.k);
}

/** An entry of `GPUAdapterInfo.subgroupMatrixConfigs`. */
interface MatrixConfig {
  componentType: string;
  resultComponentType: string;
  M: number;
  N: number;
  K: number;
}

interface Settling {
  device: GPUDevice;
  shapes: readonly MatrixShape[];
  /** Gets what has passed. */
  lane: Lane;
}

/** Says what was wrong, or puts the feature into the lane. */
const SETTLE: Readonly<Record<KernelFeature, (settling: Settling) => Promise<string | undefined>>> = {
  async subgroups({ device, lane }) {
    for (const threads of LANE_CHECK_SIZES) {
      const expected = laneCheckExpected(threads);
      const native: Lane = { ...PLAIN_LANE, subgroups: "native" };
      const failure = await check({ device, lane: native, kernel: laneCheck(threads), expected, grid: [1] });
      if (failure !== undefined) return failure;
    }
    lane.subgroups = "native";
    return undefined;
  },
  async f16({ device, lane }) {
    const grid = [HALVES_COUNT / 256] as const;
    const native: Lane = { ...PLAIN_LANE, hasF16: true };
    const failure = await check({ device, lane: native, kernel: HALVES, expected: halvesExpected(), grid });
    lane.hasF16 = failure === undefined;
    return failure;
  },
  async "subgroup-matrix"({ device, shapes, lane }) {
    let failure: string | undefined = "the adapter has none of f16 with sums in f32 whose size fits";
    for (const shape of shapes) {
      failure = await checkMatrices(device, shape);
      if (failure !== undefined) continue;
      lane.matrix = shape;
      return undefined;
    }
    return failure;
  },
};

/** Whether products by subgroup matrices have the bits of those without. */
export async function checkMatrices(device: GPUDevice, shape: MatrixShape): Promise<string | undefined> {
  for (const encoding of ["int8", "int4"] as const) {
    const { params, inputs } = productCheck(encoding);
    const { part_width: width, rows } = params;
    const words = width * rows;
    const common = { device, lane: PLAIN_LANE, params, inputs };
    const plainGrid = [Math.ceil(width / GEMM_TILE), Math.ceil(rows / GEMM_TILE)] as const;
    const plain = await run({ ...common, kernel: gemm(encoding), words, grid: plainGrid });
    if (plain.error !== undefined) return plain.error;
    const grid = [Math.ceil(width / MATRIX_COLUMNS), Math.ceil(rows / MATRIX_ROWS)] as const;
    const failure = await check({ ...common, kernel: gemmByMatrices(encoding, shape), expected: plain.words, grid });
    if (failure !== undefined) return failure;
  }
  return undefined;
}

interface Run {
  device: GPUDevice;
  lane: Lane;
  /** Writes one binding, `out`. */
  kernel: Kernel;
  params?: Readonly<Record<string, number>>;
  /** Of the other bindings, by name. */
  inputs?: Readonly<Record<string, Uint32Array<ArrayBuffer>>>;
  /** Of `out`. */
  words: number;
  grid: Grid;
}

/** undefined: the kernel writes what is expected; else what was wrong. */
async function check({
  expected,
  ...asked
}: Omit<Run, "words"> & { expected: Uint32Array }): Promise<string | undefined> {
  const { words, error } = await run({ ...asked, words: expected.length });
  if (error !== undefined) return error;
  const at = words.findIndex((word, index) => word !== expected[index]);
  return at < 0 ? undefined : `${asked.kernel.name} wrote ${words[at]} for ${expected[at]} at ${at}`;
}

/** What a kernel writes, or what WebGPU or the driver has against it. A driver that does not compile it, or ends over it, is an answer too. */
async function run(asked: Run): Promise<{ words: Uint32Array; error?: string }> {
  const { device } = asked;
  for (const filter of ["internal", "validation"] as const) device.pushErrorScope(filter);
  const done = await runUnscoped(asked).catch((error: Error) => error);
  // A lost GPU has no answer.
  const pop = (): Promise<GPUError | null> => device.popErrorScope().catch(() => null);
  const error = (await pop()) ?? (await pop()) ?? (done instanceof Error ? done : undefined);
  const words = done instanceof Error ? new Uint32Array(0) : done;
  return { words, ...(error === undefined ? {} : { error: error.message.split("\n")[0] as string }) };
}

async function runUnscoped({
  device,
  lane,
  kernel,
  params = {},
  inputs = {},
  words,
  grid,
}: Run): Promise<Uint32Array<ArrayBuffer>> {
  const gpu = new Gpu(device, lane);
  const out = gpu.storage("self-check", words * 4);
  const buffers = Object.keys(kernel.bindings).map((name) => {
    const input = inputs[name];
    if (input === undefined) return out;
    const buffer = gpu.storage(name, input.byteLength);
    device.queue.writeBuffer(buffer, 0, input);
    return buffer;
  });
  const list = new CommandList(gpu, new StepBuffers());
  list.dispatch(kernel, params, buffers, grid);
  await list.submit(new Words(), 0);
  const written = new Uint32Array((await gpu.read(out, 0, words * 4)).buffer);
  for (const buffer of buffers) gpu.destroy(buffer);
  return written;
}
