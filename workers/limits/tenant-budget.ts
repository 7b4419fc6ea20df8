/** What a tenant has used of its limits. No I/O: time is passed in. */
import { LIMITS } from "../../protocol/limits.ts";

/** Limits of a tenant, all known. */
export interface Limits {
  requestsPerMinute: number;
  tokensPerMinute: number;
  turnsConcurrent: number;
}

/** A request that asks to be let in. */
export interface AdmissionRequest {
  /** Names the place of a turn, until it is settled; undefined for a request that runs no turn. */
  leaseId: string | undefined;
  /** Counted until the turn is settled. */
  tokensEstimated: number;
  limits: Limits;
}

/** One limit as a client hears of it. */
export interface Quota {
  limit: number;
  remaining: number;
  /** Until all of it is there again. */
  resetMs: number;
}

/** The answer to a request. */
export interface Admission {
  /** Which limit refuses; undefined: admitted. */
  refusedBy?: "requests" | "tokens" | "turns" | undefined;
  /** When the refusing limit will have room. */
  retryAfterMs: number;
  requests: Quota;
  tokens: Quota;
  /** Places: how many there are, and how many are free. */
  turns: { limit: number; remaining: number };
}

/** What outlives the object that counts: places do not, their turns end by themselves. */
export interface BudgetState {
  requestsUsed: number;
  tokensUsed: number;
  atMs: number;
}

interface Lease {
  tokensEstimated: number;
  expiresMs: number;
  /** A reserved place is counted like any other, and all of it is given back when no turn comes. */
  state: "reserved" | "taken" | "held";
}

/** Of all places, the share that may be reserved for turns that have not come. */
const RESERVED_SHARE_MAX = 1 / 8;

const MINUTE_MS = 60_000;
const TURN_RETRY_MS = 1_000;

/**
 * Two leaky buckets and a set of places. A bucket holds what was used and drains by its limit per minute, so that up to a minute's worth may
 * come at once. Tokens are counted as estimated when a turn begins and as they were when it ends: a bucket may run over, and then the
 * next turns wait until it has drained. A request that is refused counts nothing.
 */
export class TenantBudget {
  #requestsUsed = 0;
  #tokensUsed = 0;
  #atMs = 0;
  #rates: Limits | undefined;
  readonly #leases = new Map<string, Lease>();

  constructor(state?: BudgetState) {
    if (!state) return;
    this.#requestsUsed = state.requestsUsed;
    this.#tokensUsed = state.tokensUsed;
    this.#atMs = state.atMs;
  }

