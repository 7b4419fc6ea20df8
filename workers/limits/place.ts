/** A turn's place among its tenant's, and who may have it asked for late. */
import { LIMITS } from "../../protocol/limits.ts";
import type { Tenant } from "../auth/authenticate.ts";
import { RecentMap, type RecentMapOptions } from "../recent-map.ts";
import { rateRefusal } from "./rate-headers.ts";
import { type Admission, type AdmissionRequest, hasPlenty, type Limits } from "./tenant-budget.ts";

/** What is asked for a turn's place. */
export type PlaceRequest = AdmissionRequest & { leaseId: string };

/** A place that is taken, or one that the turn's session asks for while it works on the prompt. */
export class Place {
  #request: PlaceRequest;
  readonly #isTaken: boolean;
  #isSessions = false;
  #admission: Admission | undefined;

  /** @param admission of a place that is taken, where the limiter answered */
  constructor(request: PlaceRequest, taken: { isTaken: boolean; admission: Admission | undefined }) {
    this.#request = request;
    this.#isTaken = taken.isTaken;
    this.#admission = taken.admission;
  }

  get leaseId(): string {
    return this.#request.leaseId;
  }

  /** What the session is to ask for, whose affair it is from now on; undefined for a place that is taken. */
  handOver(): PlaceRequest | undefined {
    if (this.#isTaken) return undefined;
    this.#isSessions = true;
    return this.#request;
  }

  /** Somebody has asked, or was told to: what is left to do is to settle it. */
  get isAsked(): boolean {
    return this.#isTaken || this.#isSessions;
  }

  /** Undefined where the limiter did not answer. */
  get admission(): Admission | undefined {
    return this.#admission;
  }

  /**
   * Takes what the session was answered.
   * @param leaseId of the place that the session had reserved, where it did
   * @throws {QuireError} `rate_limit_exceeded` for a turn that was not let in.
   */
  answered(admission: Admission | undefined, leaseId?: string): void {
    if (leaseId !== undefined) this.#request = { ...this.#request, leaseId };
    if (!admission) return;
    this.#admission = admission;
    if (admission.refusedBy !== undefined) throw rateRefusal(admission, this.#request.limits);
  }
}

/**
 * Holds the place of a turn that runs, as often as it takes to keep it: the limiter gives it back when nobody does, also when whoever ran the turn
 * is gone without a word.
 * @param later calls a function, unless the turn is over by then
 * @param firstMs when it is held first: a turn that is over sooner does not ask for it
 */
export function keepPlace(
  hold: () => void,
  later: (ms: number, act: () => void) => void,
  firstMs: number = LIMITS.leaseHeldMsMax / 3,
): void {
  later(firstMs, () => {
    hold();
    keepPlace(hold, later);
  });
}

/** A place that waits for its turn. */
export interface ReservedPlace {
  request: PlaceRequest;
  admission: Admission;
}

/**
 * The place of a session's next turn, reserved by the limiter when the last one ended: that turn then waits for no answer, and is counted all
 * the same. Reserved only for a turn that may well come within `LIMITS.placementMsMax`, as the last one did.
 */
export class NextPlace {
  readonly #now: () => number;
  #kept: (ReservedPlace & { keptMs: number }) | undefined;

  constructor(now: () => number) {
    this.#now = now;
  }

  keep(place: ReservedPlace): void {
    this.#kept = { ...place, keptMs: this.#now() };
  }

  /** The place for a turn that asks for no more, under the same limits, and forgets it; one that does not fit is given back by the limiter in time. */
  take(asked: PlaceRequest): ReservedPlace | undefined {
    const kept = this.#kept;
    this.#kept = undefined;
    if (!kept || this.#now() - kept.keptMs >= LIMITS.placementMsMax) return undefined;
    const { request } = kept;
    return asked.tokensEstimated <= request.tokensEstimated && isSame(asked.limits, request.limits) ? kept : undefined;
  }
}

/** What the next turn of a session asks for: probably no more than twice of what this one did. */
export function nextRequest({ tokensEstimated, limits }: PlaceRequest): PlaceRequest {
  return { leaseId: crypto.randomUUID(), tokensEstimated: 2 * tokensEstimated, limits };
}

function isSame(a: Limits, b: Limits): boolean {
  return (
    a.requestsPerMinute === b.requestsPerMinute &&
    a.tokensPerMinute === b.tokensPerMinute &&
    a.turnsConcurrent === b.turnsConcurrent
  );
}

/** The question for a place, asked at most once, and as late as may be: beside work that others do. */
export class AskedPlace {
  readonly #question: () => Promise<Admission | undefined> | undefined;
  #asking: Promise<Admission | undefined> | undefined;

  constructor(question: () => Promise<Admission | undefined> | undefined) {
    this.#question = question;
  }

  /** The limiter's answer; undefined where it gave none or there was nothing to ask. */
  ask(): Promise<Admission | undefined> {
    this.#asking ??= this.#question() ?? Promise.resolve(undefined);
    return this.#asking;
  }

  /** Asks, and calls `onRefused` where the answer is no. */
  async askBeside(onRefused: () => void): Promise<void> {
    if ((await this.ask())?.refusedBy !== undefined) onRefused();
  }
}

/**
 * What the limiter said last of each key. A key that had at least half of everything left is let go on at once, and asked for while its turn is
 * under way: should it be refused after all, nothing of the turn was let out, and the next one waits for the answer again.
 */
export class PlaceCredit {
  readonly #last: RecentMap<Admission>;

  constructor(options: RecentMapOptions) {
    this.#last = new RecentMap(options);
  }

  /** Whether a turn of so many tokens may go on before the answer. */
  allows(tenant: Pick<Tenant, "namespace" | "key">, tokensEstimated: number): boolean {
    const last = this.#last.get(nameOf(tenant));
    if (!last) return false;
    return hasPlenty(last) && last.tokens.remaining >= 2 * tokensEstimated;
  }

  note(tenant: Pick<Tenant, "namespace" | "key">, admission: Admission): void {
    this.#last.put(nameOf(tenant), admission);
  }

  forget(tenant: Pick<Tenant, "namespace" | "key">): void {
    this.#last.delete(nameOf(tenant));
  }
}

/** Two keys of a tenant may have different limits. */
function nameOf({ namespace, key }: Pick<Tenant, "namespace" | "key">): string {
  return `${namespace} ${key.id}`;
}

/** One per isolate: it is a hint and decides nothing, so sharing cannot be observed but in time. */
export const isolateCredit = new PlaceCredit({
  countMax: LIMITS.keyCacheCountMax,
  ageMsMax: LIMITS.placeCreditMsMax,
  now: () => Date.now(),
});
