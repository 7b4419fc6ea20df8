/// <reference types="@webgpu/types" />
/**
 * Which optional features of a GPU the kernels use: those that the adapter has, that nobody forbade, and that give the right bits on a small
 * self-check when the device is opened. A feature that fails it is left out with a note; nothing else changes, because every lane gives the
 * same bits.
 */
import { QuireError } from "../../protocol/errors.ts";
import { CommandList, StepBuffers } from "./command-list.ts";
import { Gpu } from "./gpu.ts";
import { type Kernel, type Lane, PLAIN_LANE } from "./kernel.ts";
import { HALVES, HALVES_COUNT, halvesExpected, LANE_CHECK_SIZES, laneCheck, laneCheckExpected } from "./wgsl/checks.ts";

/** Features of kernels, as `QUIRE_WEBGPU_FEATURES` names them. */
export const KERNEL_FEATURES = ["subgroups", "f16"] as const;
/** One of {@link KERNEL_FEATURES}. */
export type KernelFeature = (typeof KERNEL_FEATURES)[number];

/** What WebGPU calls them. */
const GPU_FEATURES: Readonly<Record<KernelFeature, GPUFeatureName>> = { subgroups: "subgroups", f16: "shader-f16" };

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

/** Asks the GPU, with small kernels. */
export async function settleLane(device: GPUDevice, wanted: readonly KernelFeature[]): Promise<SettledLane> {
  const used: KernelFeature[] = [];
  const notes: string[] = [];
  for (const feature of KERNEL_FEATURES) {
    if (!wanted.includes(feature) || !device.features.has(GPU_FEATURES[feature])) continue;
    const failure = await CHECKS[feature](device);
    if (failure === undefined) used.push(feature);
    else notes.push(`${feature} not used, self-check failed: ${failure}`);
  }
  const subgroups = used.includes("subgroups") ? "native" : "none";
  return { lane: { subgroups, hasF16: used.includes("f16") }, used, notes };
}

const CHECKS: Readonly<Record<KernelFeature, (device: GPUDevice) => Promise<string | undefined>>> = {
  async subgroups(device) {
    for (const threads of LANE_CHECK_SIZES) {
      const expected = laneCheckExpected(threads);
      const lane: Lane = { ...PLAIN_LANE, subgroups: "native" };
      const failure = await check({ device, lane, kernel: laneCheck(threads), expected, groups: 1 });
      if (failure !== undefined) return failure;
    }
    return undefined;
  },
  f16(device) {
    const lane: Lane = { ...PLAIN_LANE, hasF16: true };
    return check({ device, lane, kernel: HALVES, expected: halvesExpected(), groups: HALVES_COUNT / 256 });
  },
};

interface Check {
  device: GPUDevice;
  lane: Lane;
  /** With one binding, written. */
  kernel: Kernel;
  /** What it must write, in words. */
  expected: Uint32Array;
  groups: number;
}

/** undefined: as expected; else what was wrong. */
async function check({ device, lane, kernel, expected, groups }: Check): Promise<string | undefined> {
  const gpu = new Gpu(device, lane);
  device.pushErrorScope("validation");
  const out = gpu.storage("self-check", expected.byteLength);
  const list = new CommandList(gpu, new StepBuffers());
  list.dispatch(kernel, {}, [out], [groups]);
  await list.submit(new Uint8Array(4), 0);
  const words = new Uint32Array((await gpu.read(out, 0, expected.byteLength)).buffer);
  const error = await device.popErrorScope();
  gpu.destroy(out);
  if (error !== null) return error.message.split("\n")[0];
  const at = words.findIndex((word, index) => word !== expected[index]);
  return at < 0 ? undefined : `${kernel.name} wrote ${words[at]} for ${expected[at]} at ${at}`;
}
