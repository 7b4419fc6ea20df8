/**
 * How turns end: said to the end, cancelled, too late, or failed. Each has exactly one terminal event; what the turn left is persisted, also an
 * aborted one's; then everything that it held is given back.
 */
import type { EngineParts } from "./engine-parts.ts";
import { parkTail } from "./kv/tail-parking.ts";
import type { EngineObserver } from "./observer.ts";
import type { Tenants } from "./schedule/tenants.ts";
import type { WaitingQueue } from "./schedule/waiting-queue.ts";
import { describeError, lateness, leavesKv, outcomeOf, tellEnd, wentInCircles } from "./sequence/endings.ts";
import type { Sequence } from "./sequence/sequence.ts";

/** What the ends of turns work with; all of it stays the engine's. */
export interface TurnEndsOptions {
  parts: Pick<EngineParts, "settings" | "cache" | "opens" | "persister" | "clock" | "log">;
  queue: Pick<WaitingQueue, "remove" | typeof Symbol.iterator>;
  active: Set<Sequence>;
  /** Sessions with a turn among the active. */
  busySessions: Set<string>;
  tenants: Pick<Tenants, "finish" | "leave">;
  observer: Pick<EngineObserver, "concluded" | "settled">;
  /** Drops its suspended step, if it has one. */
  dropStep(sequence: Sequence): void;
  /** Lets the loop look again. */
  wake(): void;
}

/** Ends the turns of one engine. */
export class TurnEnds {
  readonly #options: TurnEndsOptions;

  constructor(options: TurnEndsOptions) {
    this.#options = options;
  }

  /** Asks for an end at once, in any phase; {@link endAborted} carries it out. */
  cancel(sequence: Sequence): void {
    sequence.abortRequested = true;
    sequence.abort.abort();
    this.#options.wake();
  }

  /** Ends one sequence with an error; the others go on. The first error counts. */
  fail(sequence: Sequence, error: unknown): void {
    this.#options.parts.log("sequence.failed", {
      requestId: sequence.request.requestId,
      error: describeError(error),
    });
    sequence.error ??= error;
    this.#options.wake();
  }

  /** Between steps: whoever was cancelled, has failed, or has missed a deadline leaves. */
  endAborted(): void {
    const { active, parts, queue } = this.#options;
    for (const sequence of [...queue, ...active]) {
      if (sequence.phase === "settling" || sequence.phase === "ended") continue;
      sequence.error ??= lateness(sequence, parts.clock.nowMs(), parts.settings.turnMsMax) ?? wentInCircles(sequence);
      if (!sequence.abortRequested && sequence.error === undefined) continue;
      if (sequence.phase === "queued") queue.remove(sequence);
      else if (sequence.phase === "attaching") {
        // Its memory is written to until the store has answered, but nobody need wait for that.
        this.conclude(sequence);
        continue;
      }
      void this.settle(sequence);
    }
  }

  /** Persists what the turn left (also an aborted one's), then gives everything back. Never rejects. */
  async settle(sequence: Sequence): Promise<void> {
    const { active, busySessions, dropStep, observer, parts, tenants, wake } = this.#options;
    const { cache, opens, persister, clock, log } = parts;
    sequence.phase = "settling";
    this.conclude(sequence);
    try {
      dropStep(sequence);
      await persister.copied(sequence);
      if (leavesKv(sequence)) await persister.endTurn(sequence);
      if (sequence.error === undefined) parkTail(sequence, opens);
    } catch (error) {
      log("persist.failed", { requestId: sequence.request.requestId, error: String(error) });
    }
    const blocks = sequence.reservedCount;
    sequence.releaseAll(cache, opens);
    sequence.phase = "ended";
    if (active.delete(sequence)) {
      tenants.finish(sequence.namespace, blocks);
      if (sequence.sessionKey !== undefined) busySessions.delete(sequence.sessionKey);
    }
    tenants.leave(sequence.namespace, clock.nowMs());
    observer.settled(sequence, clock.nowMs());
    wake();
  }

  /** The one terminal event of a request; later calls do nothing. */
  conclude(sequence: Sequence): void {
    if (sequence.concluded) return;
    sequence.concluded = true;
    const { observer, parts } = this.#options;
    const nowMs = parts.clock.nowMs();
    sequence.usage.totalMs = nowMs - sequence.queuedAtMs;
    observer.concluded(sequence, outcomeOf(sequence), nowMs);
    try {
      tellEnd(sequence);
    } catch (error) {
      parts.log("sink.failed", { requestId: sequence.request.requestId, error: String(error) });
    }
  }
}
