/** Chooses a device. Implementations are loaded when asked for. */
import { unreachable } from "../protocol/assert.ts";
import type { Device } from "./contract.ts";

/** What to open, and what it may take of the machine. */
export interface DeviceOptions {
  /** `reference` is the oracle: hundreds of times slower, for tests. `auto`: a GPU where there is one that can be trusted, else the CPU. */
  kind: "auto" | "reference" | "wasm" | "webgpu";
  /** Threads of a CPU device, the caller's included; default: the cores there are, at most 8. */
  threads?: number;
  /** Memory that buffers, matrices and pools may take together. */
  memoryBytesMax?: number;
  /** Hears which device `auto` took and why, in one line. */
  onChoice?: (line: string) => void;
  /** Throws where a device cannot hold what it is opened for. `auto` then takes the CPU; no other kind asks. */
  assertSuits?: (device: Device) => void;
}

/** Opens a device; the caller closes it. @throws {QuireError} where there is no GPU for `webgpu`. */
export async function openDevice({ kind, ...options }: DeviceOptions): Promise<Device> {
  switch (kind) {
    case "auto":
      return (await import("./auto-device.ts")).openAutoDevice(options);
    case "reference":
      return (await import("./reference/device.ts")).openReferenceDevice(options);
    case "wasm":
      return (await import("./wasm/open-wasm.ts")).openWasmDevice(options);
    case "webgpu":
      return (await import("./webgpu/open-webgpu.ts")).openWebGpuDevice(options);
    default:
      return unreachable(kind);
  }
}
