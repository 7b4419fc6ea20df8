/** `quire devices`: what can compute on this machine. */
import { availableParallelism, cpus } from "node:os";
import { type AdapterReport, adapterReport, NoAdapterError, requestAdapter } from "../kernels/webgpu/adapter.ts";
import { poolPartsMax } from "../kernels/webgpu/pool.ts";
import type { Command } from "./command.ts";
import { UsageError } from "./usage-error.ts";

/** The GPU, or why there is none. */
type GpuReport = AdapterReport | { reason: string };

/** The command. */
export const devicesCommand: Command = {
  help: () =>
    "Usage: quire devices [--json]\n\nWhat can compute here; the kinds are those of --device, which takes a hardware GPU where there is one.\n",
  async run(args) {
    const unknown = args.find((arg) => arg !== "--json");
    if (unknown !== undefined) throw new UsageError(`unknown argument ${unknown}`);
    const cpu = { model: cpus()[0]?.model ?? "unknown", threads: availableParallelism() };
    const gpu = await findGpu();
    const text = args.includes("--json")
      ? JSON.stringify({ wasm: cpu, webgpu: gpu }, undefined, 2)
      : describe(cpu, gpu);
    process.stdout.write(`${text}\n`);
    return 0;
  },
};

async function findGpu(): Promise<GpuReport> {
  try {
    return adapterReport(await requestAdapter());
  } catch (error) {
    if (error instanceof NoAdapterError) return { reason: error.message.replace(/^device webgpu: /, "") };
    throw error;
  }
}

function describe(cpu: { model: string; threads: number }, gpu: GpuReport): string {
  const lines = [`wasm      ${cpu.model}, ${cpu.threads} thread${cpu.threads === 1 ? "" : "s"}`];
  if ("reason" in gpu) return [...lines, `webgpu    ${gpu.reason}`].join("\n");
  const features = gpu.features.length === 0 ? "none of the optional ones" : gpu.features.join(", ");
  const mebibytes = (bytes: number): string => `${Math.floor(bytes / 2 ** 20)} MiB`;
  const poolBytes = poolPartsMax(gpu) * Math.min(gpu.bindingBytesMax, gpu.bufferBytesMax);
  const note = gpu.isSoftware ? " (software: for tests, slower than the CPU device)" : "";
  return [
    ...lines,
    `webgpu    ${gpu.description}${note}`,
    `          features: ${features}`,
    `          buffers of ${mebibytes(gpu.bufferBytesMax)}, bound ${mebibytes(gpu.bindingBytesMax)} at once, ${gpu.storageBuffersMax} per kernel`,
    `          pages in up to ${mebibytes(poolBytes)}, whatever its memory (quire inspect MODEL --device webgpu: tokens)`,
  ].join("\n");
}
