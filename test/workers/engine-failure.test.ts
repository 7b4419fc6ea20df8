import { evictDurableObject } from "cloudflare:test";
import { describe, expect, it, vi } from "vitest";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { Fleet } from "../../workers/fleet.ts";
import { isolateSessions } from "../../workers/worker-turn/known-sessions.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ASSISTANT,
  BOS,
  beat,
  END,
  ENGINE_KEY,
  edge,
  env,
  eventsOf,
  FakeEngine,
  heartbeatOf,
  ids,
  KEY_A,
  makeWorld,
  register,
  says,
  textOf,
  USER,
} from "./world.ts";

/** A failure has its real status only within 250 ms, which a machine under load may miss once. */
const SOON = { retry: 2 };
const contentOf = (event: unknown): string =>
  (event as { choices?: { delta?: { content?: string } }[] }).choices?.[0]?.delta?.content ?? "";
const newSession = () => ({ quire: { session_id: `fail-${crypto.randomUUID()}` } });
const sessionExists = async (id: string) =>
  (await edge(`/v1/sessions/${id}`, { headers: { authorization: `Bearer ${KEY_A}` } })).status === 200;

describe("before an engine admits a turn", () => {
  it("no engine is 503 with Retry-After", async () => {
    const { model } = await makeWorld();
    const engine = new FakeEngine();
    await register(engine, model, { draining: true });
    const response = await edge("/v1/chat/completions", {
      method: "POST",
      headers: { authorization: `Bearer ${KEY_A}` },
      body: JSON.stringify({ model, messages: [{ role: "user", content: "hi" }] }),
    });
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("5");
    expect(await response.json()).toMatchObject({ error: { code: "no_engine", type: "server_error", param: null } });
    expect(await engine.calls()).toEqual([]);
  });

  it("a full queue is 429 with the engine's Retry-After, streamed or not", async () => {
    const { chat, engine } = await makeWorld();
    for (const stream of [false, true]) {
      const session = newSession();
      await engine.script({ do: "fail", code: "queue_full", message: "The queue is full.", retryAfterMs: 2_500 });
      const response = await chat("hi", { stream, ...session });
      expect(response.status).toBe(429);
      expect(response.headers.get("retry-after")).toBe("3");
      expect(await response.json()).toEqual({
        error: { message: "The queue is full.", type: "rate_limit_error", param: null, code: "queue_full" },
      });
      expect(await sessionExists(session.quire.session_id)).toBe(false);
    }
    await engine.script({ do: "status", status: 429 });
    const bare = await chat("hi");
    expect(bare.status).toBe(429);
    expect(bare.headers.get("retry-after")).toBe("1");
  });

  it("the engine's refusal names the parameter", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script({ do: "fail", code: "invalid_request", message: "no", param: "quire.selection.budget_tokens" });
    const response = await chat("hi", { stream: true });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { param: "quire.selection.budget_tokens", message: "no" } });
  });

  it.each<[string, Step]>([
    ["cuts the connection", { do: "destroy" }],
    ["answers nonsense", { do: "garbage" }],
    ["answers 500", { do: "status", status: 500 }],
    ["is shutting down", { do: "fail", code: "shutting_down", message: "bye" }],
  ])("an engine that %s is replaced by another one, once", async (_, step) => {
    const { chat, engine, model } = await makeWorld();
    const other = new FakeEngine();
    await register(other, model, { runningCount: 5 });
    await engine.script(step);
    await other.script(...says("other"));
    expect(await textOf(await chat("hi"))).toBe("other");
    await engine.script(step);
    await other.script(step);
    const response = await chat("ho");
    expect(response.status).toBe(step.do === "fail" ? 503 : 502);
    const body = (await response.json()) as { error: { code: string; message: string } };
    expect(body.error.code).toBe(step.do === "fail" ? "shutting_down" : "engine_failed");
    expect(await engine.calls()).toHaveLength(2);
    expect(await other.calls()).toHaveLength(2);
  });

  it("an engine that nobody listens for is replaced, and alone it is 502", async () => {
    const { chat, model, engine } = await makeWorld();
    const dead = { ...new FakeEngine(), id: "dead", url: "http://127.0.0.1:9/" } as FakeEngine;
    await register(dead, model);
    await register(engine, model, { runningCount: 1 });
    expect(await textOf(await chat("hi"))).toBe("ok");
    const alone = await makeWorld();
    await register({ id: alone.engine.id, url: "http://127.0.0.1:9" } as FakeEngine, alone.model);
    const response = await edge("/v1/chat/completions", {
      method: "POST",
      headers: { authorization: `Bearer ${KEY_A}` },
      body: JSON.stringify({ model: alone.model, messages: [{ role: "user", content: "hi" }] }),
    });
    expect(response.status).toBe(502);
    expect(await response.json()).toMatchObject({ error: { code: "engine_failed", type: "server_error" } });
  });
});

