/** Choices that tokens of a reply share (`reuse(R)`), of a sequence that is decoded row by row without an engine. */
import type { SelectionPlan, StepSlice } from "../kernels/contract.ts";

/** What the row that chose last chose, for the rows of its run. */
export class RunChoices {
  #choice: { position: number; bytes: Uint8Array } | undefined;

  /** What a slice of the one row at `position` says of runs: that it follows, or is asked for what it chooses. */
  fieldsAt(position: number, plan: SelectionPlan): Pick<StepSlice, "voters" | "choice" | "reportChoice"> {
    const run = plan.kind === "pages" ? (plan.rowsPerChoice ?? 1) : 1;
    if (run === 1) return {};
    const choice = this.#choice;
    const follows =
      choice !== undefined && choice.position < position && choice.position >= position - (position % run);
    return follows ? { voters: "first", choice: choice.bytes } : { voters: "first", reportChoice: true };
  }

  /** Keeps what the step of the row at `position` gave back, if it was asked for. */
  keep(position: number, bytes: Uint8Array | undefined): void {
    if (bytes !== undefined) this.#choice = { position, bytes };
  }

  /** The next row begins a run: it follows a prompt, or other text. */
  clear(): void {
    this.#choice = undefined;
  }
}
