/** A session's hold for a turn that runs in a Worker, as that Worker has it. */
import { RpcTarget } from "cloudflare:workers";

/** Ends when it is disposed of, by its holder or because that one is gone. */
export class TurnHold extends RpcTarget {
  readonly #release: () => void;
  readonly #stopped = Promise.withResolvers<boolean>();

  /** @param release called when the hold has ended */
  constructor(release: () => void) {
    super();
    this.#release = release;
  }

  /** True once somebody asks for the end of the turn; false when the hold has ended before. */
  async stopped(): Promise<boolean> {
    return this.#stopped.promise;
  }

  /** For the session: somebody asked for the end of the turn. */
  stop(): void {
    this.#stopped.resolve(true);
  }

  [Symbol.dispose](): void {
    this.#stopped.resolve(false);
    this.#release();
  }
}
