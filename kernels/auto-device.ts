/// <reference types="@webgpu/types" />
/** Which device computes where nobody named one: a hardware GPU that computes what it should, else the CPU. */
import { existsSync } from "node:fs";
import type { Device } from "./contract.ts";
import { checkDevice } from "./device-check.ts";
import type { DeviceOptions } from "./open.ts";
import { openReferenceDevice } from "./reference/device.ts";
import { openWasmDevice } from "./wasm/open-wasm.ts";
import { adapterReport, requestAdapter } from "./webgpu/adapter.ts";
import { openWebGpuDevice } from "./webgpu/open-webgpu.ts";

/** What the choice needs of the machine. */
export interface DeviceFinder {
  /** Whether it is worth to look: loading what speaks to GPUs costs time and memory on every machine that has none. */
  mayHaveGpu(): boolean;
  /** @throws {Error} where there is no adapter. */
  findAdapter(): Promise<GPUAdapter>;
  openGpu(adapter: GPUAdapter): Promise<Device>;
  openCpu(): Promise<Device>;
  /** @throws {Error} where a GPU cannot hold what it is opened for. */
  assertSuits(device: Device): void;
  /** What the device computes wrongly; undefined: nothing. */
  check(device: Device): Promise<string | undefined>;
}

/** A device, and why it was taken, in one line. */
export interface ChosenDevice {
  device: Device;
  line: string;
}

/** Takes the GPU or the CPU. Whatever is wrong with a GPU is a reason for the CPU, never an error. */
export async function chooseDevice(finder: DeviceFinder): Promise<ChosenDevice> {
  const found = await findGpu(finder);
  if (typeof found !== "string") return { device: found, line: `device webgpu: ${found.report.description}` };
  const device = await finder.openCpu();
  return { device, line: `device wasm: ${device.report.description}; ${found}` };
}

/** A GPU to be trusted, or why there is none. */
async function findGpu({
  mayHaveGpu,
  findAdapter,
  openGpu,
  assertSuits,
  check,
}: DeviceFinder): Promise<Device | string> {
  if (!mayHaveGpu()) return "this machine has no GPU";
  let device: Device | undefined;
  try {
    const adapter = await findAdapter();
    const { isSoftware, description } = adapterReport(adapter);
    if (isSoftware) return `the only GPU is software (${description})`;
    device = await openGpu(adapter);
    assertSuits(device);
    const wrong = await check(device);
    if (wrong === undefined) return device;
    await device.close();
    return `the GPU (${description}) computes wrongly: ${wrong}`;
  } catch (error) {
    await device?.close();
    return `no GPU can be used: ${error instanceof Error ? error.message.replace(/^device webgpu: /, "") : String(error)}`;
  }
}

const CHECK_SEED = 1;
/** What a Linux machine with a GPU has one of. */
const GPU_NODES = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"];

/** Opens the device that {@link chooseDevice} takes on this machine. */
export async function openAutoDevice({
  onChoice,
  assertSuits = () => {},
  ...options
}: Omit<DeviceOptions, "kind">): Promise<Device> {
  const { memoryBytesMax } = options;
  const { device, line } = await chooseDevice({
    mayHaveGpu,
    findAdapter: requestAdapter,
    openGpu: (adapter) => openWebGpuDevice({ adapter, ...(memoryBytesMax === undefined ? {} : { memoryBytesMax }) }),
    openCpu: () => openWasmDevice(options),
    assertSuits,
    check: failedOps,
  });
  onChoice?.(line);
  return device;
}

/** Whether a GPU, or a driver of one that the environment names, may be here; only Linux says so without asking a driver. */
export function mayHaveGpu(): boolean {
  const { VK_ICD_FILENAMES, VK_DRIVER_FILES } = process.env;
  if (process.platform !== "linux" || VK_ICD_FILENAMES !== undefined || VK_DRIVER_FILES !== undefined) return true;
  return GPU_NODES.some((path) => existsSync(path));
}

/** Names of ops whose results are not the reference's; undefined: none. */
export async function failedOps(device: Device): Promise<string | undefined> {
  const reference = openReferenceDevice();
  try {
    const rows = await checkDevice(device, reference, { seed: CHECK_SEED, extent: "few" });
    const failed = rows.filter(({ ok }) => !ok).map(({ name }) => name);
    return failed.length === 0 ? undefined : failed.join(", ");
  } finally {
    await reference.close();
  }
}
