/** Hundreds of random traces on every CPU device. */
import { afterAll, describe } from "vitest";
import { openDevice } from "../../kernels/open.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { markExercised } from "../exercised.ts";
import { describeTraces } from "./conformance/traces.ts";
import { F32_TOLERANCES } from "./support/lane.ts";

describe.each([
  { kind: "reference" as const, threads: 1 },
  { kind: "wasm" as const, threads: 2 },
])("$kind, threads: $threads", async ({ kind, threads }) => {
  markExercised("device", `${kind}, ${threads} threads, long traces`);
  const device = await openDevice({ kind, threads });
  const reference = openReferenceDevice();
  afterAll(() => device.close());
  describeTraces({ device: () => device, reference: () => reference, tolerances: F32_TOLERANCES }, 300);
});
