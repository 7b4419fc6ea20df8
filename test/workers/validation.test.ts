import { beforeAll, describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { edge, KEY_A, makeWorld, register, type World } from "./world.ts";

const HI = [{ role: "user", content: "hi" }];

/** Changes of a valid chat request that are refused, and the parameter that the refusal names. */
const CHAT_REFUSALS: [string, object, string][] = [
  ["no messages", { messages: undefined }, "messages"],
  ["messages that are none", { messages: "hi" }, "messages"],
  ["an empty list of messages", { messages: [] }, "messages"],
  ["a message that is none", { messages: [1] }, "messages[0]"],
  ["a message without a role", { messages: [{ content: "a" }] }, "messages[0].role"],
  ["an unknown role", { messages: [...HI, { role: "robot", content: "a" }] }, "messages[1].role"],
  ["a tool's message", { messages: [{ role: "tool", content: "a" }] }, "messages[0].role"],
  ["a message without content", { messages: [{ role: "user" }] }, "messages[0].content"],
  ["content that is a number", { messages: [{ role: "user", content: 1 }] }, "messages[0].content"],
  ["no content parts", { messages: [{ role: "user", content: [] }] }, "messages[0].content"],
  [
    "an image",
    { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "data:," } }] }] },
    "messages[0].content[0].type",
  ],
  ["a part without text", { messages: [{ role: "user", content: [{ type: "text" }] }] }, "messages[0].content[0].text"],
  [
    "an unknown field in a part",
    { messages: [{ role: "user", content: [{ type: "text", text: "a", x: 1 }] }] },
    "messages[0].content[0].x",
  ],
  ["an unknown field in a message", { messages: [{ role: "user", content: "a", x: 1 }] }, "messages[0].x"],
  [
    "an assistant's tool calls",
    { messages: [{ role: "assistant", content: null, tool_calls: [{ id: "1" }] }] },
    "messages[0].tool_calls",
  ],
  ["an unknown field", { frobnicate: 1 }, "frobnicate"],
  ["a model that is no string", { model: 7 }, "model"],
  ["a stream that is no boolean", { stream: "yes" }, "stream"],
  ["stream options without a stream", { stream_options: { include_usage: true } }, "stream_options"],
  ["unknown stream options", { stream: true, stream_options: { x: 1 } }, "stream_options.x"],
  ["usage that is no boolean", { stream: true, stream_options: { include_usage: 1 } }, "stream_options.include_usage"],
  ["a temperature below 0", { temperature: -0.1 }, "temperature"],
  ["a temperature above 2", { temperature: 2.1 }, "temperature"],
  ["a temperature in words", { temperature: "hot" }, "temperature"],
  ["a top_p above 1", { top_p: 1.01 }, "top_p"],
  ["a top_k of a half", { top_k: 0.5 }, "top_k"],
  ["a top_k below -1", { top_k: -2 }, "top_k"],
  ["a min_p above 1", { min_p: 2 }, "min_p"],
  ["a frequency penalty above 2", { frequency_penalty: 3 }, "frequency_penalty"],
  ["a presence penalty below -2", { presence_penalty: -3 }, "presence_penalty"],
  ["a repetition penalty of 0", { repetition_penalty: 0 }, "repetition_penalty"],
  ["no tokens", { max_tokens: 0 }, "max_tokens"],
  ["half a token", { max_completion_tokens: 1.5 }, "max_completion_tokens"],
  ["two limits", { max_tokens: 1, max_completion_tokens: 1 }, "max_tokens"],
  ["more than the context", { max_tokens: 99_999 }, "max_tokens"],
  ["no choices", { n: 0 }, "n"],
  ["too many choices", { n: 9 }, "n"],
  ["choices in a session", { n: 2, quire: { session_id: "s" } }, "n"],
  ["a seed of a half", { seed: 0.5 }, "seed"],
  ["a stop that is a number", { stop: 1 }, "stop"],
  ["an empty stop", { stop: "" }, "stop"],
  ["an empty stop in a list", { stop: ["a", ""] }, "stop[1]"],
  ["too many stops", { stop: Array.from({ length: 17 }, () => "a") }, "stop"],
  ["a long stop", { stop: "é".repeat(257) }, "stop"],
  ["top_logprobs alone", { top_logprobs: 1 }, "top_logprobs"],
  ["too many top_logprobs", { logprobs: true, top_logprobs: 21 }, "top_logprobs"],
  ["logprobs as a number", { logprobs: 1 }, "logprobs"],
  ["a bias of a word", { logit_bias: { hello: 1 } }, "logit_bias"],
  ["a bias of a token that is written twice", { logit_bias: { "5": 1, "05": 2 } }, "logit_bias"],
  ["a bias too strong", { logit_bias: { "1": 101 } }, "logit_bias.1"],
  ["a bias of a token the model has not", { logit_bias: { "260": 1 } }, "logit_bias"],
  ["tools", { tools: [{ type: "function" }] }, "tools"],
  ["a forced tool", { tool_choice: "required" }, "tool_choice"],
  ["functions", { functions: [{}] }, "functions"],
  ["JSON mode", { response_format: { type: "json_object" } }, "response_format"],
  ["audio", { audio: { voice: "x" } }, "audio"],
  ["audio out", { modalities: ["text", "audio"] }, "modalities"],
  ["a prediction", { prediction: { type: "content" } }, "prediction"],
  ["moderation", { moderation: { model: "omni-moderation-latest" } }, "moderation"],
  ["storing in words", { store: "yes" }, "store"],
  ["a service tier", { service_tier: "priority" }, "service_tier"],
  ["reasoning effort", { reasoning_effort: "high" }, "reasoning_effort"],
  ["web search", { web_search_options: {} }, "web_search_options"],
  ["metadata that is none", { metadata: "x" }, "metadata"],
  ["a user that is none", { user: 1 }, "user"],
  ["a quire that is none", { quire: 1 }, "quire"],
  ["an unknown field in quire", { quire: { x: 1 } }, "quire.x"],
  ["a session id with a slash", { quire: { session_id: "a/b" } }, "quire.session_id"],
  ["a session id that is a path", { quire: { session_id: ".." } }, "quire.session_id"],
  ["an empty session id", { quire: { session_id: "" } }, "quire.session_id"],
  ["a long session id", { quire: { session_id: "a".repeat(129) } }, "quire.session_id"],
  ["resumable that is no boolean", { quire: { resumable: 1 } }, "quire.resumable"],
  ["an unknown policy", { quire: { selection: { policy: "magic" } } }, "quire.selection.policy"],
  ["a budget of broken pages", { quire: { selection: { budget_tokens: 100 } } }, "quire.selection.budget_tokens"],
  ["a budget too small", { quire: { selection: { budget_tokens: 8 } } }, "quire.selection.budget_tokens"],
  [
    "a budget below any policy",
    { quire: { selection: { policy: "quest", budget_tokens: 112 } } },
    "quire.selection.budget_tokens",
  ],
  [
    "a budget beyond any context",
    { quire: { selection: { budget_tokens: 1 << 21 } } },
    "quire.selection.budget_tokens",
  ],
  ["exactness in words", { quire: { selection: { exact: "very" } } }, "quire.selection.exact"],
  ["an unknown field of selection", { quire: { selection: { x: 1 } } }, "quire.selection.x"],
];

