/** The `openai` client, unmodified, against a running stack. */
import { readFile } from "node:fs/promises";
import OpenAI, { APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError } from "openai";
import { describe, expect, inject, it } from "vitest";
import { parseExposition } from "../engine/metrics/parse-exposition.ts";
import { until } from "./support/quire-process.ts";
import { answer, ask, longText, passage } from "./support/words.ts";

const model = "house-0";
const client = new OpenAI({ baseURL: `${inject("edgeUrl")}/v1`, apiKey: inject("apiKey"), maxRetries: 0 });
const messages = [{ role: "user" as const, content: passage + ask("Badoru") }];
/** The model's own end of a reply; without it a reply runs on. */
const endToken = 259;
const endless = { temperature: 0, max_tokens: 6_000, logit_bias: { [endToken]: -100 } };

interface EngineStatus {
  runningCount: number;
  queuedCount: number;
  heldBlockCount: number;
  heldSlotCount: number;
}

async function engineStatus(): Promise<EngineStatus> {
  return (await (await fetch(`${inject("engineUrl")}/healthz`)).json()) as EngineStatus;
}

/** Rows (tokens of prompts and replies) that the engine has computed. */
async function computedRows(): Promise<number> {
  const values = parseExposition(await (await fetch(`${inject("engineUrl")}/metrics`)).text());
  const rows = ["prefill", "decode"].map((kind) => values.get(`quire_step_rows_total{kind="${kind}"}`) ?? Number.NaN);
  return rows.reduce((sum, count) => sum + count);
}

describe("chat completions", () => {
  it("answer whole, with OpenAI's usage", async () => {
    const reply = await client.chat.completions.create({ model, messages, temperature: 0 });
    expect(reply).toMatchObject({ object: "chat.completion", model });
    expect(reply.id).toMatch(/^chatcmpl-/);
    expect(reply.choices).toHaveLength(1);
    expect(reply.choices[0]).toMatchObject({
      index: 0,
      finish_reason: "stop",
      message: { role: "assistant", content: answer("Badoru") },
    });
    // Bytes are tokens: begin, user, the message, assistant; the reply and its end.
    expect(reply.usage).toMatchObject({
      prompt_tokens: messages[0]!.content.length + 3,
      completion_tokens: answer("Badoru").length + 1,
      total_tokens: messages[0]!.content.length + answer("Badoru").length + 4,
    });
  });

  it("stream the same text, then the usage", async () => {
    const stream = await client.chat.completions.create({
      model,
      messages,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0]?.choices[0]?.delta).toMatchObject({ role: "assistant" });
    expect(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("")).toBe(answer("Badoru"));
    const reasons = chunks.flatMap((chunk) => chunk.choices[0]?.finish_reason ?? []);
    expect(reasons).toEqual(["stop"]);
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: answer("Badoru").length + 1 } });
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  it("work through the client's own stream helper", async () => {
    const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
    const whole = await runner.finalChatCompletion();
    expect(whole.choices[0]?.message.content).toBe(answer("Badoru"));
  });

  it("end at a stop string that lies across tokens, and leave it out", async () => {
    const reply = await client.chat.completions.create({ model, messages, temperature: 0, stop: [" is 48", "never"] });
    expect(reply.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "The code of Badoru" } });
  });

  it("end at max_tokens", async () => {
    const reply = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 8 });
    expect(reply.choices[0]).toMatchObject({ finish_reason: "length", message: { content: "The code" } });
    expect(reply.usage?.completion_tokens).toBe(8);
  });

  it("give n choices: equal ones when greedy, different ones when sampled", async () => {
    const greedy = await client.chat.completions.create({ model, messages, temperature: 0, n: 2 });
    expect(greedy.choices.map(({ index, message }) => [index, message.content])).toEqual([
      [0, answer("Badoru")],
      [1, answer("Badoru")],
    ]);
    expect(greedy.usage?.completion_tokens).toBe(2 * (answer("Badoru").length + 1));
    const hot = await client.chat.completions.create({
      model,
      messages,
      temperature: 2,
      n: 2,
      seed: 1,
      max_tokens: 40,
    });
    expect(new Set(hot.choices.map(({ message }) => message.content)).size).toBe(2);
  });

  it("repeat themselves under one seed, and not under another", async () => {
    const draw = async (seed: number): Promise<string | null | undefined> =>
      (await client.chat.completions.create({ model, messages, temperature: 1.5, seed, max_tokens: 40 })).choices[0]
        ?.message.content;
    const [first, again, other] = [await draw(11), await draw(11), await draw(12)];
    expect(first).toHaveLength(again?.length ?? 0);
    expect(again).toBe(first);
    expect(other).not.toBe(first);
  });

  it("tell log probabilities, those of the model's reference", async () => {
    const vectors = JSON.parse(await readFile("weights/house-0/vectors.json", "utf8")) as {
      cases: { messages: { content: string }[]; turns: { last_logits: number[]; text: string }[] }[];
    };
    const [shortest] = vectors.cases;
    const content = shortest?.messages[0]?.content ?? "";
    const logits = shortest?.turns[0]?.last_logits ?? [];
    const reply = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content }],
      temperature: 0,
      logprobs: true,
      top_logprobs: 3,
    });
    expect(reply.choices[0]?.message.content).toBe(shortest?.turns[0]?.text);
    const tokens = reply.choices[0]?.logprobs?.content ?? [];
    expect(tokens.map(({ token }) => token).join("")).toContain(shortest?.turns[0]?.text);
    const logSum = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const best = logits
      .map((logit, id) => ({ byte: id, logprob: logit - logSum }))
      .sort((a, b) => b.logprob - a.logprob)
      .slice(0, 3);
    expect(tokens[0]?.top_logprobs).toHaveLength(3);
    expect(tokens[0]?.token).toBe(String.fromCharCode(best[0]?.byte ?? 0));
    // The engine's weights and KV are int8, the reference's are not.
    for (const [rank, expected] of best.slice(0, 1).entries()) {
      expect(tokens[0]?.top_logprobs[rank]?.bytes).toEqual([expected.byte]);
      expect(Math.abs((tokens[0]?.top_logprobs[rank]?.logprob ?? 99) - expected.logprob)).toBeLessThan(0.05);
    }
    expect(tokens[0]?.logprob).toBe(tokens[0]?.top_logprobs[0]?.logprob);
  });
});

