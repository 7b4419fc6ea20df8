/**
 * The text of every kernel in every lane, compiled by Dawn's own compiler on its null backend: that has no GPU behind it but all features, so
 * text that no adapter at hand can run is validated all the same.
 */
import { describe, expect, it } from "vitest";
import { SUBGROUP_MATRIX } from "../../kernels/webgpu/adapter.ts";
import { type Lane, PLAIN_LANE, shaderSource } from "../../kernels/webgpu/kernel.ts";
import { ALL_KERNELS } from "./support/all-kernels.ts";

const LANES: Readonly<Record<string, Lane>> = {
  plain: PLAIN_LANE,
  subgroups: { ...PLAIN_LANE, subgroups: "native" },
  "subgroups of 32, simulated": { ...PLAIN_LANE, subgroups: { simulated: 32 } },
  f16: { ...PLAIN_LANE, hasF16: true },
  everything: { subgroups: "native", hasF16: true },
};

/** A device that compiles and runs nothing; undefined where Dawn does not load. */
async function openNull(): Promise<GPUDevice | undefined> {
  try {
    const dawn = await import("webgpu");
    const gpu = dawn.create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
    // Collected before the process ends, it would abort it.
    Object.assign(globalThis, { [Symbol.for("quire.webgpu.null")]: gpu });
    const adapter = await gpu.requestAdapter();
    const requiredFeatures: GPUFeatureName[] = ["subgroups", "shader-f16", SUBGROUP_MATRIX];
    return await adapter?.requestDevice({ requiredFeatures });
  } catch (error) {
    if (process.env.CI !== undefined) throw error;
    return undefined;
  }
}

const device = await openNull();

/** The compiler's errors; undefined: none. */
async function errorsOf(code: string): Promise<string | undefined> {
  if (device === undefined) return undefined;
  device.pushErrorScope("validation");
  device.createShaderModule({ code });
  return (await device.popErrorScope())?.message;
}

describe.skipIf(device === undefined)("the text of kernels", () => {
  it("names every kernel once", () => {
    expect(new Set(ALL_KERNELS.map(({ name }) => name)).size).toBe(ALL_KERNELS.length);
  });

  it("a compiler that accepts everything would not do", async () => {
    expect(await errorsOf("fn main() -> f16 { return 1h; }")).toMatch(/f16/);
  });

  // No software GPU fuses a product and a sum, so nothing that runs here would show it.
  it("rounds a sealed key before anything is added to it", () => {
    const kernels = ALL_KERNELS.filter(({ name }) => /^summarize_.*_int8_/.test(name));
    expect(kernels.length).toBeGreaterThan(5);
    for (const { name, code } of kernels)
      expect(code, name).toMatch(/fn key\([^}]*\n {2}return rounded\(code \* [^\n]*\);\n/);
  });

  it.each(Object.entries(LANES))("compiles: %s", { timeout: 120_000 }, async (_, lane) => {
    const errors: string[] = [];
    for (const kernel of ALL_KERNELS) {
      const error = await errorsOf(shaderSource(kernel, lane));
      if (error !== undefined) errors.push(`${kernel.name}: ${error}`);
    }
    expect(errors).toEqual([]);
  });
});