const COMPLETION_REFUSALS: [string, object, string][] = [
  ["no prompt", { prompt: undefined }, "prompt"],
  ["an empty prompt", { prompt: "" }, "prompt"],
  ["an empty list", { prompt: [] }, "prompt"],
  ["two prompts of a session", { prompt: ["a", "b"], quire: { session_id: "s" } }, "prompt"],
  ["more prompts than there may be", { prompt: Array.from({ length: 65 }, () => "a") }, "prompt"],
  ["more choices than there may be", { prompt: Array.from({ length: 33 }, () => "a"), n: 2 }, "prompt"],
  ["an empty prompt among others", { prompt: ["a", ""] }, "prompt[1]"],
  ["ids among words", { prompt: ["a", [1]] }, "prompt[1]"],
  ["a prompt among others that is none", { prompt: ["a", { b: 1 }] }, "prompt[1]"],
  ["an id of a second prompt that is none", { prompt: [[1], [2, -1]] }, "prompt[1][1]"],
  ["an id of a second prompt that the model has not", { prompt: [[1], [260]] }, "prompt"],
  ["a prompt that is none", { prompt: { a: 1 } }, "prompt"],
  ["an id that is none", { prompt: [1, -1] }, "prompt[1]"],
  ["an id among words", { prompt: [1, "a"] }, "prompt[1]"],
  ["an id that the model has not", { prompt: [260] }, "prompt"],
  ["echo", { echo: true }, "echo"],
  ["a suffix", { suffix: "a" }, "suffix"],
  ["best of two", { best_of: 2 }, "best_of"],
  ["many logprobs", { logprobs: 6 }, "logprobs"],
  ["messages", { messages: HI }, "messages"],
];

