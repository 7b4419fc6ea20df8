/** How tokens of a span are computed, ready for use: a step asks for it several times for every row, and parsing takes longer than the row's own planning. */
import type { SelectionPlan } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { type How, parseHow } from "./provenance.ts";

/** A parsed provenance with what follows from it. Whoever is given it does not change it: steps share it. */
export interface Way extends How {
  /** Of tokens behind the budget. */
  readonly plan: SelectionPlan;
  /** Rows that share a choice where tokens are computed in this way; 1 where each row, or each page of a prompt, has its own. */
  readonly runTokens: number;
}

/** Parses a provenance; undefined for dense. @throws {AssertionError} as {@link parseHow}; {QuireError} for a policy or budget that there is not. */
export function parseWay(text: string): Way | undefined {
  const how = parseHow(text);
  if (how === undefined) return undefined;
  const plan = policyNamed(how.policy).plan(how.budgetTokens);
  const runTokens = how.groupTokens === 1 && plan.kind === "pages" ? (plan.rowsPerChoice ?? 1) : 1;
  return { ...how, plan, runTokens };
}

/** The ways of one sequence's spans: the one that was asked for last is remembered, and while tokens are generated it stays the same. */
export class Ways {
  #latest: { text: string; way: Way | undefined } | undefined;

  /** As {@link parseWay}. */
  of(text: string): Way | undefined {
    if (this.#latest?.text !== text) this.#latest = { text, way: parseWay(text) };
    return this.#latest.way;
  }
}
