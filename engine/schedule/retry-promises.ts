/**
 * Times to come back that hold. Whoever is refused is told when a place will be free for him: one after the other, at the pace at which the queue
 * empties. The place is kept (a request is known again by its tenant and tokens) until shortly after the time; newcomers get what
 * the kept places leave. So a client that obeys its Retry-After is admitted, however many others come.
 */
import { createHash } from "node:crypto";
import type { GenerateRequest } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";

/** A place is kept so long behind its time: seconds are rounded up on the way, and clients take their time. */
const KEPT_MS = 5_000;
/** Who comes back this much too early is let in all the same. */
const EARLY_MS = 250;
/** Nobody is told to come back sooner. */
const WAIT_MS_MIN = 500;

/** Promises to one tenant; bounded. */
export class RetryPromises {
  /** When each was told to come back; ascending. */
  readonly #dueMs = new Map<string, number>();
  readonly #kept: { count: number };

  /** @param kept counts those of all tenants together */
  constructor(kept: { count: number }) {
    this.#kept = kept;
  }

  get count(): number {
    return this.#dueMs.size;
  }

  /** Places that are kept at some time until `untilMs`. */
  keptUntil(untilMs: number, nowMs: number): number {
    this.forget(nowMs);
    let count = 0;
    for (const dueMs of this.#dueMs.values()) {
      if (dueMs > untilMs) break;
      count += 1;
    }
    return count;
  }

  /** Takes the place that is kept for this request now; false when there is none. */
  redeem(key: string, nowMs: number): boolean {
    const dueMs = this.#dueMs.get(key);
    if (dueMs === undefined || nowMs < dueMs - EARLY_MS || nowMs > dueMs + KEPT_MS) return false;
    return this.#drop(key);
  }

  /**
   * Milliseconds after which a request may come back. One that comes too early keeps its time.
   * @param earliestMs when the first place that is not promised may be free
   * @param paceMs between two places
   * @param hasRoom false: no further place is kept
   */
  promise(
    key: string,
    { nowMs, earliestMs, paceMs, hasRoom }: { nowMs: number; earliestMs: number; paceMs: number; hasRoom: boolean },
  ): number {
    this.forget(nowMs);
    const known = this.#dueMs.get(key);
    if (known !== undefined && known > nowMs) return known - nowMs;
    this.#drop(key);
    const lastMs = [...this.#dueMs.values()].at(-1) ?? 0;
    const dueMs = Math.max(earliestMs, lastMs + paceMs, nowMs + WAIT_MS_MIN);
    // Beyond the limits nothing is kept: the queue before is longer than anybody waits.
    const isFull = !hasRoom || this.#dueMs.size >= LIMITS.retryPromisesMax;
    if (isFull || dueMs - nowMs > LIMITS.retryAfterMsMax) return LIMITS.retryAfterMsMax;
    this.#dueMs.set(key, dueMs);
    this.#kept.count += 1;
    return dueMs - nowMs;
  }

  /** Those whose time is over. */
  forget(nowMs: number): void {
    for (const [key, dueMs] of this.#dueMs) {
      if (dueMs + KEPT_MS >= nowMs) return;
      this.#drop(key);
    }
  }

  #drop(key: string): boolean {
    const isKnown = this.#dueMs.delete(key);
    if (isKnown) this.#kept.count -= 1;
    return isKnown;
  }
}

/** Knows a request again when it is sent a second time: its id is another one then, its tokens are not. */
export function retryKey({ namespace, tokens, session }: GenerateRequest): string {
  return createHash("sha256")
    .update(`${namespace}/${session?.id ?? ""}/`)
    .update(tokens)
    .digest("base64");
}
