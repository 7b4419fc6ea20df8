/** The one suite that every device passes. A device's own test file calls {@link describeConformance}. */
import { afterAll, beforeAll, describe } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { markExercised } from "../exercised.ts";
import { describeAppend } from "./conformance/append.ts";
import { describeAttention } from "./conformance/attention.ts";
import { describeInvariance } from "./conformance/invariance.ts";
import { describeMisuse } from "./conformance/misuse.ts";
import { describePool } from "./conformance/pool.ts";
import { describeRowOps } from "./conformance/rows.ts";
import { describeSampling } from "./conformance/sampling.ts";
import { describeSelection } from "./conformance/selection.ts";
import { F32_TOLERANCES, type Lane, type Tolerances } from "./support/lane.ts";

/**
 * Runs every op of the contract on a device, against the reference device and against naive f64 twins.
 * `tolerances` default to what f32 rounding explains.
 */
export function describeConformance(
  name: string,
  openDevice: () => Promise<Device>,
  tolerances: Tolerances = F32_TOLERANCES,
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
      tolerances,
    };
    describeRowOps(lane);
    describeAppend(lane);
    describeAttention(lane);
    describeSelection(lane);
    describeInvariance(lane);
    describePool(lane);
    describeSampling(lane);
    describeMisuse(lane);
  });
}

function opened(device: Device | undefined): Device {
  if (device === undefined) throw new Error("the device did not open");
  return device;
}
