/// <reference types="@webgpu/types" />
/** Which device computes where nobody named one. */
import { describe, expect, it, vi } from "vitest";
import { chooseDevice, type DeviceFinder, failedOps } from "../../kernels/auto-device.ts";
import type { Device } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { NoAdapterError } from "../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";

vi.setConfig({ testTimeout: 240_000 });

/** An adapter that says this of itself. */
function adapter(info: { vendor: string; description: string; isFallbackAdapter?: boolean }): GPUAdapter {
  const limits = { maxStorageBufferBindingSize: 1, maxBufferSize: 1, maxStorageBuffersPerShaderStage: 8 };
  const words = { architecture: "", device: "", isFallbackAdapter: false, ...info };
  return { info: words, limits, features: new Set() } as unknown as GPUAdapter;
}

/** Devices that say what they are, and remember that they were closed. */
function device(kind: "wasm" | "webgpu", closed: string[]): Device {
  const report = { kind, description: `the ${kind} device`, threadCount: 1, memoryBytesMax: 1 };
  const close = async (): Promise<void> => void closed.push(kind);
  return { kind, report, close } as unknown as Device;
}

async function choose(finder: Partial<DeviceFinder>): Promise<{ kind: string; line: string; closed: string[] }> {
  const closed: string[] = [];
  const { device: chosen, line } = await chooseDevice({
    mayHaveGpu: () => true,
    findAdapter: async () => adapter({ vendor: "nvidia", description: "H200" }),
    openGpu: async () => device("webgpu", closed),
    openCpu: async () => device("wasm", closed),
    assertSuits: () => {},
    check: async () => undefined,
    ...finder,
  });
  return { kind: chosen.kind, line, closed };
}

describe("the device that auto takes", () => {
  it("is a hardware GPU that computes rightly", async () => {
    expect(await choose({})).toEqual({ kind: "webgpu", line: "device webgpu: the webgpu device", closed: [] });
  });

  it.each([
    [
      "a software GPU",
      { findAdapter: async () => adapter({ vendor: "google", description: "SwiftShader" }) },
      "the only GPU is software (google SwiftShader)",
    ],
    [
      "a GPU of type CPU",
      { findAdapter: async () => adapter({ vendor: "x", description: "y", isFallbackAdapter: true }) },
      "the only GPU is software (x y)",
    ],
    [
      "no adapter",
      {
        findAdapter: async () => {
          throw new NoAdapterError("device webgpu: no adapter");
        },
      },
      "no GPU can be used: no adapter",
    ],
    [
      "a GPU that does not open",
      {
        openGpu: async () => {
          throw new Error("lost at once");
        },
      },
      "no GPU can be used: lost at once",
    ],
  ] satisfies [string, Partial<DeviceFinder>, string][])("is the CPU beside %s", async (_, finder, reason) => {
    expect(await choose(finder)).toEqual({ kind: "wasm", line: `device wasm: the wasm device; ${reason}`, closed: [] });
  });

  it("is the CPU beside a GPU that fails the check or breaks in it, which is closed", async () => {
    const line = "device wasm: the wasm device; the GPU (nvidia H200) computes wrongly: int8 product, 1 rows";
    expect(await choose({ check: async () => "int8 product, 1 rows" })).toEqual({
      kind: "wasm",
      line,
      closed: ["webgpu"],
    });
    const broken = await choose({ check: () => Promise.reject(new Error("hung")) });
    expect(broken).toMatchObject({ kind: "wasm", closed: ["webgpu"], line: expect.stringContaining("hung") });
  });

  it("is the CPU beside a GPU that cannot hold what it is opened for, which is closed before it is checked", async () => {
    let checks = 0;
    const chosen = await choose({
      assertSuits({ kind }) {
        if (kind === "webgpu") throw new Error("900.0 MiB of int8 weights do not fit");
      },
      check: async () => void checks++,
    });
    const line = "device wasm: the wasm device; no GPU can be used: 900.0 MiB of int8 weights do not fit";
    expect(chosen).toEqual({ kind: "wasm", line, closed: ["webgpu"] });
    expect(checks).toBe(0);
  });

  it("is the CPU without a look where nothing speaks of a GPU", async () => {
    let looked = 0;
    const findAdapter = async (): Promise<GPUAdapter> => {
      looked++;
      return adapter({ vendor: "nvidia", description: "" });
    };
    expect(await choose({ mayHaveGpu: () => false, findAdapter })).toMatchObject({ kind: "wasm" });
    expect(looked).toBe(0);
  });
});

describe("the check that a GPU must pass", () => {
  it("passes on the reference, and fails by name where a product is off by a thousandth", async () => {
    const right = openReferenceDevice();
    expect(await failedOps(right)).toBeUndefined();
    const wrong = openReferenceDevice();
    const write = wrong.write.bind(wrong);
    wrong.write = (buffer, byteOffset, data) => {
      const values = new Float32Array(data.slice().buffer);
      write(buffer, byteOffset, new Uint8Array(values.map((value, at) => (at === 0 ? value + 0.3 : value)).buffer));
    };
    expect(await failedOps(wrong)).toMatch(/^int8 product, 1 rows/);
  });

  it("passes on a software GPU", async ({ skip }) => {
    if ((await adapterForTests()) === undefined) skip("no adapter");
    const gpu = await openWebGpuDevice();
    expect(await failedOps(gpu)).toBeUndefined();
    await gpu.close();
  });
});
