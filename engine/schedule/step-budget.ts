/**
 * How many prefill rows go beside the decodes of one step. The step may take so long that those who decode still get their tokens in time:
 * without decodes `stepMsTarget` (prompt for aborts and admissions), with them `interTokenGrowthMax` times what they take alone or
 * `interTokenMsMin` (faster than anybody reads), whichever is more.
 */
import type { Sequence } from "../sequence/sequence.ts";
import type { EngineSettings } from "../settings.ts";
import type { CostModel, StepLoad } from "./cost-model.ts";
import { addLoads, attendedFrom } from "./step-load.ts";

/** Rows of a step while the cost of one is hardly known. */
const UNKNOWN_ROWS_MAX = 64;
const UNKNOWN_STEPS = 4;
/** Where those who decode fill the step alone, prompts still make it so much longer: they end, too. */
const PREFILL_GROWTH_MIN = 1.2;

/** Settings that a budget follows. */
export type StepTargets = Pick<
  EngineSettings,
  "stepRowsMax" | "stepMsTarget" | "interTokenGrowthMax" | "interTokenMsMin"
>;

/** What one step may still take. */
export class StepBudget {
  readonly #cost: CostModel;
  readonly #targetMs: number;
  #load: StepLoad;
  #rowsLeft: number;
  #prefilling = false;

  /**
   * @param decodes what is in the step already; they go in whatever they cost
   * @param withPaced the same with those who give way to prompts in this step: the step's length follows it
   */
  constructor(options: {
    cost: CostModel;
    targets: StepTargets;
    rowsMax: number;
    decodes: StepLoad;
    withPaced: StepLoad;
  }) {
    const { cost, targets, rowsMax, decodes, withPaced } = options;
    this.#cost = cost;
    this.#targetMs = stepTargetMs(cost, targets, withPaced);
    this.#load = decodes;
    const known = cost.observedCount >= UNKNOWN_STEPS;
    this.#rowsLeft =
      Math.min(rowsMax, targets.stepRowsMax, known ? rowsMax : UNKNOWN_ROWS_MAX + decodes.rows) - decodes.rows;
  }

  /** Milliseconds that the step may take. */
  get targetMs(): number {
    return this.#targetMs;
  }

  /** Rows that the device still takes in this step. */
  get rowsLeft(): number {
    return this.#rowsLeft;
  }

  /** Whether no prompt is in the step yet: the first is given a row, or a query group, whatever it costs, so that it gets on. */
  get isFirst(): boolean {
    return !this.#prefilling;
  }

  /** Rows from a position on that fit into the time left; at least one for the first prompt. */
  rowsFor(sequence: Sequence, position: number): number {
    const most = Math.min(this.#rowsLeft, sequence.tokenCount - position);
    const attended = attendedFrom(sequence, position);
    // The head row of a prompt's last token is left aside.
    let msLeft = this.#targetMs - (this.#load.rows === 0 ? this.#cost.fixedMs : this.#cost.predictMs(this.#load));
    let rows = 0;
    while (rows < most) {
      msLeft -= this.#cost.rowMs(attended(position + rows));
      if (msLeft < 0) break;
      rows += 1;
    }
    return rows === 0 && this.isFirst ? Math.min(1, most) : rows;
  }

  /** Takes a row of one who decodes and was not among those that the step's time follows. */
  takeDecode(load: StepLoad): void {
    this.#load = addLoads(this.#load, load);
    this.#rowsLeft -= load.rows;
  }

  /** Takes rows of a prompt into the step. */
  take(load: StepLoad): void {
    this.#load = addLoads(this.#load, load);
    this.#rowsLeft -= load.rows;
    this.#prefilling = true;
  }
}

function stepTargetMs(cost: CostModel, targets: StepTargets, decodes: StepLoad): number {
  if (decodes.rows === 0) return targets.stepMsTarget;
  const aloneMs = cost.predictMs(decodes);
  const wantedMs = Math.max(targets.interTokenMsMin, targets.interTokenGrowthMax * aloneMs);
  return Math.max(Math.min(targets.stepMsTarget, wantedMs), PREFILL_GROWTH_MIN * aloneMs);
}
