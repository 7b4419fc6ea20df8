/** `npm run bench -- gpu-check`: whether this GPU and its driver compute what they should. Needs no test framework. */
import { registerHooks } from "node:module";
import { parseChoice, parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { checkDevice } from "../../kernels/device-check.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import type { ConformancePart } from "../../test/kernels/conformance.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { openGpu } from "./open-gpu.ts";

const flags = {
  ops: {
    help: "compare some ops with the reference",
    placeholder: "",
    fallback: "true",
    parse: parseChoice(["true", "false"]),
  },
  suite: {
    help: "run the conformance suite",
    placeholder: "",
    fallback: "true",
    parse: parseChoice(["true", "false"]),
  },
  parts: {
    help: "parts of the suite, between commas, or all",
    placeholder: "LIST",
    fallback: "all",
    parse: (text: string) => text.split(","),
  },
  seconds: {
    help: "time of the suite: no test begins after it",
    placeholder: "S",
    fallback: "600",
    parse: parseInteger({ min: 1, max: 86_400 }),
  },
  seed: seedFlag,
} as const;

/** What the suite found. */
interface SuiteResult {
  passed: number;
  failed: { name: string; error: string }[];
  /** Tests for which there was no time. */
  skipped: number;
}

/** The benchmark as the registry names it. */
export const gpuCheckBench = defineBench({
  summary:
    "Compares some ops of the GPU device with the reference, then runs the conformance suite as far as time goes.",
  flags,
  async run(values, context) {
    const first = await openGpu();
    const { adapter } = first;
    context.print(`${adapter.description}; ${adapter.features.join(", ")}`);
    const reference = openReferenceDevice();
    const correctness =
      values.ops === "true" ? await checkDevice(first, reference, { seed: values.seed, extent: "all" }) : [];
    await Promise.all([first.close(), reference.close()]);
    for (const { name, error } of correctness.filter((row) => !row.ok)) context.print(`WRONG ${name}: off by ${error}`);
    const right = correctness.filter((row) => row.ok).length;
    if (correctness.length > 0) context.print(`${right} of ${correctness.length} ops as the reference computes them`);
    await context.save({ settings: values, adapter, correctness });
    const suite = values.suite === "true" ? await runConformance(values, context) : undefined;
    if (suite !== undefined) {
      for (const { name, error } of suite.failed) context.print(`FAILED ${name}: ${error.split("\n")[0]}`);
      context.print(`conformance: ${suite.passed} passed, ${suite.failed.length} failed, no time for ${suite.skipped}`);
    }
    const ok = right === correctness.length && (suite === undefined || suite.failed.length === 0);
    return { ok, data: { settings: values, adapter, correctness, ...(suite === undefined ? {} : { suite }) } };
  },
});

/** The suite is written for vitest; in its place it gets the small module that the browser page uses. */
async function runConformance(
  { parts, seconds }: { parts: readonly string[]; seconds: number },
  context: BenchContext,
): Promise<SuiteResult> {
  const runner = new URL("../../test/kernels/browser/suite-in-page.ts", import.meta.url);
  registerHooks({
    resolve: (specifier, from, next) =>
      specifier === "vitest" ? { url: runner.href, shortCircuit: true } : next(specifier, from),
  });
  const { CONFORMANCE_PARTS, describeConformance } = await import("../../test/kernels/conformance.ts");
  const { runSuite } = await import("../../test/kernels/browser/suite-in-page.ts");
  const chosen = parts[0] === "all" ? CONFORMANCE_PARTS : (parts as ConformancePart[]);
  const unknown = chosen.find((part) => !CONFORMANCE_PARTS.includes(part));
  if (unknown !== undefined) throw new UsageError(`--parts: "${unknown}" is none of ${CONFORMANCE_PARTS.join(", ")}`);
  describeConformance("webgpu", () => openWebGpuDevice(), { parts: chosen });
  const result: SuiteResult = { passed: 0, failed: [], skipped: 0 };
  const endMs = performance.now() + seconds * 1000;
  const hasTime = (): boolean => performance.now() < endMs && !context.signal.aborted;
  await runSuite((outcome) => {
    if (outcome.skipped) result.skipped += 1;
    else if (outcome.error === undefined) result.passed += 1;
    else result.failed.push({ name: outcome.name, error: outcome.error });
    if (!outcome.skipped)
      context.progress(
        `${outcome.error === undefined ? "ok    " : "FAILED"} ${outcome.name} (${outcome.ms.toFixed(0)} ms)`,
      );
  }, hasTime);
  return result;
}
