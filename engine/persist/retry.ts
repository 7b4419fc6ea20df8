/** Writes get a second chance: a passing fault of the store should not cost what a turn left. */
import { StoreError, type StoreErrorCode } from "../../storage/contract.ts";
import type { Gate } from "../kv/gate.ts";
import type { Clock } from "../settings.ts";

const PAUSE_MS = 100;

/** What bounds the calls. */
export interface RetryOptions {
  gate: Gate;
  clock: Clock;
  /** Deadline of one try. */
  putMsMax: number;
}

/** Faults that may pass. A try that its deadline here has ended is `aborted`: to the store that is its caller's patience. */
const PASSING: ReadonlySet<StoreErrorCode> = new Set(["unavailable", "timeout", "aborted"]);

/** Runs a store call through the gate, once more after a fault that may pass; each try has a deadline. @throws what the last try throws. */
export async function retried<T>(options: RetryOptions, call: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const { gate, clock, putMsMax } = options;
  const attempt = () => gate.run("demand", () => call(clock.deadline(putMsMax)));
  try {
    return await attempt();
  } catch (error) {
    if (!(error instanceof StoreError) || !PASSING.has(error.code)) throw error;
    await clock.sleep(PAUSE_MS);
    return await attempt();
  }
}
