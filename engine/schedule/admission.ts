/**
 * Whether a request is taken in, and when it may come back if not. A request waits for a place among the running and for blocks; the wait is
 * predicted from the pace at which the queue has been emptying and from what prompts ahead of it still cost. Too long a wait is
 * refused at once (429 with a Retry-After that holds, see retry-promises.ts) instead of being found out by waiting.
 */
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { detached } from "../../protocol/detached.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { parseHow } from "../kv/provenance.ts";
import type { ResolvedSelection, Sequence } from "../sequence/sequence.ts";
import type { EngineSettings } from "../settings.ts";
import type { CostModel } from "./cost-model.ts";
import { RetryPromises, retryKey } from "./retry-promises.ts";
import { loadOf } from "./step-load.ts";
import type { Tenants } from "./tenants.ts";
import type { WaitingQueue } from "./waiting-queue.ts";

/** Clients come back when so much of the queue before them has gone. */
const RETRY_QUEUE_SHARE = 0.5;

/** What admission looks at. */
export interface AdmissionOptions {
  settings: EngineSettings;
  queue: WaitingQueue;
  tenants: Tenants;
  cost: CostModel;
  /** The running ones. */
  active: ReadonlySet<Sequence>;
  /** Whether a request would find the blocks that it starts with. */
  hasRoomFor(sequence: Sequence): boolean;
}

/** Admission of one engine. */
export class Admission {
  readonly #options: AdmissionOptions;
  /** By tenant: each has a pace of its own. */
  readonly #promises = new Map<string, RetryPromises>();
  readonly #kept = { count: 0 };

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** Times to come back that were given and not yet kept. */
  get promisedCount(): number {
    return this.#kept.count;
  }

  /**
   * Predicted milliseconds until a request begins with its own prompt: waiting for a place, at the pace at which its tenant's
   * requests have been getting one, and for the prompts that are being read.
   */
  waitMs(sequence: Sequence): number {
    const { tenants, active, settings, hasRoomFor } = this.#options;
    const { namespace } = sequence;
    const own = tenants.waitingCount(namespace);
    // An empty engine has room for whatever it takes in.
    const hasRoom = active.size === 0 || hasRoomFor(sequence);
    const hasPlace = active.size < settings.runningMax && hasRoom && own === 0;
    return (hasPlace ? 0 : (own + 1) * tenants.paceMs(namespace)) + this.#promptsMs(namespace);
  }

