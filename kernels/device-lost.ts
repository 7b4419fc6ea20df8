import { QuireError } from "../protocol/errors.ts";

/**
 * The device can compute no more, and what its pool held is gone: a GPU that was reset or taken away, a CPU device of which a thread
 * trapped or died. Nothing on it works again; an engine ends without a word to its clients, so that other engines, or itself started again,
 * take its turns over from the log.
 */
export class DeviceLostError extends QuireError {
  constructor(message: string, cause?: unknown) {
    super("engine_failed", message, { cause });
  }
}
