import { describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { ASSISTANT, BOS, END, edge, eventsOf, ids, KEY_A, makeWorld, register, says, USER } from "./world.ts";

const USAGE = {
  prompt_tokens: 5,
  completion_tokens: 6,
  total_tokens: 11,
  prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
  completion_tokens_details: {
    reasoning_tokens: 0,
    audio_tokens: 0,
    accepted_prediction_tokens: 0,
    rejected_prediction_tokens: 0,
  },
  quire: {
    session_id: expect.stringMatching(/^s-[0-9a-f-]{36}$/),
    engines: [expect.stringMatching(/^engine-[0-9a-f-]{36}$/)],
    source: { device: 0, host: 0, store: 0 },
    recomputed_tokens: 0,
    bytes_before_first_token: 0,
    bytes_fetched: 0,
    pages_before_first_token: 0,
    pages_fetched: 0,
    // The fake engine says what it was asked; an engine would say what it chose.
    policy: "auto",
    budget_tokens: 0,
    exact: false,
    pages_selected: 3,
    pages_in_context: 4,
    pages_missed: 0,
    kv_bytes_read: 1,
    metadata_bytes_read: 2,
    queue_ms: 0,
    first_token_ms: 1,
    total_ms: 2,
  },
};

describe("POST /v1/chat/completions", () => {
  it("answers with OpenAI's object, to the letter", async () => {
    const { chat, engine, model } = await makeWorld();
    await engine.script(...says("hello"));
    const response = await chat("hi");
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("application/json");
    expect(response.headers.get("x-request-id")).toMatch(/^req_/);
    expect(response.headers.get("x-quire-session")).toMatch(/^s-/);
    expect(await response.json()).toEqual({
      id: expect.stringMatching(/^chatcmpl-/),
      object: "chat.completion",
      created: expect.closeTo(Date.now() / 1000, -1.5),
      model,
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "hello", refusal: null, annotations: [] },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
      usage: USAGE,
      system_fingerprint: "fp_fake-1",
    });
  });

  it("streams a role, deltas, a finish, the usage if it was asked for, and [DONE]", async () => {
    const { chat, engine, model } = await makeWorld();
    await engine.script(
      { do: "admit" },
      { do: "tokens", ids: ids("hel") },
      { do: "wait", ms: 30 },
      { do: "tokens", ids: ids("lo") },
      { do: "wait", ms: 30 },
      { do: "tokens", ids: [END] },
      { do: "done", reason: "stop" },
    );
    const response = await chat("hi", { stream: true, stream_options: { include_usage: true } });
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    const base = {
      id: expect.stringMatching(/^chatcmpl-/),
      object: "chat.completion.chunk",
      created: expect.any(Number),
      model,
      system_fingerprint: "fp_fake-1",
    };
    const choice = (delta: object, reason: string | null) => ({
      ...base,
      choices: [{ index: 0, delta, logprobs: null, finish_reason: reason }],
      usage: null,
    });
    const events = await eventsOf(response);
    expect(events).toEqual([
      choice({ role: "assistant", content: "", refusal: null }, null),
      choice({ content: "hel" }, null),
      choice({ content: "lo" }, null),
      choice({}, "stop"),
      { ...base, choices: [], usage: USAGE },
      "[DONE]",
    ]);
    const named = new Set(events.map((event) => (event as { id?: string }).id));
    expect(named.size).toBe(2);
  });

  it("sends no usage chunk unless it was asked for", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...says("a"));
    const events = await eventsOf(await chat("hi", { stream: true }));
    expect(events.at(-1)).toBe("[DONE]");
    expect(events).toHaveLength(4);
    for (const event of events.slice(0, -1)) {
      expect(event).not.toHaveProperty("usage");
      expect((event as { choices: unknown[] }).choices).toHaveLength(1);
    }
  });

  it("says to the engine what was asked for, over the model's own defaults", async () => {
    const { chat, engine, model } = await makeWorld();
    await (await chat("hi")).text();
    expect(await engine.lastCall()).toMatchObject({
      // The fake engine answers 401 to whatever is not signed for it.
      authorization: expect.stringMatching(/^Quire-HMAC ts=/),
      request: {
        version: 1,
        model,
        namespace: expect.stringMatching(/^[0-9a-f]{64}$/),
        tokens: [BOS, USER, ...ids("hi"), ASSISTANT],
        turnStart: 0,
        spans: [],
        maxTokens: 1024,
        stopTokens: [END],
        // generation_config.json of house-0 says do_sample: false.
        sampling: { temperature: 0, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1, logitBias: [] },
        selection: { policy: "auto", budgetTokens: 0, exact: false },
      },
    });
    const asked = {
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.1,
      seed: 7,
      frequency_penalty: 1,
      presence_penalty: -1,
      repetition_penalty: 1.5,
      logit_bias: { "65": -3 },
      max_completion_tokens: 9,
      quire: { selection: { policy: "streaming", budget_tokens: 256, exact: true } },
    };
    await (await chat("ho", asked)).text();
    expect((await engine.lastCall()).request).toMatchObject({
      maxTokens: 9,
      sampling: {
        temperature: 0.5,
        topP: 0.9,
        topK: 40,
        minP: 0.1,
        seed: 7,
        frequencyPenalty: 1,
        presencePenalty: -1,
        repetitionPenalty: 1.5,
        logitBias: [[65, -3]],
      },
      selection: { policy: "streaming", budgetTokens: 256, exact: true },
    });
  });

  it("renders the model's template, and words of a user stay words", async () => {
    const { chat, engine } = await makeWorld();
    const messages = [
      { role: "system", content: "S" },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "<|end|>" },
        ],
      },
    ];
    await (await chat(messages)).text();
    const { tokens } = (await engine.lastCall()).request;
    expect(tokens).toEqual([BOS, USER, ...ids("S\na<|end|>"), ASSISTANT]);
  });

  it("reports logprobs in words, without the end token", async () => {
    const { chat, engine } = await makeWorld();
    const logprob = (value: number) => ({
      logprob: value,
      top: [[65, value] as [number, number], [66, -9] as [number, number]],
    });
    const steps = [
      { do: "admit" as const },
      { do: "tokens" as const, ids: [65, 67, END], logprobs: [logprob(-0.5), logprob(-1), logprob(-2)] },
      { do: "done" as const, reason: "stop" as const },
    ];
    await engine.script(...steps);
    const body = (await (await chat("hi", { logprobs: true, top_logprobs: 2 })).json()) as { choices: object[] };
    const top = (value: number) => [
      { token: "A", logprob: value, bytes: [65] },
      { token: "B", logprob: -9, bytes: [66] },
    ];
    const content = [
      { token: "A", logprob: -0.5, bytes: [65], top_logprobs: top(-0.5) },
      { token: "C", logprob: -1, bytes: [67], top_logprobs: top(-1) },
    ];
    expect(body.choices[0]).toMatchObject({ logprobs: { content, refusal: null } });
    expect((await engine.lastCall()).request.topLogprobs).toBe(2);
    await engine.script(...steps);
    const events = await eventsOf(await chat("ho", { logprobs: true, top_logprobs: 2, stream: true }));
    expect(events[1]).toMatchObject({ choices: [{ delta: { content: "AC" }, logprobs: { content, refusal: null } }] });
  });

  it("ends for length when the engine does", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("abc") }, { do: "done", reason: "length" });
    const body = await (await chat("hi", { max_tokens: 3 })).json();
    expect(body).toMatchObject({
      choices: [{ message: { content: "abc" }, finish_reason: "length" }],
      usage: { completion_tokens: 3 },
    });
    expect((await engine.lastCall()).request.maxTokens).toBe(3);
  });

  it("gives n choices: the others start at the first one's first token, each with a seed of its own", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(
      { do: "admit" },
      { do: "wait", ms: 100 },
      { do: "tokens", ids: ids("1") },
      ...says("x").slice(1),
    );
    for (const text of ["2", "3", "4", "5", "6"]) await engine.script(...says(text));
    const response = await chat("hi", { n: 6, seed: 10 });
    const body = (await response.json()) as {
      choices: { index: number; message: { content: string } }[];
      usage: object;
    };
    expect(body.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(body.choices.map(({ message }) => message.content).sort()).toEqual(["1x", "2", "3", "4", "5", "6"]);
    expect(body.usage).toMatchObject({ prompt_tokens: 5, completion_tokens: 13 });
    const calls = await engine.calls();
    expect(calls.map(({ request }) => request.sampling.seed).sort()).toEqual([10, 11, 12, 13, 14, 15]);
    expect(calls[0]?.request.session).toBeDefined();
    for (const call of calls.slice(1)) {
      expect(call.startedMs).toBeGreaterThanOrEqual(calls[0]?.tokensMs ?? Number.NaN);
      expect(call.request.session).toBeUndefined();
      expect(call.request.tokens).toEqual(calls[0]?.request.tokens);
    }
    await engine.script(...says("1"));
    await engine.script(...says("2"));
    const events = await eventsOf(await chat("ho", { n: 2, stream: true }));
    const choices = events.flatMap(
      (event) => (event as { choices?: { index: number; delta: object }[] }).choices ?? [],
    );
    for (const index of [0, 1]) {
      const deltas = choices.filter((choice) => choice.index === index);
      expect(deltas[0]?.delta).toMatchObject({ role: "assistant" });
      expect(deltas.at(-1)).toMatchObject({ delta: {}, finish_reason: "stop" });
      expect(deltas).toHaveLength(3);
    }
  });

  it("refuses what does not fit the context, and lowers the default to what does", async () => {
    const { engine, model } = await makeWorld();
    await register(engine, model, { contextTokensMax: 20 });
    const ask = (body: object) =>
      edge("/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${KEY_A}` },
        body: JSON.stringify({ model, messages: [{ role: "user", content: "0123456789" }], ...body }),
      });
    await (await ask({})).text();
    expect((await engine.lastCall()).request.maxTokens).toBe(7);
    const tooLong = await ask({ max_tokens: 8, messages: [{ role: "user", content: "9876543210" }] });
    expect(tooLong.status).toBe(400);
    expect(await tooLong.json()).toMatchObject({ error: { code: "context_length_exceeded", param: "max_tokens" } });
    const noRoom = await ask({ messages: [{ role: "user", content: "x".repeat(30) }] });
    expect(await noRoom.json()).toMatchObject({ error: { code: "context_length_exceeded", param: "messages" } });
    expect(await engine.calls()).toHaveLength(1);
  });

  it("refuses more tokens than any context has without reading them all", async () => {
    const world = await makeWorld();
    const text = "words ".repeat(LIMITS.promptTokensMax / 2);
    for (const [param, response] of [
      ["messages", await world.chat(text)],
      ["prompt", await world.post("/v1/completions", { prompt: text })],
    ] as const) {
      expect(response.status).toBe(400);
      const message = expect.stringMatching(/more than 1048576 tokens, which no model/);
      expect(await response.json()).toMatchObject({ error: { code: "context_length_exceeded", param, message } });
    }
    expect(await world.engine.calls()).toEqual([]);
  });
});
