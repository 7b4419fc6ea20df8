/** `npm run bench -- gpu`: everything about the GPU device in one run, whatever fails or hangs on the way. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseChoice, parseInteger } from "../../cli/flags.ts";
import type { AdapterReport } from "../../kernels/webgpu/adapter.ts";
import { softwareGpuFolder } from "../../test/support/software-gpu.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { type Column, renderTable } from "../table.ts";
import { type GpuBar, gpuBars, type StageResults } from "./bars.ts";
import { runStage, type StageOutcome } from "./run-stage.ts";
import { type GpuSize, type GpuStage, gpuStages, OPS_STAGE } from "./stages.ts";
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
/** A driver compiles some ten small kernels when the device is opened. */
const PROBE_SECONDS_MAX = 30;
/** QUIRE_WEBGPU_FEATURES, one after the other: a driver may end over a feature that it says it has. */
const FEATURE_SETS = ["", "subgroups", "none"];
const NO_ADAPTER = "no adapter";
const ADVICE = `No GPU opens here. It takes a Vulkan loader (Debian: libvulkan1; without one that of @sparticuz/chromium is used) and a Vulkan driver.
In a container NVIDIA's comes with NVIDIA_DRIVER_CAPABILITIES=all (or with graphics in the list); VK_DRIVER_FILES names a driver's manifest
(nvidia_icd.json) that lies elsewhere. VK_LOADER_DEBUG=error,driver says what the loader does.`;

/** The benchmark as the registry names it. */
export const gpuBench = defineBench({
  summary:
    "Correctness, then kernels, decode and prefill on the GPU device, each stage in a process of its own; what was measured is written after each.",
  flags,
  async run(values, context) {
    const folder = mkdtempSync(join(tmpdir(), "quire-gpu-"));
    try {
      const head = { settings: values, driver: driverLine() };
      const endMs = performance.now() + values.seconds * 1000;
      const { opened, tried } = await openWays(values.size, context, { folder, endMs });
      for (const { notes } of opened === undefined ? tried : [opened]) for (const note of notes) context.print(note);
      context.print(driverLine());
      if (opened === undefined) {
        context.print(`${tried.map(({ tail }) => tail).join("\n")}\n${ADVICE}`);
        return { ok: false, data: { ...head, tried, ...reportOf(values.size, []) } };
      }
      const outcomes = await runStages(values, context, { folder, endMs, opened, head: { ...head, opened, tried } });
      const report = reportOf(values.size, outcomes);
      for (const line of renderTable(stageColumns, outcomes)) context.print(line);
      for (const { name, tail } of outcomes.filter(({ status }) => status === "failed" || status === "timeout")) {
        context.print(`\n${name}, its last lines:\n${tail}`);
      }
      context.print("");
      for (const line of renderTable(barColumns, report.bars)) context.print(line);
      if (values.size === "smoke") context.print("(sizes of a smoke test: the figures say nothing of speed)");
      const ok = outcomes.every(({ status }) => status === "done");
      return { ok, data: { ...head, opened, tried, ...report } };
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
});

/** A way to open the GPU, and what came of it. */
interface Way {
  /** What is set for every stage. */
  env: Record<string, string>;
  /** What was found, in words. */
  notes: readonly string[];
  adapter?: AdapterReport;
  /** The end of what was printed. */
  tail?: string;
}

/** Tries loaders and drivers, then the GPU without some or all of its optional features, until one of them opens; a software GPU only where that is asked for. */
async function openWays(
  size: GpuSize,
  context: BenchContext,
  { folder, endMs }: { folder: string; endMs: number },
): Promise<{ opened?: Way; tried: Way[] }> {
  const tried: Way[] = [];
  for (const features of FEATURE_SETS) {
    for (const place of vulkanOf(folder, context.env)) {
      const env = { ...place.env, ...(features === "" ? {} : { QUIRE_WEBGPU_FEATURES: features }) };
      const notes = [...place.notes, ...(features === "" ? [] : [`optional features: ${features}`])];
      const limitS = Math.min(PROBE_SECONDS_MAX, (endMs - performance.now()) / 1000);
      if (context.signal.aborted || limitS < 1) return { tried };
      context.progress(`opening: ${notes.join("; ")}`);
      const stage = { name: "open", args: ["gpu-check", "--ops=false", "--suite=false"], limitS };
      const outcome = await runStage(stage, { folder, env: { ...context.env, ...env }, signal: context.signal });
      const { adapter } = (outcome.result ?? {}) as { adapter?: AdapterReport };
      const way = { env, notes, ...(adapter === undefined ? {} : { adapter }), tail: outcome.tail ?? "" };
      if (outcome.status === "done" && adapter && (size === "smoke" || !adapter.isSoftware))
        return { opened: way, tried };
      tried.push(way);
    }
    // Where no adapter was seen the features have no part in it.
    if (context.env.QUIRE_WEBGPU_FEATURES || tried.every(({ tail }) => tail?.includes(NO_ADAPTER))) break;
  }
  return { tried };
}

async function runStages(
  { size }: { size: GpuSize },
  context: BenchContext,
  { folder, endMs, opened, head }: { folder: string; endMs: number; opened: Way; head: Record<string, unknown> },
): Promise<StageOutcome[]> {
  const outcomes: StageOutcome[] = [];
  let env: NodeJS.ProcessEnv = { ...context.env, ...opened.env };
  const run = async (stage: GpuStage): Promise<StageOutcome> => {
    const leftS = Math.floor((endMs - performance.now()) / 1000);
    if (context.signal.aborted || leftS < STAGE_SECONDS_MIN) return { name: stage.name, status: "no time", seconds: 0 };
    context.progress(`${stage.name}: ${stage.args.join(" ")}`);
    const limited = { ...stage, limitS: Math.min(stage.limitS, leftS) };
    const outcome = await runStage(limited, { folder, env, signal: context.signal });
    context.progress(`${stage.name}: ${outcome.status} after ${outcome.seconds.toFixed(1)} s`);
    return outcome;
  };
  for (const stage of gpuStages(size)) {
    outcomes.push(await run(stage));
    const isWrong = stage.name === OPS_STAGE && ["failed", "timeout"].includes(outcomes.at(-1)!.status);
    if (isWrong && env.QUIRE_WEBGPU_FEATURES !== "none") {
      // What is measured of wrong kernels is worth nothing: if they are right without the optional features, the rest goes without.
      const plain = { ...env, QUIRE_WEBGPU_FEATURES: "none" };
      const before = env;
      env = plain;
      outcomes.push(await run({ ...stage, name: `${stage.name}-plain` }));
      if (outcomes.at(-1)!.status !== "done") env = before;
    }
    await context.save({ ...head, ...reportOf(size, outcomes) });
  }
  return outcomes;
}

function reportOf(size: GpuSize, stages: readonly StageOutcome[]): { stages: readonly StageOutcome[]; bars: GpuBar[] } {
  const results: StageResults = Object.fromEntries(
    stages.flatMap(({ name, result }) => (result === undefined ? [] : [[name, result]])),
  );
  return { stages, bars: gpuBars(results, size) };
}

function vulkanOf(folder: string, env: NodeJS.ProcessEnv): VulkanPlace[] {
  if (process.platform !== "linux") return [{ env: {}, notes: [] }];
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
