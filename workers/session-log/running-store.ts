/**
 * A resumable turn as it runs, in its session's storage: an object that starts again in mid-turn goes on with it. Nobody waits for these
 * writes. What was said after the last of them is generated again, and is the same: seeds are in the job, and events are numbered by
 * tokens, so a client that had more than was written gets only the rest.
 */
import { encodeFrame } from "../../protocol/frames.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { TurnJob } from "../turn-job.ts";
import { dropParts, partsOf, readParts } from "./kept-bytes.ts";
import { unpackValue } from "./wire.ts";

/** What a turn is begun with. */
export interface RunningTurnFacts {
  job: TurnJob;
  streamId: string;
  numericsId: string;
  startedMs: number;
  /** Turns in the log when it began: it goes on only there. */
  turnCount: number;
}

/** A turn whose object was lost. */
export interface LostTurn extends RunningTurnFacts {
  /** Ids of the reply that were written. */
  ids: number[];
  /** How often it has been taken up, this time included. */
  attempt: number;
}

const FACTS = "running";
const ATTEMPTS = "running-attempts";
const IDS = "running-ids/";

/** At most one turn. Ids are written every `LIMITS.runningSaveTokens` tokens, or after `runningSaveMs`. */
export class RunningStore {
  readonly #storage: DurableObjectStorage;
  readonly #now: () => number;
  #savedCount = 0;
  #savedMs = 0;
  #isNoted = false;
  /** Whether there may be anything in the storage. */
  #mayHold = true;

  constructor(storage: DurableObjectStorage, now: () => number) {
    this.#storage = storage;
    this.#now = now;
  }

  /** Whether a turn is written down. */
  get isNoted(): boolean {
    return this.#isNoted;
  }

  /** Takes a turn that has begun. */
  begin(facts: RunningTurnFacts): void {
    this.clear();
    this.#mayHold = true;
    this.#isNoted = true;
    this.#put(partsOf(FACTS, encodeFrame(facts)));
  }

  /** Takes the ids of the reply so far; most calls write nothing. */
  progress(ids: readonly number[]): void {
    if (!this.#isNoted) return;
    const isMany = ids.length - this.#savedCount >= LIMITS.runningSaveTokens;
    if (!isMany && (ids.length === this.#savedCount || this.#now() - this.#savedMs < LIMITS.runningSaveMs)) return;
    const key = `${IDS}${String(this.#savedCount).padStart(8, "0")}`;
    this.#put({ [key]: idsToBytes(ids.slice(this.#savedCount)) });
    this.#savedCount = ids.length;
  }

  /** The turn that was running when the object was lost, counted as taken up; undefined when there is none. */
  take(): LostTurn | undefined {
    const packed = readParts(this.#storage, FACTS);
    if (!packed) {
      this.#mayHold = false;
      return undefined;
    }
    const facts = unpackValue<RunningTurnFacts>(packed);
    const attempt = 1 + (this.#storage.kv.get<number>(ATTEMPTS) ?? 0);
    this.#put({ [ATTEMPTS]: attempt });
    const ids: number[] = [];
    for (const [, bytes] of this.#storage.kv.list<Uint8Array>({ prefix: IDS })) ids.push(...bytesToIds(bytes));
    this.#savedCount = ids.length;
    this.#isNoted = true;
    return { ...facts, ids, attempt };
  }

  /** The turn is over: called in one go with the write that ends it, so that both are there or neither. */
  clear(): void {
    this.#savedCount = 0;
    this.#savedMs = this.#now();
    this.#isNoted = false;
    if (!this.#mayHold) return;
    this.#mayHold = false;
    if (!dropParts(this.#storage, FACTS)) return;
    this.#storage.kv.delete(ATTEMPTS);
    for (const [key] of [...this.#storage.kv.list({ prefix: IDS })]) this.#storage.kv.delete(key);
  }

  #put(entries: Record<string, Uint8Array | number>): void {
    this.#savedMs = this.#now();
    // A storage that fails takes the object with it; there is nobody to tell.
    this.#storage.put(entries, { allowUnconfirmed: true }).catch(() => undefined);
  }
}
