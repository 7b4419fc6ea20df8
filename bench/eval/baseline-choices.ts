/** Baselines that generate: what they attend to at a row is worked out from dense's own attention there, and handed to the device. */
import { choiceRow, choiceShape } from "../../kernels/choice.ts";
import {
  type DeviceBuffer,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SelectionPlan,
  type StepSlice,
} from "../../kernels/contract.ts";
import type { SelectingPlan } from "../../kernels/page-range.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { Random } from "../random.ts";
import { ExactAttention } from "./exact-attention.ts";
import { baselinePages, type ProbeOptions, pagesByMass, ranksOf } from "./fidelity.ts";
import type { Candidate } from "./grid.ts";

/** A baseline of {@link Candidate}. */
export type Baseline = Candidate & { plan: "oracle" | "random" };

/** Chooses for the baselines at the rows of one text, whose sealed blocks stay as they are meanwhile. */
export class BaselineChoices {
  readonly #options: ProbeOptions & { baselines: readonly Baseline[]; random: Random };
  readonly #exact: ExactAttention;

  constructor(options: ProbeOptions & { baselines: readonly Baseline[]; random: Random }) {
    this.#options = options;
    this.#exact = new ExactAttention(options.pool);
  }

  /** The plan under which a baseline's choice is handed in. */
  static planOf({ budgetTokens }: Baseline): SelectionPlan {
    return policyNamed("streaming").plan(budgetTokens);
  }

  /**
   * For each baseline what it attends to at the row that `slice` describes, as `StepSlice.choice`, from the queries that a dense step left in the
   * capture. Undefined for a row that begins a page: a device takes no choice there, and the row attends to everything.
   */
  async at(slice: StepSlice): Promise<(Uint8Array | undefined)[]> {
    const { baselines, pool, device, capture, random } = this.#options;
    if (slice.position % PAGE_TOKENS === 0) return baselines.map(() => undefined);
    await this.#exact.moveTo(slice);
    const ranks: Uint32Array[][] = [];
    for (const [layer, buffer] of capture.queries.entries()) {
      const queries = await floatsOf(device, buffer);
      ranks.push(this.#exact.attend(layer, queries).pageMass.map((mass) => ranksOf(pagesByMass(mass))));
    }
    return baselines.map((baseline) => {
      const shape = choiceShape(pool.spec, BaselineChoices.planOf(baseline) as SelectingPlan, slice.position);
      const choice = new Uint8Array(shape.bytes);
      for (const [layer, heads] of ranks.entries()) {
        for (const [head, rank] of heads.entries()) {
          const row = choiceRow(choice, shape, layer, head);
          for (const page of baselinePages(rank, {
            kind: baseline.plan,
            budgetTokens: baseline.budgetTokens,
            random,
          })) {
            const block = Math.floor(page / PAGES_PER_BLOCK);
            // The row's own block is attended anyway.
            if (block < row.length) row[block] = (row[block] as number) | (1 << (page % PAGES_PER_BLOCK));
          }
        }
      }
      return choice;
    });
  }
}

async function floatsOf(device: ProbeOptions["device"], buffer: DeviceBuffer): Promise<Float32Array> {
  const bytes = await device.read(buffer, 0, buffer.bytes);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}
