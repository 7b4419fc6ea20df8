/** `quire devices`: what can compute on this machine. */
import { execFile } from "node:child_process";
import { availableParallelism, cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { mayHaveGpu } from "../kernels/auto-device.ts";
import { poolPartsMax } from "../kernels/webgpu/pool.ts";
import type { Command } from "./command.ts";
import type { FoundGpu, GpuReport } from "./find-gpu.ts";
import { UsageError } from "./usage-error.ts";

const LOOK_MS_MAX = 60_000;

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

/**
 * Asks in a process of its own (`find-gpu.ts`): what Vulkan's loader and Dawn warn of goes to file descriptor 2, which only a parent can keep, and a
 * driver that crashes ends only that process. The warnings are shown but where there is no GPU to warn of.
 * @throws {UsageError} what that process refuses
 */
async function findGpu(): Promise<GpuReport> {
  const { code, stdout, stderr } = await new Promise<{ code: unknown; stdout: string; stderr: string }>((resolve) => {
    const args = [fileURLToPath(new URL("find-gpu.ts", import.meta.url))];
    execFile(process.execPath, args, { timeout: LOOK_MS_MAX, killSignal: "SIGKILL" }, (error, stdout, stderr) => {
      resolve({ code: error?.signal ?? error?.code ?? 0, stdout, stderr });
    });
  });
  const found: FoundGpu =
    code === 0 ? JSON.parse(stdout) : { reason: `the driver ended the process that asked it for a GPU (${code})` };
  if ("refusal" in found) throw new UsageError(found.refusal);
  if (!("reason" in found) || mayHaveGpu()) process.stderr.write(stderr);
  return found;
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
