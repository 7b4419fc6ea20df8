/** A process that looks for a GPU and writes what it found as JSON; `quire devices` starts it. */
import { type AdapterReport, adapterReport, NoAdapterError, requestAdapter } from "../kernels/webgpu/adapter.ts";
import { QuireError } from "../protocol/errors.ts";

/** The GPU, or why there is none. */
export type GpuReport = AdapterReport | { reason: string };

/** What the process writes: also a setting that cannot be. */
export type FoundGpu = GpuReport | { refusal: string };

async function look(): Promise<FoundGpu> {
  try {
    return adapterReport(await requestAdapter());
  } catch (error) {
    if (error instanceof NoAdapterError) return { reason: error.message.replace(/^device webgpu: /, "") };
    if (error instanceof QuireError) return { refusal: error.message };
    throw error;
  }
}

process.stdout.write(JSON.stringify(await look()));
