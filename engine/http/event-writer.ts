/** Turns a sequence's events into frames: tokens are coalesced for a few milliseconds, the first goes at once, exactly one terminal event. */
import { toQuireError } from "../../protocol/errors.ts";
import { encodeFrame } from "../../protocol/frames.ts";
import type { EngineEvent, EngineUsage, FinishReason, Span, TokenLogprob } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import type { SequenceSink } from "../sequence/sequence.ts";

/** Where frames go; `write` may buffer, `end` is called once. */
export interface FrameTarget {
  write(frame: Uint8Array): void;
  end(): void;
}

/** A sink that writes {@link EngineEvent} frames. Late events after the terminal one are dropped. */
export class EventWriter implements SequenceSink {
  readonly #target: FrameTarget;
  readonly #coalesceMs: number;
  #ids: number[] = [];
  #logprobs: TokenLogprob[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #started = false;
  #ended = false;

  constructor(target: FrameTarget, coalesceMs: number) {
    this.#target = target;
    this.#coalesceMs = coalesceMs;
  }

  /** The admission frame. */
  admitted(engineId: string, numericsId: string): void {
    this.#send({ type: "admitted", engineId, numericsId });
  }

  token(id: number, logprob: TokenLogprob | undefined): void {
    this.#ids.push(id);
    if (logprob) this.#logprobs.push(logprob);
    if (!this.#started) this.#flush();
    else this.#timer ??= setTimeout(() => this.#flush(), this.#coalesceMs);
    this.#started = true;
  }

  done(reason: FinishReason, usage: EngineUsage, spans: Span[]): void {
    this.#finish({ type: "done", reason, usage: rounded(usage), spans });
  }

  failed(error: unknown): void {
    const { code, message, param, retryAfterMs } = toQuireError(error);
    this.#finish({ type: "failed", code, message, param, retryAfterMs });
  }

  #finish(event: EngineEvent): void {
    if (this.#ended) return;
    this.#flush();
    this.#send(event);
    this.#ended = true;
    this.#target.end();
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#ids.length === 0) return;
    const logprobs = this.#logprobs.length > 0 ? { logprobs: this.#logprobs } : {};
    this.#send({ type: "tokens", ids: idsToBytes(this.#ids), ...logprobs });
    this.#ids = [];
    this.#logprobs = [];
  }

  #send(event: EngineEvent): void {
    if (!this.#ended) this.#target.write(encodeFrame(event));
  }
}

/** Times to a microsecond: clocks give digits that nothing measured. */
function rounded(usage: EngineUsage): EngineUsage {
  const round = (ms: number) => Math.round(ms * 1000) / 1000;
  const { queueMs, firstTokenMs, totalMs } = usage;
  return {
    ...usage,
    source: { ...usage.source },
    queueMs: round(queueMs),
    firstTokenMs: round(firstTokenMs),
    totalMs: round(totalMs),
  };
}
