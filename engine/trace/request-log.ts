/** One line of the log for each request that ends or is refused, under the id that the edge gave it: numbers, no words. */
import type { EngineObserver } from "../observer.ts";
import type { Sequence } from "../sequence/sequence.ts";
import type { EngineLog } from "../settings.ts";

/** Listens to an engine. */
export class RequestLog implements EngineObserver {
  readonly #log: EngineLog;

  constructor(log: EngineLog) {
    this.#log = log;
  }

  refused(requestId: string, code: string): void {
    this.#log("request.refused", { requestId, code });
  }

  concluded({ request, usage }: Sequence, outcome: string): void {
    const { promptTokens, completionTokens, cachedTokens, recomputedTokens, bytesFetched, pagesMissed } = usage;
    const [queueMs, firstTokenMs, totalMs] = [usage.queueMs, usage.firstTokenMs, usage.totalMs].map(Math.round);
    this.#log("request.ended", {
      ...{ requestId: request.requestId, outcome, promptTokens, completionTokens, cachedTokens, recomputedTokens },
      ...{ bytesFetched, pagesMissed, queueMs, firstTokenMs, totalMs },
    });
  }

  queued(): void {}
  admitted(): void {}
  attached(): void {}
  stepped(): void {}
  missed(): void {}
  resumed(): void {}
  filled(): void {}
  preempted(): void {}
  restored(): void {}
  token(): void {}
  settled(): void {}
}
