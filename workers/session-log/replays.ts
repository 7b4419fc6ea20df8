/** What a session remembers of its last turn's stream: in memory while it runs or is read, in SQLite once a resumable turn has ended. */
import { LIMITS } from "../../protocol/limits.ts";
import type { AnswerForm, AnswerHead, ResumeRequest, TurnFeed, TurnJob, TurnName } from "../turn-job.ts";
import { FRAMES, sseCoding } from "./event-coding.ts";
import { dropReplay, keepReplay, readReplay } from "./replay-store.ts";
import { TurnStream } from "./turn-stream.ts";

interface KeptTurn {
  stream: TurnStream;
  idempotencyKey: string | undefined;
  bodyDigest: string | undefined;
  head: AnswerHead;
  numericsId: string;
  endedMs: number | undefined;
}

/** What a turn can be asked for by, and how long. */
interface NamedTurn {
  streamId: string;
  idempotencyKey?: string | undefined;
  endedMs?: number | undefined;
}

/** Holds one resumable turn, running or ended; a new one takes its place. */
export class Replays {
  readonly #storage: DurableObjectStorage;
  readonly #now: () => number;
  #kept: KeptTurn | undefined;
  /** Whether a turn may lie in the storage: nobody else writes there. */
  #mayBeStored = true;
  /** What lies there is of an earlier turn. It goes when the one that runs has ended: the first token of that waits for no disk. */
  #isStale = false;

  constructor(storage: DurableObjectStorage, now: () => number) {
    this.#storage = storage;
    this.#now = now;
  }

  /** Takes a turn that begins; its stream is followed by whoever asks. A turn that is not resumable leaves nothing to ask for. */
  begin(stream: TurnStream, job: TurnJob, numericsId: string): void {
    this.#isStale = this.#mayBeStored;
    const { head, idempotencyKey, bodyDigest } = job;
    const facts = { idempotencyKey, bodyDigest, head, numericsId, endedMs: undefined };
    this.#kept = stream.resumable ? { stream, ...facts } : undefined;
  }

  /**
   * The turn is written into the log, in one go with this: from now on it is known by its name, so that whoever asks for it again does not run it twice
   * where its object is lost before {@link end}. Nothing of what it said is held by that.
   */
  written(stream: TurnStream): void {
    const kept = this.#kept;
    if (kept?.stream !== stream || kept.idempotencyKey === undefined) return;
    const { stream: _, ...facts } = kept;
    const nothing = { first: Number.MAX_SAFE_INTEGER, events: [] };
    keepReplay(this.#storage, { ...facts, streamId: stream.id, endedMs: this.#now(), ...nothing });
    this.#isStale = false;
    this.#mayBeStored = true;
  }

  /**
   * The turn has said everything: a resumable one can be asked for from now on during `LIMITS.replayKeepMs`, also after the object's death. What
   * was kept of an earlier turn is gone.
   */
  end(stream: TurnStream): void {
    const kept = this.#kept;
    const isStale = this.#isStale;
    this.#isStale = false;
    if (kept?.stream === stream) {
      kept.endedMs = this.#now();
      this.#mayBeStored = true;
      const { stream: _, ...facts } = kept;
      keepReplay(this.#storage, { ...facts, streamId: stream.id, endedMs: kept.endedMs, ...stream.held });
      this.#keepWhileRead(kept);
    } else if (isStale) {
      dropReplay(this.#storage);
      this.#mayBeStored = false;
    }
  }

  /** A turn that cannot be asked for again, since it ran elsewhere, has taken the place of the last one. */
  supersede(): void {
    this.#kept = undefined;
    if (!this.#mayBeStored) return;
    dropReplay(this.#storage);
    this.#mayBeStored = false;
  }

  /** Nothing can be asked for any more. */
  clear(): void {
    this.#kept = undefined;
  }

  /** The rest of the turn that is asked for; undefined when it is not the last one, is too old, or does not hold that event any more. */
  resume(request: ResumeRequest): TurnFeed | undefined {
    const found = this.find(request);
    return typeof found === "string" ? undefined : found;
  }

  /**
   * As {@link resume}, but of the last turn, not too old: `cut` where it does not hold that event any more, `other` where it was asked for by another
   * body under the same name.
   */
  find({ from, form, bodyDigest, ...name }: ResumeRequest): TurnFeed | "cut" | "other" | undefined {
    const kept = this.#kept ?? this.#load(name);
    if (!kept || !this.#isMeant({ ...kept, streamId: kept.stream.id }, name)) return undefined;
    const isOther = bodyDigest !== undefined && kept.bodyDigest !== undefined && bodyDigest !== kept.bodyDigest;
    const feed = isOther ? undefined : followTurn(kept, { from, form });
    // One that was read from the storage is there for others, too, while somebody reads it.
    if (feed) this.#kept ??= kept;
    else if (kept !== this.#kept) void kept.stream.close();
    return feed ?? (isOther ? "other" : "cut");
  }

  #isMeant({ streamId, idempotencyKey, endedMs = this.#now() }: NamedTurn, name: TurnName): boolean {
    return isNamed(name, streamId, idempotencyKey) && this.#now() - endedMs <= LIMITS.replayKeepMs;
  }

  #load(name: TurnName): KeptTurn | undefined {
    const stored = this.#isStale || !this.#mayBeStored ? undefined : readReplay(this.#storage);
    if (!stored || !this.#isMeant(stored, name)) return undefined;
    const { idempotencyKey, bodyDigest, head, numericsId, endedMs } = stored;
    const kept = { stream: TurnStream.ended(stored), idempotencyKey, bodyDigest, head, numericsId, endedMs };
    this.#keepWhileRead(kept);
    return kept;
  }

  /** What lies in the storage is in memory no longer than somebody reads it: most turns that have ended nobody asks for. */
  #keepWhileRead(kept: KeptTurn): void {
    void kept.stream.drained.then(() => {
      if (this.#kept === kept) this.#kept = undefined;
    });
  }
}

/** A stream from an event on, in the form that is asked for; undefined when it does not hold that event. */
export function followTurn(
  { stream, head, numericsId }: Pick<KeptTurn, "stream" | "head" | "numericsId">,
  { from, form }: { from: number; form: AnswerForm },
): TurnFeed | undefined {
  const facts = { streamId: stream.id, numericsId, head };
  const readable = stream.subscribe(from, form === "sse" ? sseCoding(facts) : FRAMES);
  return readable && { ...facts, stream: readable };
}

/** Whether a turn has the names that are given; a name that is not given is no objection. */
export function isNamed(name: TurnName, streamId: string, idempotencyKey: string | undefined): boolean {
  if (name.streamId !== undefined && name.streamId !== streamId) return false;
  return name.idempotencyKey === undefined || name.idempotencyKey === idempotencyKey;
}
