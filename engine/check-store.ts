/** Whether an engine has a page store: asked once, before it loads its weights. */
import { QuireError } from "../protocol/errors.ts";
import { type PageStore, StoreError } from "../storage/contract.ts";
import type { EngineLog } from "./settings.ts";

/** A store that says nothing for so long is not waited for. */
const CHECK_MS_MAX = 5_000;
/** No object has this name. */
const CHECK_KEY = "engine-start";

/**
 * Asks for an object that is not there. A store that does not answer may come back, and all that is lost without it is time: that is logged
 * (`store.check-failed`), and the engine starts.
 * @throws {QuireError} where the store refuses: the engine would serve, and keep nothing of any conversation.
 */
export async function checkStore(store: PageStore, log: EngineLog): Promise<void> {
  try {
    await store.get(CHECK_KEY, { signal: AbortSignal.timeout(CHECK_MS_MAX) });
  } catch (error) {
    if (error instanceof StoreError && error.code === "denied") {
      const message = `the page store refuses this engine (${error.message}): its address or its credentials are wrong`;
      throw new QuireError("invalid_request", message, { param: "store", cause: error });
    }
    log("store.check-failed", { error: String(error) });
  }
}