describe("what an operator reads", () => {
  it("names the engine that failed and how, also where another one answered; not one that shuts down", async () => {
    const lines: string[] = [];
    const log = vi.spyOn(console, "warn").mockImplementation((line: string) => void lines.push(line));
    const { chat, model, engine } = await makeWorld();
    const dead = { ...new FakeEngine(), id: "dead", url: "http://127.0.0.1:9" } as FakeEngine;
    await register(dead, model);
    await register(engine, model, { runningCount: 1 });
    expect(await textOf(await chat("a secret", {}, { headers: { "x-request-id": "seen" } }))).toBe("ok");
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      {
        ...{ level: "warn", requestId: "seen", event: "engine.failed", engine: "dead", url: dead.url },
        ...{ code: "engine_failed", cause: { message: "the engine cannot be reached" } },
      },
    ]);
    const other = await makeWorld();
    await other.engine.script({ do: "admit" }, { do: "tokens", ids: ids("half") }, { do: "destroy" });
    await (await other.chat("a secret", { stream: true })).text();
    expect(lines.map((line) => JSON.parse(line).engine)).toEqual(["dead", other.engine.id]);
    await other.engine.script({ do: "fail", code: "shutting_down", message: "bye" });
    expect((await other.chat("a secret")).status).toBe(503);
    expect(lines).toHaveLength(2);
    expect(lines.join("")).not.toContain("secret");
    log.mockRestore();
  });
});

