import type { SelectionPlan } from "../../kernels/contract.ts";
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import type { SelectingPlan } from "../../kernels/page-range.ts";
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { type Modifier, type ModifierName, selectionRefusal } from "../../protocol/selection.ts";

interface ModifierEffect {
  /** Goes up when the plan that it makes changes. */
  version: number;
  /** The changed plan. The grammar has checked that modifier, argument and policy go together. */
  apply(plan: SelectingPlan, value: number | string): SelectingPlan;
}

/** What each modifier of the configuration language does to a plan. */
const EFFECTS: Readonly<Record<ModifierName, ModifierEffect>> = {
  radius: {
    version: 1,
    apply: (plan, value) => {
      assert(plan.scorer !== undefined, "radius changes a scorer");
      return { ...plan, scorer: { ...plan.scorer, radiusWeight: Number(value) } };
    },
  },
  combine: {
    version: 1,
    apply: (plan, value) => ({ ...paged(plan), combine: value === "max" ? "max" : "softmax-sum" }),
  },
  scope: {
    version: 1,
    apply: (plan, value) => ({ ...paged(plan), scope: value === "layer" ? "layer" : "kv-head" }),
  },
  "top-p": { version: 1, apply: (plan, value) => ({ ...paged(plan), massShare: Number(value) }) },
  candidates: {
    version: 1,
    apply: (plan, value) => {
      assert(plan.kind === "tokens", "candidates are those of a token plan");
      return { ...plan, candidatePages: Number(value) * plan.budgetPages };
    },
  },
  coarse: { version: 1, apply: (plan, value) => ({ ...paged(plan), coarseFactor: Number(value) }) },
  sink: {
    version: 1,
    apply: (plan, value) => {
      const sinkPages = Number(value) / PAGE_TOKENS;
      // Without a scorer the recent window is what the sinks leave of the budget.
      return plan.scorer === undefined
        ? { ...plan, sinkPages, recentPages: plan.budgetPages - sinkPages }
        : { ...plan, sinkPages };
    },
  },
  // Nothing of a plan: which plan a first prompt is read with, see SelectionPolicy.firstTurnBudgetTokens.
  "first-turn": { version: 1, apply: (plan) => plan },
  // Nothing of a plan either: which rows of a prompt share one, see SelectionPolicy.groupTokens.
  group: { version: 1, apply: (plan) => plan },
  "dense-layers": { version: 1, apply: (plan, value) => ({ ...plan, denseLayers: Number(value) }) },
  "own-layers": { version: 1, apply: (plan, value) => ({ ...plan, ownLayers: Number(value) }) },
  share: { version: 1, apply: (plan, value) => ({ ...plan, layersPerChoice: Number(value) }) },
  reuse: { version: 1, apply: (plan, value) => ({ ...paged(plan), rowsPerChoice: Number(value) }) },
  "layer-budgets": {
    version: 1,
    apply: (plan, value) => ({ ...paged(plan), layerShares: String(value).split(",").map(Number) }),
  },
  "head-budgets": {
    version: 1,
    apply: (plan, value) => ({ ...paged(plan), headShares: String(value).split(",").map(Number) }),
  },
  heads: {
    version: 1,
    apply: (plan, value) => {
      const retrievalHeads = namedHeads(value);
      // Without a scorer there is nothing to choose by: heads that retrieve see everything.
      return plan.scorer === undefined
        ? { ...paged(plan), retrievalHeads, layerShares: [Number.POSITIVE_INFINITY] }
        : { ...paged(plan), retrievalHeads };
    },
  },
  recent: { version: 1, apply: (plan, value) => ({ ...plan, recentPages: Number(value) / PAGE_TOKENS }) },
};

/**
 * The plan of a policy, changed by modifiers.
 * @throws {QuireError} `invalid_request` where sinks and recent pages take the whole budget, where modifiers exclude each other, and for heads that
 * are a share only: {@link resolveHeads} names them.
 */
export function modifyPlan(plan: SelectionPlan, modifiers: readonly Modifier[]): SelectionPlan {
  if (plan.kind === "dense") return plan;
  const modified = modifiers.reduce<SelectingPlan>((sofar, { name, value }) => EFFECTS[name].apply(sofar, value), plan);
  const { sinkPages, recentPages, budgetPages, scorer } = modified;
  refuseUnlikeHeads(modified);
  const spare = scorer === undefined ? 0 : 1;
  if (recentPages >= 1 && sinkPages + recentPages + spare <= budgetPages) return modified;
  const taken = `${sinkPages * PAGE_TOKENS} first and ${Math.max(1, recentPages) * PAGE_TOKENS} last tokens`;
  throw new QuireError(
    "invalid_request",
    `budget_tokens ${budgetPages * PAGE_TOKENS} is too small for a selection that always attends to ${taken}.`,
    { param: "quire.selection.budget_tokens" },
  );
}

function refuseUnlikeHeads(plan: SelectingPlan): void {
  if (plan.kind !== "pages") return;
  const { retrievalHeads, headShares, layerShares, scope, layersPerChoice = 1 } = plan;
  if ((headShares ?? retrievalHeads) !== undefined && (scope === "layer" || layersPerChoice > 1)) {
    throw selectionRefusal("heads need a choice per KV head in every layer: no scope(layer), no share");
  }
  if (headShares !== undefined && (retrievalHeads ?? layerShares) !== undefined) {
    throw selectionRefusal("head-budgets says all of heads and layers: no heads, no layer-budgets beside it");
  }
}

/** Of every KV head, layer by layer, whether it retrieves; up to three beyond the last that the model has. */
function namedHeads(value: number | string): boolean[] {
  if (typeof value === "number") {
    throw selectionRefusal(
      `heads(${value}) stands for heads of a profiled model; nothing says which ones. Run quire profile-heads MODEL`,
    );
  }
  return [...value.slice(1)].flatMap((digit) => [8, 4, 2, 1].map((bit) => (Number.parseInt(digit, 16) & bit) !== 0));
}

/** What modifiers add to the version of their policy: changes whenever the plan of one of them does, and never goes back. */
export function modifiersVersion(modifiers: readonly Modifier[]): number {
  return modifiers.reduce((sum, { name }) => sum + EFFECTS[name].version - 1, 0);
}

function paged(plan: SelectingPlan): Extract<SelectionPlan, { kind: "pages" }> {
  assert(plan.kind === "pages", "the grammar keeps modifiers of pages from token plans");
  return plan;
}
