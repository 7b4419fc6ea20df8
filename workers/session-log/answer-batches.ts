/** An engine's answer, piece by piece as the network brings it. */
import { QuireError } from "../../protocol/errors.ts";
import { FrameDecoder } from "../../protocol/frames.ts";
import type { EngineEvent } from "../../protocol/generate.ts";
import { tokenFrameIds } from "../../protocol/token-frame.ts";

/** The values of each piece that completes any. One reader, one call at a time. */
export class AnswerBatches {
  /** Undefined once the stream is in error or given up. */
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  readonly #failed: (cause: unknown) => QuireError;
  readonly #decoder = new FrameDecoder();
  /** Being read ahead of {@link next}. */
  #ahead: Promise<readonly unknown[] | undefined> | undefined;

  /** @param failed the error of an answer that is cut */
  constructor(body: ReadableStream<Uint8Array>, failed: (cause: unknown) => QuireError) {
    this.#reader = body.getReader();
    this.#failed = failed;
  }

  /** @returns undefined at the end. @throws {QuireError} what the caller said for an answer that is cut, or is no frames */
  next(): Promise<readonly unknown[] | undefined> {
    const ahead = this.#ahead ?? this.#read();
    this.#ahead = undefined;
    return ahead;
  }

  /** What {@link next} would return, if that comes before `late` settles; otherwise nothing, and `next` is what returns it. Never rejects. */
  async nextBefore(late: Promise<undefined>): Promise<readonly unknown[]> {
    const ahead = this.#read();
    this.#ahead = ahead;
    const values = await Promise.race([ahead.catch(() => undefined), late]);
    if (values === undefined) return [];
    this.#ahead = undefined;
    return values;
  }

  /** Nobody reads the rest. Never rejects. */
  async close(): Promise<void> {
    const reader = this.#reader;
    this.#reader = undefined;
    // After an abort the stream is already in error; there is nothing left to tell it.
    await reader?.cancel().catch(() => undefined);
  }

  async #read(): Promise<readonly unknown[] | undefined> {
    try {
      while (this.#reader) {
        const { done, value } = await this.#reader.read();
        if (done) break;
        const ids = this.#decoder.atBoundary ? tokenFrameIds(value) : undefined;
        if (ids) return [{ type: "tokens", ids } satisfies EngineEvent];
        const values = this.#decoder.push(value);
        if (values.length > 0) return values;
      }
      return undefined;
    } catch (thrown) {
      // workerd keeps a stream's error alive as long as the stream, and the error its stack: this object, and the turn that called it. If they led
      // back to the stream, nothing of them would ever be collected.
      await this.close();
      throw thrown instanceof QuireError ? thrown : this.#failed(thrown);
    }
  }
}