describe("an engine that fails after its first token", () => {
  const half: Step[] = [{ do: "admit" }, { do: "tokens", ids: ids("half") }, { do: "destroy" }];

  it("is an error event in the stream, and the log is as before the turn", async () => {
    const { chat, engine } = await makeWorld();
    const session = newSession();
    await engine.script(...says("one"));
    await (await chat("hi", session)).text();
    await engine.script(...half);
    const response = await chat("ho", { stream: true, ...session });
    expect(response.status).toBe(200);
    const events = await eventsOf(response);
    expect(events.at(-1)).toEqual({
      error: { message: expect.any(String), type: "server_error", param: null, code: "engine_failed" },
    });
    expect(events.slice(0, -1).every((event) => event !== "[DONE]")).toBe(true);
    expect(JSON.stringify(events)).toContain("half");
    await (await chat("ha", session)).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("one"), END];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, USER, ...ids("ha"), ASSISTANT]);
    expect(request.turnStart).toBe(log.length);
  });

  it("is a real status without a stream", SOON, async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...half);
    const response = await chat("hi");
    expect(response.status).toBe(502);
    expect(await response.json()).toMatchObject({ error: { code: "engine_failed" } });
  });

  it("late and without a stream breaks the connection off, with the error in it", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script({ do: "admit" }, { do: "hold" }, { do: "destroy" });
    const response = await chat("hi");
    expect(response.status).toBe(200);
    await engine.release();
    let text = "";
    const read = async () => {
      const pieces = response.body?.pipeThrough(new TextDecoderStream());
      for await (const piece of pieces ?? []) text += piece;
    };
    await expect(read()).rejects.toThrow();
    expect(JSON.parse(text)).toMatchObject({ error: { code: "engine_failed" } });
  });

  it("passes on what the engine says of it", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(
      { do: "admit" },
      { do: "tokens", ids: ids("a") },
      { do: "fail", code: "deadline_exceeded", message: "too slow" },
    );
    const events = await eventsOf(await chat("hi", { stream: true }));
    expect(events.at(-1)).toMatchObject({ error: { code: "deadline_exceeded", message: "too slow" } });
  });

  it("hands over to another engine, which goes on from the ids so far", async () => {
    const { chat, engine, model } = await makeWorld();
    const other = new FakeEngine();
    await register(other, model, { runningCount: 5 });
    await engine.script(...half);
    await other.script(...says(" and half"));
    const session = newSession();
    const body = await (await chat("hi", { seed: 3, max_tokens: 50, ...session })).json();
    expect(body).toMatchObject({
      choices: [{ message: { content: "half and half" }, finish_reason: "stop" }],
      usage: { prompt_tokens: 5, completion_tokens: 14 },
    });
    const prompt = [BOS, USER, ...ids("hi"), ASSISTANT];
    const { request } = await other.lastCall();
    expect(request.tokens).toEqual([...prompt, ...ids("half")]);
    expect(request).toMatchObject({ turnStart: 0, maxTokens: 46, sampling: { seed: 3 } });
    await register(other, model, { runningCount: 5 });
    await (await chat("ho", session)).text();
    // Sticky: the engine that finished the turn has its pages.
    const { request: next } = await other.lastCall();
    expect(next.tokens.slice(0, next.turnStart)).toEqual([...prompt, ...ids("half and half"), END]);
  });

  it("hands over past engines that are gone without the fleet knowing it yet", async () => {
    const { chat, engine, model } = await makeWorld();
    const gone = [new FakeEngine(), new FakeEngine()] as const;
    const last = new FakeEngine();
    for (const dead of gone) {
      await register(dead, model, { runningCount: 5 });
      await dead.script({ do: "destroy" });
    }
    await register(last, model, { runningCount: 9 });
    await engine.script(...half);
    await last.script(...says(" and half"));
    const body = await (await chat("hi", { max_tokens: 50 })).json();
    expect(body).toMatchObject({
      choices: [{ message: { content: "half and half" } }],
      usage: { quire: { engines: [engine.id, last.id] } },
    });
    for (const dead of gone) expect(await dead.calls()).toHaveLength(1);
  });

  it("loses nothing when it dies behind the last token that was asked for", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("half") }, { do: "destroy" });
    const session = newSession();
    const body = await (await chat("hi", { max_tokens: 4, ...session })).json();
    expect(body).toMatchObject({ choices: [{ message: { content: "half" }, finish_reason: "length" }] });
    await (await chat("ho", session)).text();
    const { request: next } = await engine.lastCall();
    const said = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("half")];
    expect(next.tokens.slice(0, said.length)).toEqual(said);
  });

  it("is replaced when it is gone without a word, and waited for while the fleet hears of it", {
    timeout: 40_000,
  }, async () => {
    const { chat, engine, model } = await makeWorld();
    const other = new FakeEngine();
    await register(other, model, { runningCount: 5 });
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("half") }, { do: "deaf" });
    await other.script(...says(" and half"));
    const start = Date.now();
    let lastBeatMs = start;
    const reply = chat("hi", { stream: true });
    // The machine of the first loses its power; before that it was only slow.
    const beats = setInterval(() => {
      void register(other, model, { runningCount: 5 });
      if (Date.now() - start >= 4_000) return;
      lastBeatMs = Date.now();
      void register(engine, model);
    }, 1_000);
    try {
      const events = await eventsOf(await reply);
      const text = events.map((event) => contentOf(event)).join("");
      expect(text).toBe("half and half");
      // It was believed as long as that after its last word, however late on a busy machine that was.
      expect(Date.now() - lastBeatMs).toBeGreaterThanOrEqual(LIMITS.engineExpiryMs - 100);
      expect((await engine.lastCall()).abortedMs).toBeDefined();
    } finally {
      clearInterval(beats);
    }
  });

  it("hands over every choice that it had, to one other engine", async () => {
    const { chat, engine, model } = await makeWorld();
    const [other, third] = [new FakeEngine(), new FakeEngine()];
    await register(other, model, { runningCount: 5 });
    await register(third, model, { runningCount: 9 });
    for (let index = 0; index < 2; index++) {
      await engine.script({ do: "admit" }, { do: "tokens", ids: ids("h") }, { do: "wait", ms: 150 }, { do: "destroy" });
      await other.script(...says("i"));
    }
    // Both choices fail while one engine is looked for.
    const { pick } = Fleet.prototype;
    const picked = vi.spyOn(Fleet.prototype, "pick").mockImplementation(async function (this: Fleet, ...wanted) {
      await scheduler.wait(100);
      return pick.apply(this, wanted);
    });
    const body = (await (await chat("hi", { n: 2 })).json()) as { choices: { message: { content: string } }[] };
    expect(picked).toHaveBeenCalledTimes(2);
    picked.mockRestore();
    expect(body.choices.map(({ message }) => message.content)).toEqual(["hi", "hi"]);
    expect(await other.calls()).toHaveLength(2);
    expect(await third.calls()).toEqual([]);
  });

  it("hands over from engine to engine while there is one, each with where the reply begins, and says who served", async () => {
    const { chat, engine, model } = await makeWorld();
    const others = [new FakeEngine(), new FakeEngine()] as const;
    await register(others[0], model, { runningCount: 5 });
    await register(others[1], model, { runningCount: 9 });
    const admit: Step = { do: "admit" };
    const destroy: Step = { do: "destroy" };
    await engine.script(admit, { do: "tokens", ids: ids("€ 🙂").slice(0, -2) }, destroy);
    await others[0].script(admit, { do: "tokens", ids: ids("🙂").slice(-2) }, destroy);
    await others[1].script(...says(" end"));
    const body = await (await chat("hi", { frequency_penalty: 1, max_tokens: 50 })).json();
    expect(body).toMatchObject({
      choices: [{ message: { content: "€ 🙂 end" }, finish_reason: "stop" }],
      usage: { quire: { engines: [engine.id, others[0].id, others[1].id] } },
    });
    const promptLength = [BOS, USER, ...ids("hi"), ASSISTANT].length;
    const first = (await engine.lastCall()).request as { replyStart?: number };
    expect(first.replyStart).toBeUndefined();
    for (const [other, done] of [
      [others[0], 6],
      [others[1], 8],
    ] as const) {
      const { request } = await other.lastCall();
      expect(request).toMatchObject({ replyStart: promptLength, maxTokens: 50 - done });
      expect(request.tokens).toHaveLength(promptLength + done);
    }
  });
});

