/** How long reads of a store take, and what follows from it: when one is late, and what latency and bandwidth the store has. */

/** Reads of so many bytes or fewer tell of the latency; larger ones, and objects read whole, of the bandwidth too. */
const SMALL_BYTES = 64 * 1024;
const MIDDLE_BYTES = 1024 * 1024;
/** The latest reads of a class that are remembered, and how many are needed before one counts as late. */
const SAMPLES_MAX = 128;
const SAMPLES_MIN = 20;
/** Of those: what takes longer than so many of them is late. */
const LATE_SHARE = 0.95;
/** What a new sample weighs. */
const WEIGHT = 0.2;
/** Nothing is said of the bandwidth before so many bytes were read; a long span of reading counts in pieces of so many. */
const KNOWN_BYTES_MIN = 32 * 1024;
const SPAN_BYTES_MAX = 8 * 1024 * 1024;

/** Reads of one class take about equally long. */
export type ReadClass = "small" | "middle" | "large" | "whole";

/** The class of a range of so many bytes; of an object read whole without. */
export function readClass(rangeBytes: number | undefined): ReadClass {
  if (rangeBytes === undefined) return "whole";
  if (rangeBytes <= SMALL_BYTES) return "small";
  return rangeBytes <= MIDDLE_BYTES ? "middle" : "large";
}

/** What reads of a store cost. */
export interface StoreSpeed {
  /** From asking to the first byte. */
  latencyMs: number;
  /** All reads together. */
  bytesPerMs: number;
}

/** The latest times, in order of size: each read asks for a rank of them and adds one, thousands of times a second. */
class LatestTimes {
  /** In order of arrival, the oldest is overwritten next. */
  readonly #arrived = new Float64Array(SAMPLES_MAX);
  readonly #ascending = new Float64Array(SAMPLES_MAX);
  #next = 0;
  #count = 0;

  get count(): number {
    return this.#count;
  }

  add(ms: number): void {
    const ascending = this.#ascending;
    if (this.#count === SAMPLES_MAX) {
      const from = this.#rankOf(this.#arrived[this.#next] as number);
      ascending.copyWithin(from, from + 1, this.#count);
      this.#count -= 1;
    }
    const at = this.#rankOf(ms);
    ascending.copyWithin(at + 1, at, this.#count);
    ascending[at] = ms;
    this.#count += 1;
    this.#arrived[this.#next] = ms;
    this.#next = (this.#next + 1) % SAMPLES_MAX;
  }

  /** The smallest that so large a share of all does not exceed. */
  percentile(share: number): number {
    return this.#ascending[Math.ceil(this.#count * share) - 1] as number;
  }

  /** How many are smaller. */
  #rankOf(ms: number): number {
    let from = 0;
    let to = this.#count;
    while (from < to) {
      const middle = (from + to) >> 1;
      if ((this.#ascending[middle] as number) < ms) from = middle + 1;
      else to = middle;
    }
    return from;
  }
}

/** Follows the reads of one store. Pure arithmetic over what it is told. */
export class ReadTimes {
  readonly #latest = new Map<ReadClass, LatestTimes>();
  #inFlight = 0;
  #latencyMs: number | undefined;
  #spanStartMs = 0;
  #spanBytes = 0;
  /** Of spans that are over, the latest counting most: their bytes, and the time that these took beside the latency. */
  #movedBytes = 0;
  #movedMs = 0;

  /** Time after which 95 of 100 of the latest reads of a class had ended; undefined while too few have. */
  lateMs(kind: ReadClass): number | undefined {
    const known = this.#latest.get(kind);
    return known === undefined || known.count < SAMPLES_MIN ? undefined : known.percentile(LATE_SHARE);
  }

  /** Undefined before enough was read to tell. */
  get speed(): StoreSpeed | undefined {
    if (this.#latencyMs === undefined || this.#movedBytes < KNOWN_BYTES_MIN) return undefined;
    return { latencyMs: this.#latencyMs, bytesPerMs: this.#movedBytes / Math.max(0.01, this.#movedMs) };
  }

  /** A read begins. Returns how to say that it is over: with what came, or undefined where it failed or nobody waits for it any more. */
  begin(nowMs: number, rangeBytes: number | undefined): (endMs: number, bytes: number | undefined) => void {
    if (this.#inFlight === 0) {
      this.#spanStartMs = nowMs;
      this.#spanBytes = 0;
    }
    this.#inFlight += 1;
    const wasAlone = this.#inFlight === 1;
    return (endMs, bytes) => {
      this.#inFlight -= 1;
      const kind = readClass(rangeBytes);
      const known = this.#latest.get(kind) ?? new LatestTimes();
      this.#latest.set(kind, known);
      known.add(endMs - nowMs);
      if (bytes === undefined) return;
      if (wasAlone && bytes <= SMALL_BYTES) this.#latencyMs = blend(this.#latencyMs, endMs - nowMs);
      this.#moved(endMs, bytes);
    };
  }

  /** Bytes over the time in which reads were under way, less the latency that the first of them waited. */
  #moved(endMs: number, bytes: number): void {
    this.#spanBytes += bytes;
    const isOver = this.#inFlight === 0;
    if (!isOver && this.#spanBytes < SPAN_BYTES_MAX) return;
    const ms = Math.max(0, endMs - this.#spanStartMs - (this.#latencyMs ?? 0));
    this.#movedMs = this.#movedMs * (1 - WEIGHT) + ms;
    this.#movedBytes = this.#movedBytes * (1 - WEIGHT) + this.#spanBytes;
    // What follows of a span that is cut waits for no latency: it is under way already.
    this.#spanStartMs = endMs - (this.#latencyMs ?? 0);
    this.#spanBytes = 0;
  }
}

function blend(before: number | undefined, value: number): number {
  return before === undefined ? value : before + WEIGHT * (value - before);
}
