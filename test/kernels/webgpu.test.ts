/** The GPU device on a software adapter: the part of the conformance suite that is quick enough for every run. */
import { describe, vi } from "vitest";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { describeConformance } from "./conformance.ts";
import { QUICK_PARTS } from "./webgpu-parts.ts";

vi.setConfig({ testTimeout: 120_000 });
const adapter = await adapterForTests();

describe.skipIf(adapter === undefined)("webgpu (no adapter where this is skipped)", () => {
  describeConformance("webgpu", () => openWebGpuDevice(), { parts: [...QUICK_PARTS, "traces"], traceCount: 1 });
});
