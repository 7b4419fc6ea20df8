/**
 * Requests that wait to be admitted, and in which order: tenants by what they have had (tenants.ts), between tenants that are equal, the
 * one whose request finds most of its prompt on the device; within a tenant by priority, then deadline, then most found on the device, then
 * arrival. Whoever has waited long is first of its priority; whoever needs more blocks than are free is passed by a bounded number.
 */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import type { Sequence } from "../sequence/sequence.ts";
import type { Tenants } from "./tenants.ts";

/** Waiting longer than this counts more than finding a prompt on the device. */
const PATIENCE_MS = 2_000;
/** Requests that may be admitted past one that waits for blocks. */
const PASSED_MAX = 8;
/** Of running sequences, blocks and queue places: what one tenant leaves to others that may come. */
const LEFT_SHARE = 1 / 4;
/** Prompts looked up on the device per admission; those behind are taken as unknown there. */
const LOOKED_UP_MAX = 32;

/** What the queue asks of the engine. */
export interface QueueOptions {
  tenants: Tenants;
  queueMax: number;
  runningMax: number;
  /** Blocks of the whole pool. */
  blocksMax: number;
  /** Whether a sealed block is on the device, by its key. */
  isResident(blockKey: string): boolean;
}

/** The queue of one engine. */
export class WaitingQueue {
  readonly #options: QueueOptions;
  /** In order of arrival. */
  readonly #waiting: Sequence[] = [];
  readonly #passed = new Map<Sequence, number>();

  constructor(options: QueueOptions) {
    this.#options = options;
  }

  get length(): number {
    return this.#waiting.length;
  }

  [Symbol.iterator](): Iterator<Sequence> {
    return [...this.#waiting][Symbol.iterator]();
  }

  /** Places that a tenant's requests may take. */
  placesOf(namespace: string, nowMs: number): number {
    const { queueMax } = this.#options;
    return this.#options.tenants.hasCompany(namespace, nowMs) ? Math.ceil(queueMax * (1 - LEFT_SHARE)) : queueMax;
  }

  /** Whether one more request of a tenant finds a place. */
  hasRoom(namespace: string, nowMs: number): boolean {
    if (this.#waiting.length >= this.#options.queueMax) return false;
    const own = this.#waiting.reduce((count, other) => count + (other.namespace === namespace ? 1 : 0), 0);
    return own < this.placesOf(namespace, nowMs);
  }

  add(sequence: Sequence): void {
    this.#waiting.push(sequence);
  }

  remove(sequence: Sequence): void {
    const index = this.#waiting.indexOf(sequence);
    if (index >= 0) this.#waiting.splice(index, 1);
    this.#passed.delete(sequence);
  }

  /**
   * The next to be admitted of those that `mayStart` (its session is free), or undefined. `reserve` sets its blocks aside, or says that
   * there are not enough.
   */
  next(
    nowMs: number,
    mayStart: (sequence: Sequence) => boolean,
    reserve: (sequence: Sequence) => boolean,
  ): Sequence | undefined {
    const { tenants } = this.#options;
    const heads = this.#heads(nowMs, mayStart);
    const namespaces = heads.map(({ sequence }) => sequence.namespace);
    const isEligible = new Map(namespaces.map((name) => [name, tenants.isEligible(name, namespaces)]));
    heads.sort((a, b) => {
      const [first, second] = [a.sequence.namespace, b.sequence.namespace];
      const eligible = Number(isEligible.get(second)) - Number(isEligible.get(first));
      if (eligible !== 0) return eligible;
      if (isEligible.get(first)) return b.foundTokens - a.foundTokens || byArrival(a, b);
      return tenants.servedMs(first) - tenants.servedMs(second);
    });
    const refused: Sequence[] = [];
    for (const { sequence } of heads) {
      if (reserve(sequence)) {
        for (const other of refused) this.#passed.set(other, this.#timesPassed(other) + 1);
        this.remove(sequence);
        return sequence;
      }
      if (this.#timesPassed(sequence) >= PASSED_MAX) return undefined;
      refused.push(sequence);
    }
    return undefined;
  }

  #timesPassed(sequence: Sequence): number {
    return this.#passed.get(sequence) ?? 0;
  }

  /** The first of each tenant that has not got its share of what runs already. */
  #heads(nowMs: number, mayStart: (sequence: Sequence) => boolean): Candidate[] {
    const heads = new Map<string, Candidate>();
    let lookedUp = 0;
    for (const sequence of this.#waiting) {
      if (!mayStart(sequence) || !this.#isWithinShare(sequence, nowMs)) continue;
      const foundTokens = lookedUp < LOOKED_UP_MAX ? this.foundTokens(sequence) : 0;
      lookedUp += 1;
      const candidate = { sequence, foundTokens, isOverdue: nowMs - sequence.queuedAtMs > PATIENCE_MS };
      const head = heads.get(sequence.namespace);
      if (head === undefined || compare(candidate, head) < 0) heads.set(sequence.namespace, candidate);
    }
    return [...heads.values()];
  }

  /** One tenant leaves some sequences and blocks to others that have been here lately; its first request always may run. */
  #isWithinShare(sequence: Sequence, nowMs: number): boolean {
    const { tenants, runningMax, blocksMax } = this.#options;
    const { namespace } = sequence;
    const running = tenants.runningCount(namespace);
    if (running === 0 || !tenants.hasCompany(namespace, nowMs)) return true;
    const blocks = tenants.reservedBlocks(namespace) + sequence.startBlocks;
    return running < Math.ceil(runningMax * (1 - LEFT_SHARE)) && blocks <= blocksMax * (1 - LEFT_SHARE);
  }

  /** Leading tokens of a prompt that are on the device. */
  foundTokens(sequence: Sequence): number {
    let index = 0;
    while ((index + 1) * BLOCK_TOKENS < sequence.promptEnd && this.#options.isResident(sequence.blockKey(index)))
      index += 1;
    return index * BLOCK_TOKENS;
  }
}

interface Candidate {
  sequence: Sequence;
  foundTokens: number;
  isOverdue: boolean;
}

function compare(a: Candidate, b: Candidate): number {
  return (
    b.sequence.priority - a.sequence.priority ||
    a.sequence.firstTokenDueMs - b.sequence.firstTokenDueMs ||
    Number(b.isOverdue) - Number(a.isOverdue) ||
    (a.isOverdue ? 0 : b.foundTokens - a.foundTokens) ||
    byArrival(a, b)
  );
}

function byArrival(a: Candidate, b: Candidate): number {
  return a.sequence.queuedAtMs - b.sequence.queuedAtMs;
}