  get state(): BudgetState {
    return { requestsUsed: this.#requestsUsed, tokensUsed: this.#tokensUsed, atMs: this.#atMs };
  }

  /** What turns have of it that have come; reservations aside. */
  get used(): { requests: number; tokens: number; turns: number } {
    const reserved = [...this.#leases.values()].filter(({ state }) => state === "reserved");
    return {
      requests: this.#requestsUsed - reserved.length,
      tokens: reserved.reduce((sum, { tokensEstimated }) => sum - tokensEstimated, this.#tokensUsed),
      turns: this.#leases.size - reserved.length,
    };
  }

  /** Lets a request in, or says which limit does not. */
  admit(request: AdmissionRequest, nowMs: number): Admission {
    const { leaseId, limits } = request;
    this.#drain(limits, nowMs);
    this.#expire(nowMs);
    const { requestsPerMinute, tokensPerMinute, turnsConcurrent } = limits;
    // What is more than a whole minute's worth may go when the bucket is empty: it has to go some time.
    const tokens = Math.min(request.tokensEstimated, tokensPerMinute);
    const requestsOver = this.#requestsUsed + 1 - requestsPerMinute;
    const tokensOver = this.#tokensUsed + tokens - tokensPerMinute;
    const refuse = (refusedBy: Admission["refusedBy"], retryAfterMs: number) =>
      this.#answer(limits, { refusedBy, retryAfterMs });
    if (requestsOver > 0) return refuse("requests", drainMs(requestsOver, requestsPerMinute));
    if (tokensOver > 0) return refuse("tokens", drainMs(tokensOver, tokensPerMinute));
    if (leaseId !== undefined && this.#leases.size >= turnsConcurrent) return refuse("turns", TURN_RETRY_MS);
    this.#requestsUsed += 1;
    this.#tokensUsed += tokens;
    if (leaseId !== undefined) {
      const expiresMs = nowMs + LIMITS.leaseUnheldMsMax;
      this.#leases.set(leaseId, { tokensEstimated: tokens, expiresMs, state: "taken" });
    }
    return this.#answer(limits, { refusedBy: undefined, retryAfterMs: 0 });
  }

  /**
   * Takes a place for a turn that may come within `LIMITS.placeReservedMsMax`, where that leaves plenty of everything.
   * @returns undefined when it does not: nothing is reserved
   */
  reserve(request: AdmissionRequest & { leaseId: string }, nowMs: number): Admission | undefined {
    const { leaseId, limits } = request;
    this.#expire(nowMs);
    const reservedCount = [...this.#leases.values()].filter(({ state }) => state === "reserved").length;
    if (reservedCount + 1 > limits.turnsConcurrent * RESERVED_SHARE_MAX) return undefined;
    const admission = this.admit(request, nowMs);
    const lease = this.#leases.get(leaseId);
    if (admission.refusedBy !== undefined || !lease) return undefined;
    const reserved: Lease = { ...lease, state: "reserved", expiresMs: nowMs + LIMITS.placeReservedMsMax };
    this.#leases.set(leaseId, reserved);
    if (hasPlenty(admission)) return admission;
    this.#giveBack(leaseId, reserved);
    return undefined;
  }

  /** The turn of a place runs: the place is its own until the turn ends, or has not been said to run for `LIMITS.leaseHeldMsMax`. */
  hold(leaseId: string, nowMs: number): void {
    const lease = this.#leases.get(leaseId);
    if (lease) this.#leases.set(leaseId, { ...lease, state: "held", expiresMs: nowMs + LIMITS.leaseHeldMsMax });
  }

  /** The turn of a place is over and used so many tokens; a place that is not known is over already. */
  settle(leaseId: string, tokens: number): void {
    const lease = this.#leases.get(leaseId);
    if (!lease) return;
    this.#leases.delete(leaseId);
    this.#tokensUsed = Math.max(0, this.#tokensUsed + tokens - lease.tokensEstimated);
  }

  #drain(limits: Limits, nowMs: number): void {
    // What was used drains by the limits it was used under; keys of one tenant may differ.
    const { requestsPerMinute, tokensPerMinute } = this.#rates ?? limits;
    const elapsedMs = Math.max(0, nowMs - this.#atMs);
    this.#requestsUsed = Math.max(0, this.#requestsUsed - (elapsedMs * requestsPerMinute) / MINUTE_MS);
    this.#tokensUsed = Math.max(0, this.#tokensUsed - (elapsedMs * tokensPerMinute) / MINUTE_MS);
    this.#atMs = nowMs;
    this.#rates = limits;
  }

  /** A place that no turn took is given back with its tokens: its client left, or its answer was there already. */
  #expire(nowMs: number): void {
    for (const [id, lease] of this.#leases) {
      if (lease.expiresMs <= nowMs) this.#giveBack(id, lease);
    }
  }

  #giveBack(id: string, { state, tokensEstimated }: Lease): void {
    this.#leases.delete(id);
    if (state !== "held") this.#tokensUsed = Math.max(0, this.#tokensUsed - tokensEstimated);
    if (state === "reserved") this.#requestsUsed = Math.max(0, this.#requestsUsed - 1);
  }

  #answer(limits: Limits, outcome: Pick<Admission, "refusedBy" | "retryAfterMs">): Admission {
    const quota = (used: number, limit: number): Quota => ({
      limit,
      remaining: Math.max(0, Math.floor(limit - used)),
      resetMs: drainMs(used, limit),
    });
    return {
      ...outcome,
      requests: quota(this.#requestsUsed, limits.requestsPerMinute),
      tokens: quota(this.#tokensUsed, limits.tokensPerMinute),
      turns: { limit: limits.turnsConcurrent, remaining: limits.turnsConcurrent - this.#leases.size },
    };
  }
}

/** Whether at least half of everything is left. */
export function hasPlenty({ requests, tokens, turns }: Admission): boolean {
  return [requests, tokens, turns].every(({ limit, remaining }) => 2 * remaining >= limit);
}

function drainMs(amount: number, perMinute: number): number {
  return Math.ceil((amount * MINUTE_MS) / perMinute);
}
