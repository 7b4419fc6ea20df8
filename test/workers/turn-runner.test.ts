import { describe, expect, it } from "vitest";
import { encodeFrame, FrameDecoder } from "../../protocol/frames.ts";
import type { IncrementalDecoder } from "../../tokenizer/contract.ts";
import type { ModelAssets } from "../../workers/model-assets.ts";
import { FRAMES } from "../../workers/session-log/event-coding.ts";
import { TurnRunner } from "../../workers/session-log/turn-runner.ts";
import { TurnStream } from "../../workers/session-log/turn-stream.ts";
import type { TurnJob } from "../../workers/turn-job.ts";

const ADMITTED = { type: "admitted", engineId: "e", numericsId: "n" };
const TOKENS = { type: "tokens", ids: Uint8Array.of(97, 0, 0, 0) };
const DONE = { type: "done", reason: "length", usage: { promptTokens: 2 }, spans: [{ end: 3, how: "dense" }] };

/** A model whose token is the character of its number. */
const assets = {
  tokenizer: {
    vocabularySize: 256,
    decoder: (): IncrementalDecoder => ({
      push: (ids) => String.fromCharCode(...Array.from(ids)),
      flush: () => "",
    }),
  },
  stopTokens: [],
  sampling: { temperature: 0, topP: 1, topK: 0, repetitionPenalty: 1 },
} as unknown as ModelAssets;

const job = {
  ...{ requestId: "r", model: "m", namespace: "n", choiceCount: 1, stopStrings: [] },
  ...{ head: { kind: "chat" }, input: { kind: "chat" }, sampling: { seed: 1, logitBias: [] } },
} as unknown as TurnJob;

/** A runner whose engine says `pieces`, one after the other, and what became of it. */
function runnerOf(pieces: readonly unknown[][], maxTokens = 8) {
  const stream = new TurnStream({ resumable: false, isAttendedLater: true });
  const waiting = [...pieces];
  let runningCount = 0;
  const body = new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        const piece = waiting.shift();
        if (piece) controller.enqueue(new Uint8Array(piece.flatMap((value) => [...encodeFrame(value)])));
        else controller.close();
      },
    },
    { highWaterMark: 0 },
  );
  const runner = new TurnRunner({
    ...{
      job: { ...job, maxTokens },
      stream,
      assets,
      tokens: Uint32Array.of(1, 2),
      otherPrompts: [],
      turnStart: 0,
      spans: [],
      parentId: undefined,
      bornMs: 0,
      done: [],
    },
    ...{ stickyEngineId: undefined, engineKey: "", beside: undefined },
    known: { engineId: "e", url: "http://engine", contextTokensMax: 64 },
    pick: async () => undefined,
    isAlive: async () => true,
    fetch: async () => new Response(body),
    onRunning: () => {
      runningCount += 1;
    },
    onProgress: () => undefined,
  });
  return { runner, stream, saysRunning: () => runningCount };
}

describe("a turn whose first token comes with its admission", () => {
  it("says it before it does anything else, in one write", async () => {
    const { runner, stream, saysRunning } = runnerOf([
      [ADMITTED, TOKENS],
      [TOKENS, DONE],
    ]);
    await runner.start();
    runner.sayFirst();
    const reader = (stream.subscribe(0, FRAMES) as ReadableStream<Uint8Array>).getReader();
    const { value } = await reader.read();
    expect(new FrameDecoder().push(value as Uint8Array)).toMatchObject([
      { type: "begin", choice: 0 },
      { type: "text", choice: 0, text: "a", offset: 0 },
    ]);
    expect(saysRunning()).toBe(0);
    const [result] = await runner.run();
    expect(saysRunning()).toBe(1);
    expect(result?.reply.ids).toEqual([97, 97]);
    await reader.cancel();
  });

  it("hears of what was wrong with it when it runs", async () => {
    const { runner, stream } = runnerOf([[ADMITTED, { type: "tokens", ids: "no ids" }]]);
    await runner.start();
    runner.sayFirst();
    await expect(runner.run()).rejects.toMatchObject({ code: "engine_failed" });
    await stream.close();
  });

  it("hears the accounts of it, too, where that was the whole reply", async () => {
    const { runner, stream } = runnerOf([[ADMITTED, TOKENS], [DONE]], 1);
    await runner.start();
    runner.sayFirst();
    const [result] = await runner.run();
    expect(result).toMatchObject({ usage: DONE.usage, spans: DONE.spans });
    await stream.close();
  });

  it("is over at once where that was all", async () => {
    const { runner, stream, saysRunning } = runnerOf([[ADMITTED, TOKENS, DONE]]);
    await runner.start();
    runner.sayFirst();
    const [result] = await runner.run();
    expect(result).toMatchObject({ reason: "length", usage: DONE.usage, spans: DONE.spans });
    expect(result?.reply.ids).toEqual([97]);
    expect(saysRunning()).toBe(0);
    await stream.close();
  });
});