describe("completions", () => {
  const prompt = `<|bos|><|user|>${passage}${ask("Kelino")}<|assistant|>`;

  it("answer whole and streamed", async () => {
    const reply = await client.completions.create({ model, prompt, temperature: 0, max_tokens: 100 });
    expect(reply).toMatchObject({
      object: "text_completion",
      choices: [{ text: answer("Kelino"), finish_reason: "stop" }],
    });
    let text = "";
    for await (const chunk of await client.completions.create({
      model,
      prompt,
      temperature: 0,
      max_tokens: 100,
      stream: true,
    })) {
      text += chunk.choices[0]?.text ?? "";
    }
    expect(text).toBe(answer("Kelino"));
  });

  it("answer a list of prompts in their order, whole and streamed", async () => {
    const other = `<|bos|><|user|>${passage}${ask("Badoru")}<|assistant|>`;
    const request = { model, prompt: [prompt, other, prompt], temperature: 0, max_tokens: 100 };
    const expected = [answer("Kelino"), answer("Badoru"), answer("Kelino")];
    const { choices } = await client.completions.create(request);
    expect(choices.map(({ index, text, finish_reason }) => [index, text, finish_reason])).toEqual(
      expected.map((text, index) => [index, text, "stop"]),
    );
    const texts = ["", "", ""];
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      for (const { index, text } of chunk.choices) texts[index] += text;
    }
    expect(texts).toEqual(expected);
  });
});

describe("models", () => {
  it("are listed and found by name", async () => {
    const listed = [];
    for await (const found of client.models.list()) listed.push(found);
    expect(listed.map(({ id, object }) => [id, object])).toEqual([[model, "model"]]);
    expect(await client.models.retrieve(model)).toMatchObject({ id: model, object: "model" });
  });
});

