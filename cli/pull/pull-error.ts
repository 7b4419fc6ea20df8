import { UsageError } from "../usage-error.ts";

/** Trouble with the hub, its files or this disk that trying again does not mend. Its message is one line, without a token and without signed addresses. */
export class PullError extends UsageError {}

/** Trouble that may be over in a moment: a cut, a stall, a busy hub. Retried; its message becomes a {@link PullError}'s when patience ends. */
export class TransientError extends Error {
  override readonly name = "TransientError";
  /** As the server asked, in ms. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, retryAfterMs?: number) {
    super(message);
    this.retryAfterMs = retryAfterMs;
  }
}
