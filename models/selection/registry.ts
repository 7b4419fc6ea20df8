import { QuireError } from "../../protocol/errors.ts";
import type { SelectionPolicyName } from "../../protocol/generate.ts";
import { densePolicy } from "./dense.ts";
import { meanDeviationPolicy } from "./mean-deviation.ts";
import type { SelectionPolicy } from "./policy.ts";
import { questPolicy } from "./quest.ts";
import { streamingPolicy } from "./streaming.ts";
import { tokenselectPolicy } from "./tokenselect.ts";

const POLICIES: Readonly<Record<SelectionPolicyName, SelectionPolicy>> = {
  dense: densePolicy,
  streaming: streamingPolicy,
  quest: questPolicy,
  "mean-deviation": meanDeviationPolicy,
  tokenselect: tokenselectPolicy,
};

/** Every name that {@link policyNamed} knows. */
export const POLICY_NAMES: readonly SelectionPolicyName[] = Object.freeze(
  Object.keys(POLICIES) as SelectionPolicyName[],
);

/**
 * The policy of a name, which may come from a client.
 * @throws {QuireError} `invalid_request` for an unknown name.
 */
export function policyNamed(name: string): SelectionPolicy {
  if (!Object.hasOwn(POLICIES, name)) {
    throw new QuireError("invalid_request", `selection policy must be one of ${POLICY_NAMES.join(", ")}.`, {
      param: "quire.selection.policy",
    });
  }
  return POLICIES[name as SelectionPolicyName];
}