/** What changes nothing and is therefore accepted. */
const NO_OPS: object[] = [
  { tools: [], tool_choice: "none", parallel_tool_calls: false, functions: [] },
  { response_format: { type: "text" }, modalities: ["text"], store: false, service_tier: "auto" },
  { metadata: { a: "b" }, user: "u", safety_identifier: "s", prompt_cache_key: "k", verbosity: "medium" },
  {
    store: true,
    prompt_cache_options: { mode: "explicit" },
    prompt_cache_retention: "24h",
    reasoning_effort: "medium",
  },
  {
    messages: [
      { role: "user", content: [{ type: "text", text: "hi", prompt_cache_breakpoint: { mode: "explicit" } }] },
    ],
  },
  { temperature: null, stop: null, seed: null, n: null, stream: null, tools: null, audio: null, logit_bias: null },
  { top_k: -1, min_p: 0, repetition_penalty: 1, seed: -1, logprobs: false, quire: { resumable: false } },
];

let world: World;
beforeAll(async () => {
  world = await makeWorld();
  await register(world.engine, world.model);
});

describe("validation", () => {
  it.each(CHAT_REFUSALS)("a chat request with %s is refused by name", async (_, changes, param) => {
    const response = await world.chat(HI, changes);
    const body = (await response.json()) as { error: { message: string } };
    expect(response.status, JSON.stringify(body)).toBe(400);
    const code = param === "max_tokens" && "max_tokens" in changes && changes.max_tokens === 99_999;
    expect(body).toEqual({
      error: {
        message: expect.any(String),
        type: "invalid_request_error",
        param,
        code: code ? "context_length_exceeded" : "invalid_request",
      },
    });
  });

  it("says of which type or size a value is that cannot be", async () => {
    const messageOf = async (changes: object) => {
      const { error } = (await (await world.chat(HI, changes)).json()) as { error: { message: string } };
      return error.message;
    };
    const expected = (field: string, type: string, found: string) =>
      `Invalid type for '${field}': expected ${type}, but got ${found} instead.`;
    expect(await messageOf({ user: 1 })).toBe(expected("user", "a string", "an integer"));
    expect(await messageOf({ metadata: [] })).toBe(expected("metadata", "an object", "an array"));
    expect(await messageOf({ parallel_tool_calls: 1 })).toBe(
      expected("parallel_tool_calls", "a boolean", "an integer"),
    );
    expect(await messageOf({ seed: 2 ** 53 })).toBe(expected("seed", "an integer", "a number that is too large"));
    const endless = await edge("/v1/chat/completions", {
      method: "POST",
      headers: { authorization: `Bearer ${KEY_A}` },
      body: '{"messages":[{"role":"user","content":"hi"}],"temperature":1e999}',
    });
    const { error } = (await endless.json()) as { error: { message: string } };
    expect(error.message).toBe(expected("temperature", "a number", "a number that is too large"));
  });

  it("repeats no more of what it was sent than its beginning", async () => {
    const long = "x".repeat(100_000);
    for (const changes of [
      { model: long },
      { messages: [{ role: long, content: "a" }] },
      { messages: [{ role: "user", content: [{ type: long }] }] },
      { messages: [{ role: "user", content: "a", [long]: 1 }] },
      { [long]: 1 },
      { logit_bias: { [long]: 1 } },
      { quire: { resume: long } },
      { quire: { session_id: long } },
      { quire: { selection: { policy: long } } },
      { stop: long },
    ]) {
      const response = await world.chat(HI, changes);
      const body = await response.text();
      expect([400, 404]).toContain(response.status);
      expect(body.length, body.slice(0, 200)).toBeLessThan(1_000);
    }
    for (const path of [`/v1/models/${long.slice(0, 4_000)}`, `/v1/${long.slice(0, 4_000)}`]) {
      const response = await edge(path, { headers: { authorization: `Bearer ${KEY_A}` } });
      expect((await response.text()).length).toBeLessThan(1_000);
    }
  });

  it.each(COMPLETION_REFUSALS)("a completion request with %s is refused by name", async (_, changes, param) => {
    const response = await world.post("/v1/completions", { prompt: "a", ...changes });
    const body = await response.json();
    expect(response.status, JSON.stringify(body)).toBe(400);
    expect(body).toMatchObject({ error: { type: "invalid_request_error", param, code: "invalid_request" } });
  });

  it("never reached the engine with any of that", async () => {
    expect(await world.engine.calls()).toEqual([]);
  });

  it.each(NO_OPS.map((changes) => [Object.keys(changes).join(", "), changes] as const))(
    "accepts no-op values of %s",
    async (_, changes) => {
      const response = await world.chat(HI, changes);
      expect(response.status, await response.text()).toBe(200);
    },
  );

  it("takes the message object back that it gave", async () => {
    const first = (await (await world.chat("once")).json()) as { choices: { message: object }[] };
    const message = first.choices[0]?.message ?? {};
    const response = await world.chat([{ role: "user", content: "once" }, message, { role: "user", content: "more" }]);
    expect(response.status, await response.text()).toBe(200);
  });

  it("asks for a model that exists", async () => {
    for (const path of ["/v1/chat/completions", "/v1/completions"]) {
      const words = path === "/v1/completions" ? { prompt: "a" } : { messages: [{ role: "user", content: "hi" }] };
      for (const none of [undefined, null, ""]) {
        const missing = await world.post(path, { ...words, model: none });
        expect(missing.status).toBe(400);
        expect(await missing.json()).toMatchObject({
          error: { code: "invalid_request", param: "model", message: "Missing required parameter: 'model'." },
        });
      }
    }
    const unknown = await world.chat(HI, { model: "gpt-4" });
    expect(unknown.status).toBe(404);
    expect(await unknown.json()).toMatchObject({
      error: { code: "model_not_found", param: "model", message: expect.stringContaining("'gpt-4'") },
    });
  });
});

