/** What an engine tells of its work while it goes on: metrics and traces listen. Listeners must not throw, and must be quick. */
import type { PlannedPart } from "./schedule/step-planner.ts";
import type { Sequence } from "./sequence/sequence.ts";

/** One listener; times are the engine's clock. */
export interface EngineObserver {
  /** A request was taken in, and waits. */
  queued(sequence: Sequence, nowMs: number): void;
  /** A request was refused with an error code; it has no sequence. */
  refused(requestId: string, code: string, nowMs: number): void;
  /** It is among the running, with its blocks set aside. */
  admitted(sequence: Sequence, nowMs: number): void;
  /** What KV there is has been found; usage says how much, from where. */
  attached(sequence: Sequence, nowMs: number): void;
  /** A step ran. `void` parts missed blocks and will be gone on with. */
  stepped(parts: readonly PlannedPart[], step: { startMs: number; endMs: number; predictedMs: number }): void;
  /** A sequence waits for so many blocks, of one layer where its queries selected them. */
  missed(sequence: Sequence, blockCount: number, nowMs: number, layer?: number): void;
  /** The wait is over. */
  resumed(sequence: Sequence, nowMs: number): void;
  /** What streamed in behind a resumed turn is all there. */
  filled(sequence: Sequence, nowMs: number): void;
  /** It was suspended: others need its memory. */
  preempted(sequence: Sequence, nowMs: number): void;
  /** It has memory again, and goes on as soon as its blocks are back. */
  restored(sequence: Sequence, nowMs: number): void;
  /** A token was sampled; `previousMs`: when the one before was, 0 for the first. */
  token(sequence: Sequence, nowMs: number, previousMs: number): void;
  /** The terminal event was sent: a finish reason or an error code. */
  concluded(sequence: Sequence, outcome: string, nowMs: number): void;
  /** What the turn left is copied and queued for the store; its memory is free. */
  settled(sequence: Sequence, nowMs: number): void;
}

/** Tells several listeners, in order. */
export class Observers implements EngineObserver {
  readonly #all: readonly EngineObserver[];

  constructor(all: readonly EngineObserver[]) {
    this.#all = all;
  }

  queued(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.queued(sequence, nowMs);
  }
  refused(requestId: string, code: string, nowMs: number): void {
    for (const one of this.#all) one.refused(requestId, code, nowMs);
  }
  admitted(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.admitted(sequence, nowMs);
  }
  attached(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.attached(sequence, nowMs);
  }
  stepped(parts: readonly PlannedPart[], step: { startMs: number; endMs: number; predictedMs: number }): void {
    for (const one of this.#all) one.stepped(parts, step);
  }
  missed(sequence: Sequence, blockCount: number, nowMs: number, layer?: number): void {
    for (const one of this.#all) one.missed(sequence, blockCount, nowMs, layer);
  }
  resumed(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.resumed(sequence, nowMs);
  }
  filled(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.filled(sequence, nowMs);
  }
  preempted(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.preempted(sequence, nowMs);
  }
  restored(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.restored(sequence, nowMs);
  }
  token(sequence: Sequence, nowMs: number, previousMs: number): void {
    for (const one of this.#all) one.token(sequence, nowMs, previousMs);
  }
  concluded(sequence: Sequence, outcome: string, nowMs: number): void {
    for (const one of this.#all) one.concluded(sequence, outcome, nowMs);
  }
  settled(sequence: Sequence, nowMs: number): void {
    for (const one of this.#all) one.settled(sequence, nowMs);
  }
}
