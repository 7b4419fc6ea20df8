/** What one turn leaves to the next: nothing that an answer depends on, only what then need not be asked or done again. */
import { NextPlace } from "../limits/place.ts";
import { Placement } from "./placement.ts";
import { RenderMemory } from "./render-memory.ts";
import { PromptRouter } from "./routed-prompt.ts";

/** Where the next turn may go, and the place that it has there; each for one turn, for `LIMITS.placementMsMax`. */
export class NextTurn {
  readonly #now: () => number;
  readonly engine: Placement;
  readonly place: NextPlace;
  #endedMs: number | undefined;

  constructor(now: () => number) {
    this.#now = now;
    this.engine = new Placement(now);
    this.place = new NextPlace(now);
  }

  /** How long ago the last turn ended; undefined when none has. */
  get turnAgeMs(): number | undefined {
    return this.#endedMs === undefined ? undefined : this.#now() - this.#endedMs;
  }

  /** A turn has ended. */
  noteEnd(): void {
    this.#endedMs = this.#now();
  }
}

/** What turns are run with besides their log. */
export interface TurnMemory {
  render: RenderMemory;
  router: PromptRouter;
  next: NextTurn;
}

/** The memory of a session, or of one turn alone. @param next where that is another's, too */
export function newMemory(next: NextTurn): TurnMemory {
  return { render: new RenderMemory(), router: new PromptRouter(), next };
}
