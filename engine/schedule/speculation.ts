/** Which sequences have their next tokens guessed (`speculation` of a request), and what became of the guesses. */

import type { Sample } from "../../kernels/contract.ts";
import { Drafter, DraftHistory } from "../sequence/drafting.ts";
import type { PlannedSlice } from "../sequence/planned-slice.ts";
import { hasPenalties } from "../sequence/sampling.ts";
import type { Sequence } from "../sequence/sequence.ts";
import type { CostModel } from "./cost-model.ts";

const NONE = new Uint32Array(0);

/** Speculation of one engine. */
export class Speculation {
  readonly #drafters = new WeakMap<Sequence, Drafter>();
  readonly #history = new DraftHistory();

  /** Guesses for the rows behind the next one; none for requests that do not ask, or whose penalties depend on each token before. */
  propose(sequence: Sequence, cost: CostModel, { stepMs, rowsMax }: { stepMs: number; rowsMax: number }): Uint32Array {
    if (sequence.request.speculation !== true || hasPenalties(sequence.request.sampling)) return NONE;
    const drafter = this.#drafters.get(sequence) ?? new Drafter(sequence, this.#history);
    this.#drafters.set(sequence, drafter);
    return drafter.propose(cost, stepMs, rowsMax);
  }

  /**
   * The tokens that decoding one by one would have given: up to the first that is not what was guessed, or that ends the turn. The slice's end
   * is set to the last row that was computed from a right token.
   */
  accept(sequence: Sequence, planned: PlannedSlice, samples: readonly Sample[]): readonly Sample[] {
    const { draft } = planned;
    if (draft.length === 0 || samples.length === 0) return samples;
    const { request, usage } = sequence;
    const left = request.maxTokens - sequence.generatedCount;
    let count = 1;
    while (count < samples.length && count < left) {
      const { tokenId } = samples[count - 1]!;
      if (tokenId !== draft[count - 1] || request.stopTokens.includes(tokenId)) break;
      count += 1;
    }
    planned.to = planned.from + count;
    usage.draftedTokens = (usage.draftedTokens ?? 0) + draft.length;
    usage.draftedTokensRight = (usage.draftedTokensRight ?? 0) + count - 1;
    this.#drafters.get(sequence)?.judged(draft.length, count - 1);
    return samples.slice(0, count);
  }
}
