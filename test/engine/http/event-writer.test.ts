import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { EventWriter } from "../../../engine/http/event-writer.ts";
import { QuireError } from "../../../protocol/errors.ts";
import { FrameDecoder } from "../../../protocol/frames.ts";
import type { EngineEvent, EngineUsage } from "../../../protocol/generate.ts";
import { bytesToIds } from "../../../protocol/ids.ts";

const USAGE = { queueMs: 0.12345, firstTokenMs: 1.00049, totalMs: 2, source: { device: 1, host: 0, store: 2 } };

class Target {
  readonly events: EngineEvent[] = [];
  ended = 0;
  readonly #decoder = new FrameDecoder();
  write(frame: Uint8Array): void {
    expect(this.ended, "nothing is written after the end").toBe(0);
    this.events.push(...(this.#decoder.push(frame) as EngineEvent[]));
  }
  end(): void {
    this.ended += 1;
  }
  get ids(): number[][] {
    return this.events.flatMap((event) => (event.type === "tokens" ? [[...bytesToIds(event.ids)]] : []));
  }
}

describe("frames of a generation", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("sends the first token at once and coalesces the others, none lost at the end", () => {
    const target = new Target();
    const writer = new EventWriter(target, 4);
    writer.admitted("engine", "numerics");
    writer.token(1, undefined);
    expect(target.ids).toEqual([[1]]);
    writer.token(2, undefined);
    writer.token(3, undefined);
    vi.advanceTimersByTime(3);
    expect(target.ids).toEqual([[1]]);
    vi.advanceTimersByTime(1);
    expect(target.ids).toEqual([[1], [2, 3]]);
    writer.token(4, undefined);
    writer.done("length", USAGE as EngineUsage, [{ end: 4, how: "dense" }]);
    expect(target.ids).toEqual([[1], [2, 3], [4]]);
    expect(target.events.at(-1)).toMatchObject({
      type: "done",
      reason: "length",
      usage: { queueMs: 0.123, firstTokenMs: 1, totalMs: 2 },
      spans: [{ end: 4, how: "dense" }],
    });
    expect([target.ended, vi.getTimerCount()]).toEqual([1, 0]);
  });

  it("keeps logprobs beside their tokens", () => {
    const target = new Target();
    const writer = new EventWriter(target, 4);
    for (const id of [5, 6, 7]) writer.token(id, { logprob: -id, top: [[id, -id]] });
    writer.done("stop", USAGE as EngineUsage, []);
    const tokens = target.events.filter((event) => event.type === "tokens");
    expect(tokens.map(({ logprobs }) => logprobs?.map(({ logprob }) => logprob))).toEqual([[-5], [-6, -7]]);
  });

  it("ends once, whatever comes afterwards", () => {
    const target = new Target();
    const writer = new EventWriter(target, 4);
    writer.failed(new QuireError("queue_full", "full", { retryAfterMs: 5 }));
    writer.token(1, undefined);
    writer.done("stop", USAGE as EngineUsage, []);
    writer.failed(new Error("again"));
    vi.runAllTimers();
    expect(target.events).toMatchObject([{ type: "failed", code: "queue_full", message: "full", retryAfterMs: 5 }]);
    expect(target.ended).toBe(1);
  });

  it("never shows what an unexpected error says", () => {
    const target = new Target();
    new EventWriter(target, 4).failed(new TypeError("/home/secret/path"));
    expect(target.events).toMatchObject([{ type: "failed", code: "internal" }]);
    expect(JSON.stringify(target.events)).not.toContain("secret");
  });
});
