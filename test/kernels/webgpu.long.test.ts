/** The GPU device on a software adapter: what webgpu.test.ts leaves of the conformance suite, and much of it again without subgroups. */
import { describe, vi } from "vitest";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { CONFORMANCE_PARTS, describeConformance } from "./conformance.ts";
import { QUICK_PARTS } from "./webgpu-parts.ts";

vi.setConfig({ testTimeout: 180_000 });
const adapter = await adapterForTests();

describe.skipIf(adapter === undefined)("webgpu, at length (no adapter where this is skipped)", () => {
  const parts = CONFORMANCE_PARTS.filter((part) => !QUICK_PARTS.includes(part));
  describeConformance("webgpu, at length", () => openWebGpuDevice(), { parts });
  describeConformance("webgpu without optional features", () => openWebGpuDevice({ features: [] }), {
    parts: ["rows", "sampling", "attention", "selection", "traces"],
    traceCount: 4,
  });
});
