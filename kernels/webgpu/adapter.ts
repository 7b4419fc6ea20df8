/// <reference types="@webgpu/types" />
/** Finding a GPU: through Dawn's npm package in Node, through `navigator.gpu` in a browser. */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";

/** Why there is no adapter, in one line. */
export class NoAdapterError extends QuireError {
  constructor(message: string, cause?: unknown) {
    super("invalid_request", message, { param: "device", cause });
  }
}

/** What an adapter says of itself. */
export interface AdapterReport {
  /** Vendor, architecture or device, and the driver's own words. */
  description: string;
  vendor: string;
  architecture: string;
  /** True for a software device such as SwiftShader or lavapipe. */
  isSoftware: boolean;
  /** Features that this project asks for where they are there. */
  features: readonly string[];
  bindingBytesMax: number;
  bufferBytesMax: number;
  storageBuffersMax: number;
}

/** WebGPU's name for subgroup matrices, which its types do not know yet. */
export const SUBGROUP_MATRIX = "chromium-experimental-subgroup-matrix" as GPUFeatureName;

/** Features worth having; each has a fallback. */
const WANTED: readonly GPUFeatureName[] = ["timestamp-query", "shader-f16", "subgroups", SUBGROUP_MATRIX];

/**
 * What Dawn is told. Its timestamps are whole multiples of 65.5 us otherwise, against spying by web pages, so that no kernel could be timed;
 * and only with unsafe APIs allowed does it list experimental features such as subgroup matrices. On NVIDIA it hides f16, because of conformance tests
 * that failed there; features.ts checks what our kernels do with it.
 */
const DAWN_ENABLED = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia"];
const DAWN_DISABLED = ["timestamp_quantization"];

/** Keeps what Dawn's `create` returned: when it is collected, the process aborts. */
const KEPT = Symbol.for("quire.webgpu");

interface Host {
  navigator?: { gpu?: GPU };
  process?: { env?: Readonly<Record<string, string | undefined>> };
  [KEPT]?: GPU;
}

/** The browser's entry point, or Dawn's. @throws {NoAdapterError} where neither can be loaded. */
async function openGpu(): Promise<GPU> {
  const host = globalThis as unknown as Host;
  if (host[KEPT] !== undefined) return host[KEPT];
  const inBrowser = host.navigator?.gpu;
  if (inBrowser !== undefined) return inBrowser;
  let dawn: typeof import("webgpu");
  try {
    dawn = await import("webgpu");
  } catch (cause) {
    throw new NoAdapterError("device webgpu: the npm package `webgpu` does not load on this machine", cause);
  }
  host[KEPT] = dawn.create(dawnFlags(host.process?.env?.QUIRE_DAWN_FEATURES ?? ""));
  return host[KEPT];
}

/** `more`: names of Dawn's toggles to enable beside ours, between commas; for experiments. */
function dawnFlags(more: string): string[] {
  const names = more === "" ? [] : more.split(",");
  for (const name of names) {
    if (/^[a-z0-9_]{1,64}$/.test(name)) continue;
    const message = `QUIRE_DAWN_FEATURES: ${JSON.stringify(name.slice(0, 64))} is no name of a toggle (a-z, 0-9 and _)`;
    throw new QuireError("invalid_request", message, { param: "QUIRE_DAWN_FEATURES" });
  }
  return [
    `enable-dawn-features=${[...DAWN_ENABLED, ...names].join(",")}`,
    `disable-dawn-features=${DAWN_DISABLED.join(",")}`,
  ];
}

/** The best adapter there is. @throws {NoAdapterError} */
export async function requestAdapter(): Promise<GPUAdapter> {
  const gpu = await openGpu();
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (adapter === null) throw new NoAdapterError("device webgpu: no adapter (no GPU, or no Vulkan driver for it)");
  return adapter;
}

/** What an adapter is and can. */
export function adapterReport(adapter: GPUAdapter): AdapterReport {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  const { maxStorageBufferBindingSize, maxBufferSize, maxStorageBuffersPerShaderStage } = adapter.limits;
  const words = [vendor, architecture, device, description].filter((word) => word !== "");
  return {
    description: words.join(" "),
    vendor,
    architecture,
    isSoftware: isFallbackAdapter || /swiftshader|llvmpipe|lavapipe/i.test(words.join(" ")),
    features: WANTED.filter((feature) => adapter.features.has(feature)),
    bindingBytesMax: maxStorageBufferBindingSize,
    bufferBytesMax: maxBufferSize,
    storageBuffersMax: maxStorageBuffersPerShaderStage,
  };
}

/** Opens an adapter with its largest limits of memory and the wanted features that it has. */
export async function openAdapter(adapter: GPUAdapter): Promise<GPUDevice> {
  const { limits } = adapter;
  const device = await adapter.requestDevice({
    requiredFeatures: WANTED.filter((feature) => adapter.features.has(feature)),
    requiredLimits: {
      maxBufferSize: limits.maxBufferSize,
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
    },
  });
  assert(device.limits.minUniformBufferOffsetAlignment <= 256, "uniform offsets need more than 256 bytes");
  return device;
}
