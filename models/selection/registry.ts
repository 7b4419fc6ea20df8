import type { SelectionPolicyName } from "../../protocol/generate.ts";
import { type ModifierName, parseSelection, SELECTION_POLICIES } from "../../protocol/selection.ts";
import { arkvalePolicy } from "./arkvale.ts";
import { densePolicy } from "./dense.ts";
import { infllmPolicy } from "./infllm.ts";
import { meanDeviationPolicy } from "./mean-deviation.ts";
import { modifiersVersion, modifyPlan } from "./modifiers.ts";
import type { SelectionPolicy } from "./policy.ts";
import { questPolicy } from "./quest.ts";
import { residualSignsPolicy } from "./residual-signs.ts";
import { signHashPolicy } from "./sign-hash.ts";
import { streamingPolicy } from "./streaming.ts";
import { tokenselectPolicy } from "./tokenselect.ts";

const POLICIES: Readonly<Record<SelectionPolicyName, SelectionPolicy>> = {
  dense: densePolicy,
  streaming: streamingPolicy,
  quest: questPolicy,
  "mean-deviation": meanDeviationPolicy,
  arkvale: arkvalePolicy,
  infllm: infllmPolicy,
  "sign-hash": signHashPolicy,
  "residual-signs": residualSignsPolicy,
  tokenselect: tokenselectPolicy,
};

/** Every name that {@link policyNamed} knows; a configuration begins with one of them. */
export const POLICY_NAMES: readonly SelectionPolicyName[] = SELECTION_POLICIES;

/**
 * The policy of a name or of a configuration (`quest+scope(layer)`, see protocol/selection.ts), which may come from a client. Its name is
 * the canonical form.
 * @throws {QuireError} `invalid_request`, with the position of what is wrong and what could stand there.
 */
export function policyNamed(text: string): SelectionPolicy {
  const { policy, modifiers, canonical } = parseSelection(text);
  const base = POLICIES[policy];
  if (modifiers.length === 0) return base;
  const argumentOf = (wanted: ModifierName) => modifiers.find(({ name }) => name === wanted)?.value;
  const [firstTurn, group] = [argumentOf("first-turn"), argumentOf("group")];
  return {
    ...base,
    ...(firstTurn === undefined ? {} : { firstTurnBudgetTokens: Number(firstTurn) }),
    ...(group === undefined ? {} : { groupTokens: Number(group) }),
    name: canonical,
    version: base.version + modifiersVersion(modifiers),
    plan: (budgetTokens) => modifyPlan(base.plan(budgetTokens), modifiers),
  };
}
