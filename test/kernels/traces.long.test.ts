/** Hundreds of random traces on every CPU device. */
import { afterAll, describe } from "vitest";
import { openDevice } from "../../kernels/open.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { markExercised } from "../exercised.ts";
import { describeTraces } from "./conformance/traces.ts";
import { F32_TOLERANCES, INTEGER_ATTENTION_TOLERANCES } from "./support/lane.ts";

describe.each([
  { kind: "reference" as const, threads: 1, tolerances: F32_TOLERANCES },
  { kind: "wasm" as const, threads: 2, tolerances: INTEGER_ATTENTION_TOLERANCES },
])("$kind, threads: $threads", async ({ kind, threads, tolerances }) => {
  markExercised("device", `${kind}, ${threads} threads, long traces`);
  const device = await openDevice({ kind, threads });
  const reference = openReferenceDevice();
  afterAll(() => device.close());
  describeTraces({ device: () => device, reference: () => reference, tolerances }, 300);
});
