/** Opens a trace with what the instrument needs around it: a device, a pool of the trace's shape, and what looks into the steps. */
import { totalmem } from "node:os";
import { UsageError } from "../../../cli/usage-error.ts";
import { BLOCK_TOKENS, type Device, type SummaryKind } from "../../../kernels/contract.ts";
import { headDimMultiple } from "../../../kernels/layout.ts";
import { openDevice } from "../../../kernels/open.ts";
import { poolCounts, Sequence } from "../../recall/sequence.ts";
import { Capture } from "../capture.ts";
import type { ProbeOptions } from "../fidelity.ts";
import type { GivenValues } from "../flags.ts";
import type { TraceFile } from "./trace-file.ts";
import { TraceRunner } from "./trace-runner.ts";

const ROWS_MAX = 256;
/** Of the machine's memory, what a pool and the keys and values in f32 beside it may take. */
const MEMORY_SHARE_MAX = 0.8;
const GIB = 1024 ** 3;

/** The flags that a device is opened by. */
export type DeviceValues = Pick<GivenValues, "device" | "threads" | "kv">;

/** A trace in a sequence that goes through it from its beginning. */
export interface TraceSubject {
  trace: TraceFile;
  probe: ProbeOptions;
  sequence: Sequence;
}

/** Opens the device; the caller closes it. @throws {UsageError} for one that cannot be looked into. */
export async function openTraceDevice({ device: kind, threads }: DeviceValues): Promise<Device> {
  const device = await openDevice({ kind, ...(threads === undefined ? {} : { threads }) });
  if (device.debugSelection !== undefined) return device;
  await device.close();
  throw new UsageError(`--device: what ${device.kind} selects cannot be looked at; take wasm`);
}

/**
 * Makes pool and sequence of a trace on a device that holds nothing else.
 * @throws {UsageError} where memory does not suffice, and for summaries that need another head width.
 */
export function openTraceSubject(
  trace: TraceFile,
  { device, kv, summaryKinds }: { device: Device; kv: DeviceValues["kv"]; summaryKinds: readonly SummaryKind[] },
): TraceSubject {
  const { layerCount, headCount, kvHeadCount, headDim } = trace.shape;
  for (const kind of summaryKinds) {
    const multiple = headDimMultiple(kind);
    if (headDim % multiple === 0) continue;
    throw new UsageError(
      `--policies: ${kind} summaries need a head_dim that is a multiple of ${multiple}; ${trace.name} has ${headDim}`,
    );
  }
  const contextTokens = (trace.positions.at(-1) as number) + 1;
  assertRoom(trace, contextTokens, kv);
  const capture = new Capture(device, trace.shape);
  const pool = device.kvPool({
    ...{ layerCount, kvHeadCount, headDim, encoding: kv, summaryKinds },
    ...poolCounts({ layerCount, contextTokens, rowsMax: ROWS_MAX }),
  });
  const runner = new TraceRunner(trace, { device: capture.wrap(device), pool, rowsMax: ROWS_MAX });
  return { trace, probe: { device, capture, pool, headCount }, sequence: new Sequence(runner, contextTokens) };
}

function assertRoom({ name, shape }: TraceFile, contextTokens: number, kv: DeviceValues["kv"]): void {
  const values = 2 * shape.layerCount * shape.kvHeadCount * shape.headDim * Math.ceil(contextTokens / BLOCK_TOKENS);
  const bytes = values * BLOCK_TOKENS * (4 + (kv === "f32" ? 4 : 1));
  const room = totalmem() * MEMORY_SHARE_MAX;
  if (bytes <= room) return;
  const need = `${(bytes / GIB).toFixed(1)} GiB of memory are needed, ${(room / GIB).toFixed(1)} can be had`;
  throw new UsageError(`--trace: ${name}: ${need}; capture fewer layers or a shorter context`);
}
