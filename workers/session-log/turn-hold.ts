/** A session's hold for a turn that runs in a Worker, as that Worker has it. */
import { RpcTarget } from "cloudflare:workers";
import { LIMITS } from "../../protocol/limits.ts";
import { ifWithin } from "../deadline.ts";

/** Ends when it is disposed of, by its holder or because that one is gone. */
export class TurnHold extends RpcTarget {
  readonly #release: () => void;
  readonly #stopped = Promise.withResolvers<boolean>();

  /** @param release called when the hold has ended */
  constructor(release: () => void) {
    super();
    this.#release = release;
  }

  /**
   * True once somebody asks for the end of the turn; false when the hold has ended before. Undefined when neither was so for `LIMITS.holdAskedMsMax`:
   * it is to be asked again, because a call that is pending keeps a hold whose holder is gone.
   */
  async stopped(): Promise<boolean | undefined> {
    return ifWithin(LIMITS.holdAskedMsMax, this.#stopped.promise);
  }

  /** For the session: somebody asked for the end of the turn. */
  stop(): void {
    this.#stopped.resolve(true);
  }

  /** For the session: the turn is over. While {@link stopped} is asked, no holder's disposal comes. */
  end(): void {
    this.#stopped.resolve(false);
  }

  [Symbol.dispose](): void {
    this.end();
    this.#release();
  }
}