describe("bodies", () => {
  const send = (body: BodyInit, headers: Record<string, string> = {}) =>
    edge("/v1/chat/completions", { method: "POST", headers: { authorization: `Bearer ${KEY_A}`, ...headers }, body });

  it.each<[string, BodyInit]>([
    ["no JSON", "{"],
    ["nothing", ""],
    ["an array", "[]"],
    ["null", "null"],
    ["invalid UTF-8", Uint8Array.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])],
    ["deep nesting", `${'{"a":'.repeat(LIMITS.jsonDepthMax + 1)}1${"}".repeat(LIMITS.jsonDepthMax + 1)}`],
    ["bottomless nesting", "[".repeat(1_000_000)],
  ])("with %s are 400", async (_, body) => {
    const response = await send(body);
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { code: "invalid_request", param: null } });
  });

  it("may have brackets in strings", async () => {
    const content = '[{"'.repeat(100);
    expect((await world.chat(content)).status).toBe(200);
  });

  it("over the limit are 413, by their declared length and by their bytes", async () => {
    const declared = await send("x".repeat(LIMITS.requestBytesMax + 1));
    expect(declared.status).toBe(413);
    expect(await declared.json()).toMatchObject({ error: { code: "request_too_large" } });
    let sentBytes = 0;
    const chunk = new Uint8Array(1024 * 1024).fill(0x20);
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        sentBytes += chunk.byteLength;
        if (sentBytes > 64 * chunk.byteLength) controller.close();
        else controller.enqueue(chunk.slice());
      },
    });
    const chunked = await send(endless);
    expect(chunked.status).toBe(413);
    expect(sentBytes).toBeLessThanOrEqual(LIMITS.requestBytesMax + 8 * chunk.byteLength);
  });
});
