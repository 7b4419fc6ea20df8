/** The one suite that every device passes. A device's own test file calls {@link describeConformance}. */
import { afterAll, beforeAll, describe } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { markExercised } from "../exercised.ts";
import { describeAppend } from "./conformance/append.ts";
import { describeAttention } from "./conformance/attention.ts";
import { describeCoarse } from "./conformance/coarse.ts";
import { describeInvariance } from "./conformance/invariance.ts";
import { describeKinds } from "./conformance/kinds.ts";
import { describeMisuse } from "./conformance/misuse.ts";
import { describePool } from "./conformance/pool.ts";
import { describeReuse } from "./conformance/reuse.ts";
import { describeRowOps } from "./conformance/rows.ts";
import { describeSampling } from "./conformance/sampling.ts";
import { describeSelection } from "./conformance/selection.ts";
import { describeTraces } from "./conformance/traces.ts";
import { describeUneven } from "./conformance/uneven.ts";
import { F32_TOLERANCES, type Lane, type Tolerances } from "./support/lane.ts";

/** How a lane differs from the usual. */
export interface ConformanceOptions {
  /** Default: what f32 rounding explains. */
  tolerances?: Tolerances;
  /** Random traces of several steps; default 12. */
  traceCount?: number;
  /** Default: all. A lane that cuts the suite in two says so in both its files. */
  parts?: readonly ConformancePart[];
}

const PARTS = {
  rows: describeRowOps,
  append: describeAppend,
  attention: describeAttention,
  kinds: describeKinds,
  selection: describeSelection,
  reuse: describeReuse,
  uneven: describeUneven,
  coarse: describeCoarse,
  invariance: describeInvariance,
  pool: describePool,
  sampling: describeSampling,
  misuse: describeMisuse,
  traces: (lane: Lane, { traceCount = 12 }: ConformanceOptions) => describeTraces(lane, traceCount),
} satisfies Record<string, (lane: Lane, options: ConformanceOptions) => void>;

/** A part of the suite. */
export type ConformancePart = keyof typeof PARTS;

/** Every part, in order. */
export const CONFORMANCE_PARTS = Object.keys(PARTS) as ConformancePart[];

/**
 * Runs every op of the contract on a device, against the reference device and against naive f64 twins.
 */
export function describeConformance(
  name: string,
  openDevice: () => Promise<Device>,
  options: ConformanceOptions = {},
): void {
  describe(`kernel conformance: ${name}`, () => {
    markExercised("device", name);
    let device: Device | undefined;
    let reference: Device | undefined;
    beforeAll(async () => {
      device = await openDevice();
      reference = openReferenceDevice();
    });
    afterAll(async () => {
      await device?.close();
      await reference?.close();
    });
    const lane: Lane = {
      device: () => opened(device),
      reference: () => opened(reference),
      tolerances: options.tolerances ?? F32_TOLERANCES,
    };
    for (const part of options.parts ?? CONFORMANCE_PARTS) PARTS[part](lane, options);
  });
}

function opened(device: Device | undefined): Device {
  if (device === undefined) throw new Error("the device did not open");
  return device;
}
