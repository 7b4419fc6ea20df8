import { describe, expect, it } from "vitest";
import { encodeFrame } from "../../protocol/frames.ts";
import type { GenerateRequest } from "../../protocol/generate.ts";
import { openEngineCall } from "../../workers/session-log/engine-call.ts";

const ADMITTED = { type: "admitted", engineId: "e", numericsId: "n" };
const TOKENS = { type: "tokens", ids: Uint8Array.of(97, 0, 0, 0) };

/** An engine that answers each generation with these pieces and then says nothing more. */
function engineOf(pieces: readonly unknown[][], onSilent: () => void = () => undefined) {
  const asked: { path: string; signal: AbortSignal }[] = [];
  const waiting = [...pieces];
  const answer = new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        const piece = waiting.shift();
        if (piece) controller.enqueue(new Uint8Array(piece.flatMap((value) => [...encodeFrame(value)])));
        else onSilent();
      },
    },
    { highWaterMark: 0 },
  );
  const fetch: typeof globalThis.fetch = async (input, init) => {
    const path = new URL(String(input)).pathname;
    asked.push({ path, signal: init?.signal as AbortSignal });
    return new Response(path === "/v1/generate" ? answer : null);
  };
  return { asked, fetch };
}

function optionsOf(fetch: typeof globalThis.fetch, admission?: AbortSignal) {
  const engine = { engineId: "e", url: "http://engine", contextTokensMax: 64 };
  const request = { requestId: "r" } as GenerateRequest;
  return { engine, request, engineKey: "", signal: new AbortController().signal, admission, fetch };
}

describe("a call that is admitted", () => {
  it("brings the tokens that came with the admission or right behind it, each once", async () => {
    for (const pieces of [[[ADMITTED, TOKENS]], [[ADMITTED], [TOKENS]]]) {
      const { fetch } = engineOf([...pieces, [TOKENS, TOKENS]]);
      const call = await openEngineCall(optionsOf(fetch));
      expect(call.first).toHaveLength(1);
      expect(await call.next()).toHaveLength(2);
    }
  });

  it("does not wait for an engine that computes", async () => {
    const { fetch } = engineOf([[ADMITTED]]);
    const call = await openEngineCall(optionsOf(fetch));
    expect(call.first).toEqual([]);
    await call.close();
    expect(await call.next()).toBeUndefined();
  });

  it("is cancelled at its engine when its client leaves before the first token is there", async () => {
    const client = new AbortController();
    const { fetch, asked } = engineOf([[ADMITTED]], () => client.abort());
    const call = await openEngineCall(optionsOf(fetch, client.signal));
    expect(client.signal.aborted).toBe(true);
    await call.cancel();
    expect(asked.map(({ path, signal }) => [path, signal.aborted])).toEqual([
      ["/v1/generate", false],
      ["/v1/cancel", false],
    ]);
  });
});
