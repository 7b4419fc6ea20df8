/** Opens a model with int8 weights in a process of its own and prints what that took of memory: `node loading-process.ts FOLDER`. Linux. */
import { readFileSync } from "node:fs";
import { openDevice } from "../../kernels/open.ts";
import { openModel } from "../../models/open.ts";

/** What this process prints, as JSON. */
export interface LoadingMemory {
  /** Resident before the model is opened, with the device there. */
  beforeBytes: number;
  /** The most that was ever resident. */
  peakBytes: number;
}

/** A line of /proc/self/status. */
function statusBytes(field: "VmRSS" | "VmHWM"): number {
  const kibibytes = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return Number(kibibytes) * 1024;
}

const [folder = ""] = process.argv.slice(2);
const device = await openDevice({ kind: "wasm", threads: 1 });
const beforeBytes = statusBytes("VmRSS");
await openModel({
  folder,
  device,
  encoding: "int8",
  kv: { encoding: "f32", summaryKinds: [], blockCount: 1, openSlotCount: 1, summarySlotCount: 1 },
  rowsMax: 1,
  weightCache: "never",
});
console.log(JSON.stringify({ beforeBytes, peakBytes: statusBytes("VmHWM") } satisfies LoadingMemory));
await device.close();
