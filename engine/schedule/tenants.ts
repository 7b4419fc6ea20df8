/**
 * Who has had how much of the engine, in milliseconds of its steps, by tenant (namespace). Deficit counters in the manner of VTC and D2LPM: whoever
 * comes with work starts at what the least served active tenant has had, less a credit that idling has earned; counters fall to
 * nothing when nobody has work. Tenants within a quantum of the least served one are equal, so that locality may choose between them.
 */
import type { Sequence } from "../sequence/sequence.ts";
import type { CostModel, StepLoad } from "./cost-model.ts";

/** Milliseconds of steps that a tenant may save up while it asks for little: short requests of light tenants find it always. */
const CREDIT_MS = 2_000;
/** Tenants that differ by less than this are served in the order that suits the cache. */
const QUANTUM_MS = 200;
/** A tenant that was here so recently may come back at any time: others leave it room. */
const RECENT_MS = 600_000;
/** Tenants remembered while they have no work; the longest gone are forgotten first. */
const TENANTS_MAX = 4_096;
/** Share of the newest interval in a tenant's pace, what it is before anything was admitted, and the longest that counts. */
const PACE_SHARE = 0.1;
const PACE_MS_START = 1_000;
const PACE_MS_MAX = 60_000;

interface Account {
  servedMs: number;
  /** Requests in the engine, waiting or running. */
  requestCount: number;
  runningCount: number;
  reservedBlocks: number;
  /** When its last request came or ended. */
  seenMs: number;
  /** When its last request was admitted, and between two that had to wait, as of late. */
  startedMs: number;
  paceMs: number;
}

/** The accounts of one engine. */
export class Tenants {
  /** In order of last use. */
  readonly #accounts = new Map<string, Account>();

  /** Tenants that have work. */
  get activeCount(): number {
    return this.#active().length;
  }

  /** A request came. */
  enter(namespace: string, nowMs: number): void {
    const active = this.#active();
    const account = this.#accounts.get(namespace) ?? emptyAccount();
    if (active.length === 0) for (const other of this.#accounts.values()) other.servedMs = 0;
    if (account.requestCount === 0 && active.length > 0) {
      const least = Math.min(...active.map(({ servedMs }) => servedMs));
      account.servedMs = Math.max(account.servedMs, least - CREDIT_MS);
    }
    account.requestCount += 1;
    this.#touch(namespace, account, nowMs);
  }

  /** A request that came is over, whatever became of it. */
  leave(namespace: string, nowMs: number): void {
    const account = this.#of(namespace);
    account.requestCount -= 1;
    this.#touch(namespace, account, nowMs);
  }

  /** A request starts to run with so many blocks set aside. */
  start(namespace: string, blocks: number, nowMs: number): void {
    const account = this.#of(namespace);
    if (account.requestCount - account.runningCount > 1)
      account.paceMs += PACE_SHARE * (Math.min(PACE_MS_MAX, nowMs - account.startedMs) - account.paceMs);
    account.startedMs = nowMs;
    account.runningCount += 1;
    account.reservedBlocks += blocks;
  }

  /** A running request got so many blocks more, or gave them back. */
  reserve(namespace: string, blocks: number): void {
    this.#of(namespace).reservedBlocks += blocks;
  }

  /** A running request gave its blocks back. */
  finish(namespace: string, blocks: number): void {
    const account = this.#of(namespace);
    account.runningCount -= 1;
    account.reservedBlocks -= blocks;
  }

  /** Shares a step's time out among the tenants in it, by what their rows cost. */
  chargeStep(parts: readonly { sequence: Sequence; load: StepLoad }[], ms: number, cost: CostModel): void {
    const weights = parts.map(({ load }) => Math.max(1e-3, cost.predictMs(load) - cost.fixedMs));
    const sum = weights.reduce((a, b) => a + b);
    for (const [i, { sequence }] of parts.entries()) this.charge(sequence.namespace, (ms * weights[i]!) / sum);
  }

  /** It had so much of a step. */
  charge(namespace: string, ms: number): void {
    this.#of(namespace).servedMs += ms;
  }

  servedMs(namespace: string): number {
    return this.#accounts.get(namespace)?.servedMs ?? 0;
  }

  runningCount(namespace: string): number {
    return this.#accounts.get(namespace)?.runningCount ?? 0;
  }

  reservedBlocks(namespace: string): number {
    return this.#accounts.get(namespace)?.reservedBlocks ?? 0;
  }

  /** Milliseconds between two of its requests that get to run, while others of it wait. */
  paceMs(namespace: string): number {
    return this.#accounts.get(namespace)?.paceMs ?? PACE_MS_START;
  }

  /** Requests that wait to run. */
  waitingCount(namespace: string): number {
    const account = this.#accounts.get(namespace);
    return account === undefined ? 0 : account.requestCount - account.runningCount;
  }

  /** Whether a tenant has had hardly more than the least served of `namespaces`. */
  isEligible(namespace: string, namespaces: Iterable<string>): boolean {
    let least = Number.POSITIVE_INFINITY;
    for (const other of namespaces) least = Math.min(least, this.servedMs(other));
    return this.servedMs(namespace) <= least + QUANTUM_MS;
  }

  /**
   * Whether a tenant asks for more than there is and has had more than another one: it has requests waiting, or runs more at once than an
   * equal share of `runningMax`.
   */
  isGreedy(namespace: string, beside: string, runningMax: number): boolean {
    if (this.servedMs(namespace) <= this.servedMs(beside)) return false;
    const share = Math.ceil(runningMax / Math.max(2, this.activeCount));
    return this.waitingCount(namespace) > 0 || this.runningCount(namespace) > share;
  }

  /** Whether other tenants than this one have work, or had some lately. */
  hasCompany(namespace: string, nowMs: number, recentMs = RECENT_MS): boolean {
    return this.#isAnyBeside(namespace, { nowMs, recentMs }, () => true);
  }

  /** Whether a tenant is greedy beside any other that has work, or had some within `recentMs`. */
  isGreedyBesideAny(namespace: string, nowMs: number, of: { runningMax: number; recentMs: number }): boolean {
    return this.#isAnyBeside(namespace, { nowMs, ...of }, (other) => this.isGreedy(namespace, other, of.runningMax));
  }

  #isAnyBeside(
    namespace: string,
    { nowMs, recentMs }: { nowMs: number; recentMs: number },
    holds: (other: string) => boolean,
  ): boolean {
    for (const [other, { requestCount, seenMs }] of this.#accounts) {
      const isHere = other !== namespace && (requestCount > 0 || nowMs - seenMs < recentMs);
      if (isHere && holds(other)) return true;
    }
    return false;
  }

  #of(namespace: string): Account {
    let account = this.#accounts.get(namespace);
    if (account === undefined) {
      account = emptyAccount();
      this.#accounts.set(namespace, account);
    }
    return account;
  }

  #active(): Account[] {
    return [...this.#accounts.values()].filter(({ requestCount }) => requestCount > 0);
  }

  #touch(namespace: string, account: Account, nowMs: number): void {
    account.seenMs = nowMs;
    this.#accounts.delete(namespace);
    this.#accounts.set(namespace, account);
    if (this.#accounts.size <= TENANTS_MAX) return;
    for (const [name, { requestCount }] of this.#accounts) {
      if (requestCount > 0) continue;
      this.#accounts.delete(name);
      return;
    }
  }
}

function emptyAccount(): Account {
  return {
    ...{ servedMs: 0, requestCount: 0, runningCount: 0, reservedBlocks: 0 },
    ...{ seenMs: 0, startedMs: 0, paceMs: PACE_MS_START },
  };
}