describe("errors", () => {
  const thrownBy = async (call: Promise<unknown>): Promise<unknown> => {
    try {
      await call;
    } catch (error) {
      return error;
    }
    throw new Error("the call was expected to fail");
  };

  it("are the client's own classes", async () => {
    const stranger = new OpenAI({ baseURL: `${inject("edgeUrl")}/v1`, apiKey: "qk-wrong", maxRetries: 0 });
    const unknownKey = await thrownBy(stranger.chat.completions.create({ model, messages }));
    expect(unknownKey).toBeInstanceOf(AuthenticationError);
    expect(unknownKey).toMatchObject({ status: 401, code: "invalid_api_key" });
    const unknownModel = await thrownBy(client.chat.completions.create({ model: "house-9", messages }));
    expect(unknownModel).toBeInstanceOf(NotFoundError);
    expect(unknownModel).toMatchObject({ status: 404, code: "model_not_found" });
    const wrongValue = await thrownBy(client.chat.completions.create({ model, messages, temperature: 3 }));
    expect(wrongValue).toBeInstanceOf(BadRequestError);
    expect(wrongValue).toMatchObject({ status: 400, param: "temperature", type: "invalid_request_error" });
    const tooLong = await thrownBy(
      client.chat.completions.create({ model, messages: [{ role: "user", content: longText(33_000) }] }),
    );
    expect(tooLong).toBeInstanceOf(BadRequestError);
    expect(tooLong).toMatchObject({ status: 400, code: "context_length_exceeded" });
  });

  it("come before the stream when they are known before", async () => {
    const error = await thrownBy(client.chat.completions.create({ model, messages, top_p: 2, stream: true }));
    expect(error).toBeInstanceOf(BadRequestError);
    expect(error).toMatchObject({ param: "top_p" });
  });
});

describe("a client that goes away", () => {
  const isIdle = async (): Promise<boolean> => {
    const { runningCount, queuedCount } = await engineStatus();
    return runningCount === 0 && queuedCount === 0;
  };
  const isRunning = async (): Promise<boolean> => (await engineStatus()).runningCount === 1;
  /** Everything that the reply held is free again, not only its place in the batch. */
  const isFreed = async (): Promise<boolean> => {
    const { heldBlockCount, heldSlotCount } = await engineStatus();
    return (await isIdle()) && heldBlockCount === 0 && heldSlotCount === 0;
  };

  /**
   * Leaves, and counts what the engine computed until it was idle. What a second is worth differs by machine and what else runs there; on two
   * quiet cores it is 2,000 rows of a prompt or 1,600 of a reply.
   */
  const rowsBehind = async (leave: () => unknown): Promise<number> => {
    const rows = await computedRows();
    leave();
    await until(isIdle, "the engine to be idle");
    return (await computedRows()) - rows;
  };

  it("frees the engine within a second's worth of work while it decodes", async () => {
    await until(isIdle, "an idle engine");
    const stream = await client.chat.completions.create({ model, messages, ...endless, stream: true });
    const chunks = stream[Symbol.asyncIterator]();
    for (let count = 0; count < 5; count++) expect((await chunks.next()).done).toBe(false);
    expect(await isRunning()).toBe(true);
    expect(await rowsBehind(() => chunks.return?.())).toBeLessThan(endless.max_tokens / 2);
    await until(isFreed, "the engine to hold nothing");
  });

  it.each([{ stream: true }, { stream: false }])("frees it in prefill, too ($stream)", async (how) => {
    await until(isIdle, "an idle engine");
    const controller = new AbortController();
    const promptTokens = 28_000;
    // Another text in each run, so that none is in the cache.
    const content = `${how.stream} ${longText(promptTokens)}`;
    const request = { model, messages: [{ role: "user" as const, content }], ...endless, max_tokens: 100, ...how };
    const call = client.chat.completions.create(request, { signal: controller.signal });
    // A stream is there with its headers, a whole answer never: what counts is what the engine does.
    const settled = Promise.resolve(call).catch((error: unknown) => error);
    await until(isRunning, "the engine to run");
    expect(await rowsBehind(() => controller.abort())).toBeLessThan(promptTokens / 4);
    await until(isFreed, "the engine to hold nothing");
    if (!how.stream) expect(await settled).toBeInstanceOf(APIUserAbortError);
  });

  it("leaves an engine that answers", async () => {
    const reply = await client.chat.completions.create({ model, messages, temperature: 0 });
    expect(reply.choices[0]?.message.content).toBe(answer("Badoru"));
  });
});
