/** The machine that figures belong to. */
import { arch, availableParallelism, cpus, loadavg, platform, totalmem } from "node:os";

/** A figure without these means little. */
export interface Machine {
  cpu: string;
  /** Cores that this process may use. */
  coreCount: number;
  memoryBytes: number;
  platform: string;
  node: string;
  /** Processes that wanted a core, averaged over the last minute before the run: near 0 on a quiet machine. */
  loadAverage: number;
}

/** Describes this machine as it is now. */
export function describeMachine(): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    coreCount: availableParallelism(),
    memoryBytes: totalmem(),
    platform: `${platform()}-${arch()}`,
    node: process.versions.node,
    loadAverage: Math.round((loadavg()[0] ?? 0) * 100) / 100,
  };
}

/** The machine in one line. */
export function machineLine(machine: Machine): string {
  const gibibytes = (machine.memoryBytes / 1024 ** 3).toFixed(0);
  const { cpu, coreCount, node, platform: system, loadAverage } = machine;
  const load = `load average ${loadAverage.toFixed(2)} before the run`;
  return `machine: ${cpu}, ${coreCount} cores, ${gibibytes} GiB, ${system}, Node ${node}, ${load}`;
}
