/** Where a session's last turn ran: the next one, if it comes soon, goes there without asking the fleet. */
import { LIMITS } from "../../protocol/limits.ts";
import type { PickedEngine } from "../fleet-table.ts";

/**
 * One engine, for one turn, for `LIMITS.placementMsMax`: whoever takes it and finds the engine gone, draining or full asks the fleet after all.
 * So long an engine's load cannot change much that it would not refuse by itself.
 */
export class Placement {
  readonly #now: () => number;
  #known: { engine: PickedEngine; keptMs: number } | undefined;

  constructor(now: () => number) {
    this.#now = now;
  }

  /** A turn has ended there well. */
  keep(engine: PickedEngine): void {
    this.#known = { engine, keptMs: this.#now() };
  }

  /** The engine, and forgets it; undefined when nothing is known, or it is too old. */
  take(): PickedEngine | undefined {
    const known = this.#known;
    this.#known = undefined;
    return known && this.#now() - known.keptMs < LIMITS.placementMsMax ? known.engine : undefined;
  }
}
