/** One request at one engine of a simulated world, up to its terminal event or the engine's death. */
import type { EngineUsage, FinishReason, GenerateRequest, Span } from "../../protocol/generate.ts";
import type { SimEngine } from "./sim-engine.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** What a turn gave. */
export interface Outcome {
  ids: number[];
  logprobs: number[];
  usage: EngineUsage;
  reason: FinishReason;
  spans: Span[];
  /** Some of the tokens came from an engine that died before it told how they were computed. */
  isTakenOver?: boolean;
}

/** What has come of a reply so far. */
export interface Received {
  ids: number[];
  logprobs: number[];
}

/** Submits a request; rejects with what `fail` makes of an event that must not be. */
export function generateAt(
  engine: SimEngine,
  fields: GenerateRequest,
  options: {
    time: VirtualTime;
    fail(what: string): Error;
    abortAfterMs?: number | undefined;
    received?: Received;
  },
): Promise<Outcome | "died"> {
  const { time, fail, abortAfterMs, received = { ids: [], logprobs: [] } } = options;
  return new Promise((resolve, reject) => {
    let over = false;
    const forget = engine.onDeath(() => {
      over = true;
      resolve("died");
    });
    const terminal = () => {
      if (over) reject(fail("an event after the terminal one"));
      over = true;
      forget();
    };
    const ticket = engine.opened.engine.submit(fields, {
      token: (id, logprob) => {
        if (engine.dead) return;
        if (over) reject(fail("a token after the terminal event"));
        received.ids.push(id);
        received.logprobs.push(logprob?.logprob ?? Number.NaN);
      },
      done: (reason, usage, spans) => {
        if (engine.dead) return;
        terminal();
        resolve({ ...received, usage: structuredClone(usage), reason, spans });
      },
      failed: (error) => {
        if (engine.dead) return;
        terminal();
        reject(fail(`a turn failed: ${String(error)}`));
      },
    });
    if (abortAfterMs !== undefined) time.after(abortAfterMs, () => ticket.cancel());
  });
}
