/** What the turns of an isolate hold for readers, all together: its memory is one, however many of them are slow. */
import { LIMITS } from "../../protocol/limits.ts";

/** How much may be held, and whose clock it is. */
export interface StreamMemoryOptions {
  /** From here on every turn is held to {@link LIMITS.turnBufferTightBytes}. */
  bytesMax: number;
  now: () => number;
}

/** A turn whose object was lost says nothing more, not even that it is gone; one that runs says something each `LIMITS.heartbeatMs`. */
const SILENT_MS_MAX = 5_000;

/**
 * Counts. While more than `bytesMax` is held, each turn may have less waiting than else: it is the turns of slow readers that wait, at their engine, and
 * nobody is cut or refused. So at most `bytesMax`, and `LIMITS.turnBufferTightBytes` and what an engine says at once for each turn beyond.
 */
export class StreamMemory {
  readonly #bytesMax: number;
  readonly #now: () => number;
  readonly #turns = new Map<string, { bytes: number; saidMs: number }>();
  #bytes = 0;
  #sweptMs = 0;

  constructor({ bytesMax, now }: StreamMemoryOptions) {
    this.#bytesMax = bytesMax;
    this.#now = now;
  }

  /** Of all turns that run. */
  get bytes(): number {
    return this.#bytes;
  }

  get isTight(): boolean {
    return this.#bytes > this.#bytesMax;
  }

  /** A turn holds so much now. To be said when it changes, and now and then. */
  hold(turnId: string, bytes: number): void {
    const nowMs = this.#now();
    const turn = this.#turns.get(turnId);
    this.#bytes += bytes - (turn?.bytes ?? 0);
    if (turn) {
      turn.bytes = bytes;
      turn.saidMs = nowMs;
    } else {
      this.#turns.set(turnId, { bytes, saidMs: nowMs });
    }
    if (nowMs - this.#sweptMs >= SILENT_MS_MAX) this.#sweep(nowMs);
  }

  /** A turn is over. */
  release(turnId: string): void {
    this.#bytes -= this.#turns.get(turnId)?.bytes ?? 0;
    this.#turns.delete(turnId);
  }

  #sweep(nowMs: number): void {
    this.#sweptMs = nowMs;
    for (const [turnId, { saidMs }] of this.#turns) if (nowMs - saidMs >= SILENT_MS_MAX) this.release(turnId);
  }
}

/** Of this isolate. */
export const isolateStreams = new StreamMemory({ bytesMax: LIMITS.streamMemoryBytesMax, now: () => Date.now() });
