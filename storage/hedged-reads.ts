/**
 * A store whose stragglers are asked for again: a read that takes longer than 95 of 100 of its kind have taken gets a second request, the first
 * answer wins, and the other is aborted. Second requests are a bounded share of all, so a store that is slow as a whole is not asked twice.
 * It also remembers for a while which objects were absent.
 */
import {
  type GetOptions,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "./contract.ts";
import { refuseAborted, SharedDeadlines } from "./deadline.ts";
import { parseObjectKey } from "./keys.ts";
import { ReadTimes, readClass } from "./read-times.ts";
import { StoreActivity } from "./store-activity.ts";
import { failureOutcome, type StoreCall, StoreCalls } from "./store-calls.ts";

/** Second requests that may be saved up for a bad moment. */
const SAVED_MAX = 16;
/** Nothing counts as late before. */
const LATE_MS_MIN = 10;
const ABSENT_COUNT_MAX = 4096;

/** The time that it works with. */
export interface HedgeClock {
  nowMs(): number;
  /** A signal that fires after so many whole milliseconds. */
  deadline(ms: number): AbortSignal;
}

/** How it hedges. */
export interface HedgeOptions {
  clock: HedgeClock;
  /** Second requests as a share of all reads, at most; 0: none. */
  hedgeShareMax: number;
  /** How long an absent object is taken to be absent; 0: asked for each time. */
  absentMs: number;
}

/** What it has done. */
export interface HedgeCounts {
  reads: number;
  /** Second requests, and those of them that answered first. */
  hedges: number;
  hedgesWon: number;
  /** Reads that were answered from memory: absent a moment ago. */
  knownAbsent: number;
}

/** See the head of this file. Writes go to the store as they are. */
export class HedgedStore implements PageStore {
  readonly name: string;
  /** What its reads have taken. */
  readonly times = new ReadTimes();
  /** Whether it answers. */
  readonly activity = new StoreActivity();
  /** What became of its calls. */
  readonly calls = new StoreCalls();
  readonly counts: HedgeCounts = { reads: 0, hedges: 0, hedgesWon: 0, knownAbsent: 0 };
  readonly #inner: PageStore;
  readonly #options: HedgeOptions;
  readonly #lateReads: SharedDeadlines;
  #saved = 0;
  /** Until when; the first to be forgotten comes first. */
  readonly #absentUntilMs = new Map<string, number>();

  constructor(inner: PageStore, options: HedgeOptions) {
    this.name = inner.name;
    this.#inner = inner;
    this.#options = options;
    this.#lateReads = new SharedDeadlines(options.clock);
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    refuseAborted(options.signal);
    if (this.#isKnownAbsent(key)) {
      this.counts.knownAbsent += 1;
      return undefined;
    }
    this.counts.reads += 1;
    this.#saved = Math.min(SAVED_MAX, this.#saved + this.#options.hedgeShareMax);
    const object = await this.#read(key, options);
    if (object === undefined) this.#noteAbsent(key);
    return object;
  }

  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<PutResult> {
    this.#absentUntilMs.delete(key);
    return this.#followed("put", this.#inner.put(key, bytes, options)).finally(() => this.#absentUntilMs.delete(key));
  }

  delete(keys: readonly string[]): Promise<void> {
    return this.#followed("delete", this.#inner.delete(keys));
  }

  list: PageStore["list"] = (prefix, options) => this.#followed("list", this.#inner.list(prefix, options));

  forget(key: string): void {
    this.#inner.forget?.(key);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #read(key: string, options: GetOptions): Promise<StoreObject | undefined> {
    const kind = readClass(options.range?.bytes);
    const lateMs = this.times.lateMs(kind);
    const first = this.#attempt(key, options);
    if (lateMs === undefined || this.#options.hedgeShareMax === 0) return first.answer;
    return new Promise((resolve, reject) => {
      let second: Attempt | undefined;
      let isOver = false;
      let failed = 0;
      const over = (): boolean => {
        const wasOver = isOver;
        isOver = true;
        return wasOver;
      };
      const settle = (own: Attempt, other: () => Attempt | undefined): void => {
        own.answer.then(
          (object) => {
            if (over()) return;
            if (own === second) this.counts.hedgesWon += 1;
            other()?.giveUp();
            resolve(object);
          },
          (error) => {
            failed += 1;
            if (second !== undefined && failed < 2) return;
            if (!over()) reject(error);
          },
        );
      };
      settle(first, () => second);
      const late = this.#lateReads.after(Math.max(LATE_MS_MIN, Math.ceil(lateMs)));
      late.addEventListener("abort", () => {
        if (isOver || options.signal?.aborted || this.#saved < 1) return;
        this.#saved -= 1;
        this.counts.hedges += 1;
        second = this.#attempt(key, options);
        settle(second, () => first);
      });
    });
  }

  #attempt(key: string, options: GetOptions): Attempt {
    const { clock } = this.#options;
    const end = this.times.begin(clock.nowMs(), options.range?.bytes);
    const controller = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, controller.signal]) : controller.signal;
    const answer = this.#followed("get", this.#inner.get(key, { ...options, signal }), controller.signal);
    answer.then(
      (object) => end(clock.nowMs(), object?.bytes.byteLength),
      () => end(clock.nowMs(), undefined),
    );
    return { answer, giveUp: () => controller.abort() };
  }

  /** `outrun`: fires when the answer is not wanted any more. */
  #followed<T>(name: StoreCall, call: Promise<T>, outrun?: AbortSignal): Promise<T> {
    const { clock } = this.#options;
    const end = this.activity.begin(clock.nowMs());
    call.then(
      () => {
        end(clock.nowMs(), true);
        this.calls.note(name, "ok");
      },
      (error) => {
        end(clock.nowMs(), isAnswer(error));
        this.calls.note(name, outrun?.aborted === true ? "outrun" : failureOutcome(error));
      },
    );
    return call;
  }

  #isKnownAbsent(key: string): boolean {
    const untilMs = this.#absentUntilMs.get(key);
    if (untilMs === undefined) return false;
    if (this.#options.clock.nowMs() < untilMs) return true;
    this.#absentUntilMs.delete(key);
    return false;
  }

  /** Manifests are asked for each time: another engine may have just written the first one of a session. */
  #noteAbsent(key: string): void {
    const { clock, absentMs } = this.#options;
    if (absentMs === 0 || parseObjectKey(key)?.kind === "session") return;
    this.#absentUntilMs.delete(key);
    this.#absentUntilMs.set(key, clock.nowMs() + absentMs);
    if (this.#absentUntilMs.size <= ABSENT_COUNT_MAX) return;
    this.#absentUntilMs.delete(this.#absentUntilMs.keys().next().value as string);
  }
}

/** Whether the store itself failed a call, not the patience of the caller. */
function isAnswer(error: unknown): boolean {
  if (error instanceof StoreError) return error.code !== "timeout" && error.code !== "aborted";
  return !(error instanceof DOMException);
}

/** One request of a read. */
interface Attempt {
  answer: Promise<StoreObject | undefined>;
  /** Nobody waits for its answer any more. */
  giveUp(): void;
}
