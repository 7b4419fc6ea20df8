import { describe, expect, it } from "vitest";
import type { Step } from "./fake-engine/script.ts";
import { BOS, END, eventsOf, ids, makeWorld, says } from "./world.ts";

describe("POST /v1/completions", () => {
  it("answers with OpenAI's object, to the letter, and logs nothing", async () => {
    const { post, engine, model } = await makeWorld();
    await engine.script(...says(" world"));
    const response = await post("/v1/completions", { prompt: "hello" });
    expect(response.status).toBe(200);
    expect(response.headers.get("x-quire-session")).toBeNull();
    expect(await response.json()).toEqual({
      id: expect.stringMatching(/^cmpl-/),
      object: "text_completion",
      created: expect.any(Number),
      model,
      choices: [{ index: 0, text: " world", logprobs: null, finish_reason: "stop" }],
      usage: expect.objectContaining({ prompt_tokens: 5, completion_tokens: 7, total_tokens: 12 }),
      system_fingerprint: "fp_fake-1",
    });
    const { request } = await engine.lastCall();
    expect(request).toMatchObject({ tokens: ids("hello"), turnStart: 0, maxTokens: 16 });
    expect(request.session).toBeUndefined();
  });

  it("streams text chunks", async () => {
    const { post, engine, model } = await makeWorld();
    await engine.script(...says("ab"));
    const events = await eventsOf(await post("/v1/completions", { prompt: ["x"], stream: true }));
    const base = { id: expect.any(String), object: "text_completion", created: expect.any(Number), model };
    expect(events).toEqual([
      {
        ...base,
        choices: [{ index: 0, text: "ab", logprobs: null, finish_reason: null }],
        system_fingerprint: "fp_fake-1",
      },
      {
        ...base,
        choices: [{ index: 0, text: "", logprobs: null, finish_reason: "stop" }],
        system_fingerprint: "fp_fake-1",
      },
      "[DONE]",
    ]);
  });

  it("takes control tokens in text and token ids as they are", async () => {
    const { post, engine } = await makeWorld();
    await (await post("/v1/completions", { prompt: "<|bos|>a" })).text();
    expect((await engine.lastCall()).request.tokens).toEqual([BOS, 97]);
    await (await post("/v1/completions", { prompt: [256, 97, 98] })).text();
    expect((await engine.lastCall()).request.tokens).toEqual([256, 97, 98]);
    await (await post("/v1/completions", { prompt: [[97]] })).text();
    expect((await engine.lastCall()).request.tokens).toEqual([97]);
  });

  it("reports logprobs as the older interface does", async () => {
    const { post, engine } = await makeWorld();
    const logprobs = [
      { logprob: -1, top: [[65, -1] as [number, number]] },
      { logprob: -2, top: [[66, -2] as [number, number]] },
    ];
    await engine.script({ do: "admit" }, { do: "tokens", ids: [65, 66], logprobs }, { do: "done", reason: "length" });
    const body = (await (await post("/v1/completions", { prompt: "x", logprobs: 1 })).json()) as { choices: object[] };
    expect(body.choices[0]).toMatchObject({
      text: "AB",
      finish_reason: "length",
      logprobs: {
        tokens: ["A", "B"],
        token_logprobs: [-1, -2],
        top_logprobs: [{ A: -1 }, { B: -2 }],
        text_offset: [0, 1],
      },
    });
  });

  it("answers a list of prompts with the choices of each, in their order", async () => {
    const { post, engine } = await makeWorld();
    const texts = ["one", "two", "three", "four"];
    const usage = { cachedTokens: 1, source: { device: 1, host: 0, store: 0 }, kvBytesRead: 10, totalMs: 5 };
    for (const text of texts) {
      const [admit, tokens] = says(text);
      await engine.script(admit as Step, tokens as Step, { do: "done", reason: "stop", usage });
    }
    const before = (await engine.calls()).length;
    const response = await post("/v1/completions", { prompt: ["ab", "cde"], n: 2, seed: 7, max_tokens: 9 });
    const body = (await response.json()) as { choices: { index: number; text: string }[]; usage: object };
    const calls = (await engine.calls()).slice(before);
    // Choices of other prompts do not wait for the first one's first token, so which call got which script is not said.
    expect(
      calls.map(({ request }) => [request.tokens, request.sampling.seed, request.maxTokens, request.turnStart]),
    ).toEqual(
      expect.arrayContaining([
        [ids("ab"), 7, 9, 0],
        [ids("ab"), 8, 9, 0],
        [ids("cde"), 7, 9, 0],
        [ids("cde"), 8, 9, 0],
      ]),
    );
    expect(calls).toHaveLength(4);
    expect(body.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(body.choices.map(({ text }) => text).sort()).toEqual([...texts].sort());
    expect(body.choices[0]?.text).toBe("one");
    expect(body.usage).toMatchObject({
      prompt_tokens: 5,
      completion_tokens: texts.join("").length + 4,
      prompt_tokens_details: { cached_tokens: 2 },
      quire: { source: { device: 2, host: 0, store: 0 }, kv_bytes_read: 20, total_ms: 5 },
    });
  });

  it("holds each prompt of a list against the context, and asks for no more of the others than there is room", async () => {
    const { post, engine } = await makeWorld();
    const long = await post("/v1/completions", { prompt: ["a", "b".repeat(32_768)] });
    expect(long.status).toBe(400);
    expect(await long.json()).toMatchObject({ error: { code: "context_length_exceeded", param: "prompt" } });
    const before = (await engine.calls()).length;
    await (await post("/v1/completions", { prompt: ["a", "b".repeat(32_765)] })).text();
    const asked = (await engine.calls()).slice(before).map(({ request }) => [request.tokens.length, request.maxTokens]);
    expect(asked).toEqual(
      expect.arrayContaining([expect.arrayContaining([1, 16]), expect.arrayContaining([32_765, 3])]),
    );
  });

  it("streams a list of prompts: each piece names its choice", async () => {
    const { post, engine } = await makeWorld();
    await engine.script(...says("a"));
    await engine.script(...says("b"));
    const events = await eventsOf(await post("/v1/completions", { prompt: [[97], [98]], stream: true }));
    const pieces = events.filter((event) => event !== "[DONE]") as { choices: { index: number; text: string }[] }[];
    const said = ["", ""];
    for (const { choices } of pieces) for (const { index, text } of choices) said[index] += text;
    expect(said).toEqual(["a", "b"]);
    expect(events.at(-1)).toBe("[DONE]");
  });

  it("appends to a session's log, raw", async () => {
    const { post, engine, chat } = await makeWorld();
    const quire = { session_id: `raw-${crypto.randomUUID()}` };
    await engine.script(...says("b"));
    const first = await post("/v1/completions", { prompt: "a", quire });
    expect(first.headers.get("x-quire-session")).toBe(quire.session_id);
    await first.text();
    expect((await engine.lastCall()).request.session).toEqual({ id: quire.session_id, bornMs: expect.any(Number) });
    await (await post("/v1/completions", { prompt: "c", quire })).text();
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([97, 98, END, 99]);
    expect(request).toMatchObject({ turnStart: 3, spans: [{ end: 3, how: "dense" }] });
    const mixed = await chat("hi", { quire });
    expect(mixed.status).toBe(400);
    expect(await mixed.json()).toMatchObject({ error: { param: "quire.session_id" } });
  });
});
