import { expect, it } from "vitest";
import { Admission, type AdmissionOptions } from "../../../engine/schedule/admission.ts";
import { CostModel } from "../../../engine/schedule/cost-model.ts";
import { Tenants } from "../../../engine/schedule/tenants.ts";
import type { Sequence } from "../../../engine/sequence/sequence.ts";
import type { QuireError } from "../../../protocol/errors.ts";
import { LIMITS } from "../../../protocol/limits.ts";

/** A request of a tenant that nobody has room for. */
function refusedOnce(admission: Admission, tenant: number, nowMs: number): number | undefined {
  const namespace = tenant.toString(16).padStart(8, "0");
  const request = { namespace, tokens: new Uint8Array(4) };
  const sequence = { namespace, request, phase: "queued", promptEnd: 1, tokenCount: 1, spans: { until: () => [] } };
  try {
    admission.check(sequence as unknown as Sequence, 0, nowMs);
  } catch (error) {
    return (error as QuireError).retryAfterMs;
  }
  throw new Error("it was taken in");
}

it("keeps so many places at most, whoever they are for, and forgets what is over also while everybody is refused", () => {
  const admission = new Admission({
    ...{ settings: {}, tenants: new Tenants(), cost: new CostModel(), active: new Set(), hasRoomFor: () => false },
    queue: { hasRoom: () => false, foundTokens: () => 1 },
  } as unknown as AdmissionOptions);
  const { retryPromisesOfAllMax, retryAfterMsMax } = LIMITS;
  const tenants = Array.from({ length: retryPromisesOfAllMax }, (_, tenant) => refusedOnce(admission, tenant, 0) ?? 0);
  expect(Math.max(...tenants)).toBeLessThan(retryAfterMsMax);
  expect(refusedOnce(admission, retryPromisesOfAllMax, 0)).toBe(retryAfterMsMax);
  expect(admission.promisedCount).toBe(retryPromisesOfAllMax);
  // Who has one keeps it.
  expect(refusedOnce(admission, 0, 100)).toBeLessThan(retryAfterMsMax);
  expect(refusedOnce(admission, 1_000_000, 2 * retryAfterMsMax)).toBeLessThan(retryAfterMsMax);
  expect(admission.promisedCount).toBe(1);
});