  #checkGroups({ spans, tokenCount }: Sequence): void {
    const { stepRowsMax, runningMax } = this.#options.settings;
    const groups = spans.until(tokenCount).map(({ how }) => parseHow(how)?.groupTokens ?? 1);
    const rows = groups.reduce((most, group) => Math.max(most, group), PAGE_TOKENS);
    if (rows === PAGE_TOKENS || rows + runningMax <= stepRowsMax) return;
    const message = `group(${rows}) needs steps of ${rows + runningMax} rows; this engine's have ${stepRowsMax}.`;
    throw new QuireError("invalid_request", message, { param: "quire.selection.policy" });
  }

  /** Where a smaller budget is set for times of need, and this is one; not for a selection whose first and last tokens take all of that. */
  underPressure(selection: ResolvedSelection, waitMs: number): ResolvedSelection {
    const { degradedBudgetTokens, degradeWaitMs } = this.#options.settings;
    if (degradedBudgetTokens === undefined || selection.policy === "dense" || waitMs <= degradeWaitMs) return selection;
    if (selection.budgetTokens <= degradedBudgetTokens || !hasPlan(selection, degradedBudgetTokens)) return selection;
    return { ...selection, budgetTokens: degradedBudgetTokens, budgetTokensAsked: selection.budgetTokens };
  }

  /**
   * @throws {QuireError} `queue_full`, with the time at which a place will be free for this very request; `invalid_request` for query groups
   * that no step has room for beside those who decode.
   */
  check(sequence: Sequence, waitMs: number, nowMs: number): void {
    this.#checkGroups(sequence);
    const refusal = this.#refusal(sequence, waitMs, nowMs);
    if (refusal === undefined) return;
    const { namespace } = sequence;
    const { tenants } = this.#options;
    const paceMs = tenants.paceMs(namespace);
    const earliestMs = nowMs + Math.max(1, tenants.waitingCount(namespace) * RETRY_QUEUE_SHARE) * paceMs;
    const promises = this.#promises.get(namespace) ?? new RetryPromises(this.#kept);
    const hasRoom = this.#hasRoomToPromise(nowMs);
    const retryAfterMs = promises.promise(retryKey(sequence.request), { nowMs, earliestMs, paceMs, hasRoom });
    if (promises.count > 0) this.#promises.set(detached(namespace), promises);
    throw new QuireError("queue_full", refusal, { retryAfterMs: Math.ceil(retryAfterMs) });
  }

  /** Whether one more place may be kept, once what is over is forgotten. */
  #hasRoomToPromise(nowMs: number): boolean {
    if (this.#kept.count < LIMITS.retryPromisesOfAllMax) return true;
    for (const [name, promises] of this.#promises) {
      promises.forget(nowMs);
      if (promises.count === 0) this.#promises.delete(name);
    }
    return this.#kept.count < LIMITS.retryPromisesOfAllMax;
  }

  /** Why a request cannot be taken now. */
  #refusal(sequence: Sequence, waitMs: number, nowMs: number): string | undefined {
    const { settings, queue } = this.#options;
    const { namespace, request } = sequence;
    const dueMs = request.firstTokenMsMax;
    const ownMs = waitMs + this.#prefillMs(sequence);
    if (dueMs !== undefined && ownMs > dueMs)
      return `The first token would come after about ${Math.ceil(ownMs)} ms; the request allows ${dueMs} ms.`;
    if (!queue.hasRoom(namespace, nowMs)) return `The engine's queue of ${settings.queueMax} is full.`;
    const promises = this.#promises.get(namespace);
    if (promises?.redeem(retryKey(request), nowMs)) {
      if (promises.count === 0) this.#promises.delete(namespace);
      return undefined;
    }
    if (waitMs > settings.waitMsMax) return `The engine would begin after about ${Math.ceil(waitMs / 1000)} s.`;
    return this.#isPromised(namespace, nowMs) ? "The engine's queue is promised to others." : undefined;
  }

  /** Whether all places that a tenant could have are kept for requests that were told to come back while it waits. */
  #isPromised(namespace: string, nowMs: number): boolean {
    const { queue, tenants, settings } = this.#options;
    const untilMs = nowMs + tenants.waitingCount(namespace) * tenants.paceMs(namespace);
    let kept = 0;
    for (const [name, promises] of this.#promises) {
      const count = promises.keptUntil(untilMs, nowMs);
      if (promises.count === 0) this.#promises.delete(name);
      const places = queue.placesOf(name, nowMs) - tenants.waitingCount(name);
      if (name === namespace && count >= places) return true;
      // What is promised beyond a tenant's own places is none of the others' business.
      kept += Math.max(0, Math.min(count, places));
    }
    return queue.length + kept >= settings.queueMax;
  }

  /** What prompts that are being read still take, those of tenants that have had more than this one left aside. */
  #promptsMs(namespace: string): number {
    const { active, tenants } = this.#options;
    let ms = 0;
    for (const sequence of active) {
      const isBehind = tenants.servedMs(sequence.namespace) > tenants.servedMs(namespace);
      if (!sequence.started && !isBehind) ms += this.#prefillMs(sequence);
    }
    return ms;
  }

  /** What a prompt takes from where it is, beside those who decode. */
  #prefillMs(sequence: Sequence): number {
    const { cost, active, settings } = this.#options;
    const from = this.#startOf(sequence);
    if (from === undefined || from >= sequence.promptEnd) return 0;
    const load = loadOf(sequence, { from, to: sequence.promptEnd, sampledRows: 1 });
    const isShared = [...active].some(({ started }) => started);
    const { interTokenGrowthMax: growth } = settings;
    return (cost.predictMs(load) - cost.fixedMs) * (isShared ? growth / (growth - 1) : 1);
  }

  /** Where its computing goes on; of one that still waits, where it will, should everything that may be found be found. */
  #startOf(sequence: Sequence): number | undefined {
    if (sequence.phase !== "queued") return sequence.nextPosition;
    const { session, turnStart } = sequence.request;
    return Math.max(this.#options.queue.foundTokens(sequence), session === undefined ? 0 : turnStart);
  }
}

/** Whether a selection can do with so small a budget. */
function hasPlan({ policy }: ResolvedSelection, budgetTokens: number): boolean {
  try {
    return policyNamed(policy).plan(budgetTokens) !== undefined;
  } catch (error) {
    if (error instanceof QuireError) return false;
    throw error;
  }
}
