/** Whether a store has anything to say: what decides how much time the engine's loop leaves for its answers. */

/** A store that owes answers and has given none for so long is taken to be stalled, until it gives one. */
export const SILENT_MS = 1000;

/** Follows the calls of one store. Pure arithmetic over what it is told. */
export class StoreActivity {
  #underWay = 0;
  /** When it last answered, or was asked while it owed nothing. */
  #heardMs = Number.NEGATIVE_INFINITY;

  /** A call begins. Returns how to say that it is over, and whether the store itself said so (an answer or a refusal) or its caller gave up. */
  begin(nowMs: number): (endMs: number, isAnswered: boolean) => void {
    if (this.#underWay === 0) this.#heardMs = nowMs;
    this.#underWay += 1;
    return (endMs, isAnswered) => {
      this.#underWay -= 1;
      if (isAnswered) this.#heardMs = endMs;
    };
  }

  /** Calls are under way, and the store has not been silent for {@link SILENT_MS}. */
  isAnswering(nowMs: number): boolean {
    return this.#underWay > 0 && nowMs - this.#heardMs < SILENT_MS;
  }
}