describe("the fleet", () => {
  it("stays with the engine of the last turn unless waiting there costs more than fetching elsewhere", async () => {
    const { chat, engine, model } = await makeWorld();
    const other = new FakeEngine();
    const session = newSession();
    await (await chat("a".repeat(2_000), session)).text();
    await register(other, model);
    const count = async () => [(await engine.calls()).length, (await other.calls()).length];
    expect(await count()).toEqual([1, 0]);
    const ask = async (content: string, queuedCount: number) => {
      await register(engine, model, { queuedCount, runningCount: 3 });
      await register(other, model);
      // What is remembered of the session would do for a moment.
      isolateSessions.take(await namespaceOf("a", env.QUIRE_TENANT_SALT), session.quire.session_id);
      const response = await edge("/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${KEY_A}` },
        body: JSON.stringify({ model, messages: [{ role: "user", content }], ...session }),
      });
      expect(response.status).toBe(200);
      await response.text();
    };
    await ask("b", 0);
    expect(await count()).toEqual([2, 0]);
    await ask("c", 5);
    expect(await count()).toEqual([2, 1]);
    await ask("d", 0);
    expect(await count()).toEqual([2, 2]);
  });

  it("knows a model by its id, by two aliases, and after its engines are gone", async () => {
    const fleet = env.FLEET.get(env.FLEET.idFromName(`fleet-${crypto.randomUUID()}`));
    expect(await fleet.resolveModel("quire")).toEqual({ status: "no_engine" });
    const beat = (model: string, draining: boolean) =>
      fleet.heartbeat(heartbeatOf(new FakeEngine(), model, { draining }) as EngineHeartbeat);
    await beat("leaving", true);
    await beat("staying", false);
    for (const name of ["quire", "default", "staying"]) {
      expect(await fleet.resolveModel(name)).toEqual({ status: "known", id: "staying" });
    }
    expect(await fleet.resolveModel("leaving")).toEqual({ status: "known", id: "leaving" });
    expect(await fleet.resolveModel("other")).toEqual({ status: "unknown" });
    // Engines live in memory only; what models there were does not.
    await evictDurableObject(fleet);
    await beat("staying", false);
    expect(await fleet.resolveModel("leaving")).toEqual({ status: "no_engine" });
  });

  it("refuses heartbeats without the engine key, and malformed ones by name", async () => {
    const { engine, model } = await makeWorld();
    const send = (key: string, changes: object) => beat(heartbeatOf(engine, model, changes), key);
    expect((await send("wrong", {})).status).toBe(401);
    expect((await send(KEY_A, {})).status).toBe(401);
    expect((await send(ENGINE_KEY, { a_newer_field: 1 })).status).toBe(200);
    for (const [param, value] of [
      ["url", "file:///etc/passwd"],
      ["model", "../other"],
      ["queuedCount", -1],
      ["contextTokensMax", "many"],
    ] as const) {
      const response = await send(ENGINE_KEY, { [param]: value });
      expect(response.status).toBe(400);
      expect(await response.json()).toMatchObject({ error: { param } });
    }
  });
});
