/** `npm run bench -- gpu`: everything about the GPU device in one run, whatever fails or hangs on the way. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseChoice, parseInteger } from "../../cli/flags.ts";
import { softwareGpuFolder } from "../../test/support/software-gpu.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { type Column, renderTable } from "../table.ts";
import { type GpuBar, gpuBars, type StageResults } from "./bars.ts";
import { runStage, type StageOutcome } from "./run-stage.ts";
import { type GpuSize, gpuStages } from "./stages.ts";
import { findVulkan, type VulkanPlace } from "./vulkan.ts";

const flags = {
  size: {
    help: "8b (real hardware), or smoke: shows on a software GPU that everything runs",
    placeholder: "NAME",
    fallback: "8b",
    parse: parseChoice(["8b", "smoke"]),
  },
  seconds: {
    help: "time of the run: a stage gets what is left of it, at most its own limit",
    placeholder: "S",
    fallback: "460",
    parse: parseInteger({ min: 1, max: 86_400 }),
  },
} as const;

/** Names the kernel module of NVIDIA's driver where there is one. */
const NVIDIA_VERSION_FILE = "/proc/driver/nvidia/version";
const STAGE_SECONDS_MIN = 5;

/** The benchmark as the registry names it. */
export const gpuBench = defineBench({
  summary:
    "Correctness, then kernels, decode and prefill on the GPU device, each stage in a process of its own; what was measured is written after each.",
  flags,
  async run(values, context) {
    const folder = mkdtempSync(join(tmpdir(), "quire-gpu-"));
    try {
      const vulkan = vulkanOf(folder, context.env);
      for (const note of [...vulkan.notes, driverLine()]) context.print(note);
      const outcomes = await runStages(values, context, { folder, vulkan });
      const report = reportOf(values.size, outcomes);
      for (const line of renderTable(stageColumns, outcomes)) context.print(line);
      for (const { name, tail } of outcomes.filter(({ status }) => status === "failed" || status === "timeout")) {
        context.print(`\n${name}, its last lines:\n${tail}`);
      }
      context.print("");
      for (const line of renderTable(barColumns, report.bars)) context.print(line);
      if (values.size === "smoke") context.print("(sizes of a smoke test: the figures say nothing of speed)");
      const ok = outcomes.every(({ status }) => status === "done");
      return { ok, data: { settings: values, vulkan, driver: driverLine(), ...report } };
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
});

async function runStages(
  { size, seconds }: { size: GpuSize; seconds: number },
  context: BenchContext,
  { folder, vulkan }: { folder: string; vulkan: VulkanPlace },
): Promise<StageOutcome[]> {
  const endMs = performance.now() + seconds * 1000;
  const outcomes: StageOutcome[] = [];
  for (const stage of gpuStages(size)) {
    const leftS = Math.floor((endMs - performance.now()) / 1000);
    if (context.signal.aborted || leftS < STAGE_SECONDS_MIN) {
      outcomes.push({ name: stage.name, status: "no time", seconds: 0 });
      continue;
    }
    context.progress(`${stage.name}: ${stage.args.join(" ")}`);
    const env = { ...context.env, ...vulkan.env };
    const limited = { ...stage, limitS: Math.min(stage.limitS, leftS) };
    const outcome = await runStage(limited, { folder, env, signal: context.signal });
    context.progress(`${stage.name}: ${outcome.status} after ${outcome.seconds.toFixed(1)} s`);
    outcomes.push(outcome);
    await context.save({ settings: { size, seconds }, vulkan, driver: driverLine(), ...reportOf(size, outcomes) });
  }
  return outcomes;
}

function reportOf(size: GpuSize, stages: readonly StageOutcome[]): { stages: readonly StageOutcome[]; bars: GpuBar[] } {
  const results: StageResults = Object.fromEntries(
    stages.flatMap(({ name, result }) => (result === undefined ? [] : [[name, result]])),
  );
  return { stages, bars: gpuBars(results, size) };
}

function vulkanOf(folder: string, env: NodeJS.ProcessEnv): VulkanPlace {
  if (process.platform !== "linux") return { env: {}, notes: [] };
  return findVulkan({
    env,
    exists: existsSync,
    list: (path) => (existsSync(path) ? readdirSync(path) : []),
    ownLoader: softwareGpuFolder,
    write(name, text) {
      const path = join(folder, name);
      writeFileSync(path, text);
      return path;
    },
  });
}

function driverLine(): string {
  if (!existsSync(NVIDIA_VERSION_FILE)) return "no NVIDIA kernel module";
  return readFileSync(NVIDIA_VERSION_FILE, "utf8").split("\n")[0] ?? "";
}

const stageColumns: readonly Column<StageOutcome>[] = [
  { header: "stage", align: "left", cell: ({ name }) => name },
  { header: "outcome", align: "left", cell: ({ status }) => status },
  { header: "s", cell: ({ seconds }) => seconds.toFixed(1) },
];

const barColumns: readonly Column<GpuBar>[] = [
  { header: "figure", align: "left", cell: ({ figure }) => figure },
  {
    header: "value",
    cell: ({ value, unit }) => (value === undefined ? "-" : `${value.toFixed(unit === "%" ? 0 : 2)} ${unit}`),
  },
  { header: "bar", cell: ({ must }) => String(must) },
  { header: "aim", cell: ({ aim }) => String(aim) },
  { header: "verdict", align: "left", cell: ({ verdict }) => verdict },
];
