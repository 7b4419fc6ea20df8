import { describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { handle } from "../../workers/router.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ABC_AND_NO_END,
  ASSISTANT,
  BOS,
  END,
  edge,
  env,
  ids,
  KEY_A,
  logOf,
  makeWorld,
  register,
  says,
  streamOf,
  USER,
  until,
  type World,
} from "./world.ts";

const HANG: Step = { do: "hang" };
/** Tokens of a log in front of its first reply, whose question is "hi". */
const BOS_TO_REPLY = 5;

/** Reads until `text` has come, then goes away. Returns when that was. */
async function leaveAfter(response: Response, text: string): Promise<number> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const decoder = new TextDecoder();
  let seen = "";
  while (!seen.includes(text)) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`the stream ended without ${text}: ${seen}`);
    seen += decoder.decode(value, { stream: true });
  }
  const leftMs = Date.now();
  await reader.cancel();
  return leftMs;
}

/** How long after `leftMs` the engine, which never ends otherwise, was asked to end, which it did by itself: the connection was not closed. */
async function cancelDelay(world: World, leftMs: number): Promise<number> {
  await until(async () => (await world.engine.lastCall()).cancelledMs !== undefined, 10_000);
  const call = await world.engine.lastCall();
  expect(call.finished).toBe(true);
  expect(call.abortedMs).toBeUndefined();
  return (call.cancelledMs ?? Number.NaN) - leftMs;
}

const newSession = () => ({ quire: { session_id: `abort-${crypto.randomUUID()}` } });

describe("a client that goes away", () => {
  it("frees the engine while tokens flow, and what it was given stays in the log", async () => {
    const world = await makeWorld();
    const session = newSession();
    const flow = Array.from({ length: 200 }, (): Step[] => [
      { do: "tokens", ids: ids("a") },
      { do: "wait", ms: 20 },
    ]).flat();
    await world.engine.script({ do: "admit" }, ...flow, HANG);
    const leftMs = await leaveAfter(await world.chat("hi", { stream: true, ...session }), '"content":"a"');
    await cancelDelay(world, leftMs);
    await until(async () => (await world.chat("ho", session)).status === 200);
    const { tokens, turnStart } = (await world.engine.lastCall()).request;
    const prompt = [BOS, USER, ...ids("hi"), ASSISTANT];
    expect(tokens.slice(0, prompt.length)).toEqual(prompt);
    const reply = tokens.slice(prompt.length, turnStart);
    expect(reply.length).toBeGreaterThanOrEqual(1);
    expect(reply.length).toBeLessThan(100);
    expect(new Set(reply)).toEqual(new Set(ids("a")));
    expect(tokens.slice(turnStart)).toEqual([END, USER, ...ids("ho"), ASSISTANT]);
  });

  it("leaves the spans that the engine told to the next turn", async () => {
    const world = await makeWorld();
    const session = newSession();
    const prompt = [BOS, USER, ...ids("hi"), ASSISTANT];
    const how = "quest.1:64@1";
    const spans = [
      { end: prompt.length, how: "dense" },
      { end: prompt.length + 7, how },
    ];
    await world.engine.script({ do: "admit" }, { do: "tokens", ids: ids("abc") }, { do: "hang", spans });
    const leftMs = await leaveAfter(await world.chat("hi", { stream: true, ...session }), '"content":"abc"');
    await cancelDelay(world, leftMs);
    await until(async () => (await world.chat("ho", session)).status === 200);
    const { request } = await world.engine.lastCall();
    expect(request.turnStart).toBe(prompt.length + 3);
    expect(request.spans).toEqual([
      { end: prompt.length, how: "dense" },
      { end: prompt.length + 3, how },
    ]);
  });

  it("is cut off from an engine that does not end when it is asked to", async () => {
    const world = await makeWorld();
    const session = newSession();
    await world.engine.script({ do: "admit" }, { do: "tokens", ids: ids("abc") }, { do: "deaf" });
    await leaveAfter(await world.chat("hi", { stream: true, ...session }), '"content":"abc"');
    await until(async () => (await world.engine.lastCall()).abortedMs !== undefined, LIMITS.cancelMsMax + 8_000);
    const { cancelledMs, abortedMs } = await world.engine.lastCall();
    expect(abortedMs).toBeGreaterThan(cancelledMs ?? Number.NaN);
    await until(async () => (await world.chat("ho", session)).status === 200);
    // Nobody told how these tokens were computed: they are computed again.
    const end = BOS_TO_REPLY + 3;
    expect((await world.engine.lastCall()).request).toMatchObject({ turnStart: end, spans: [{ end, how: "dense" }] });
  });

  it("frees the engine while it is silent, in prefill, and leaves no trace", async () => {
    const world = await makeWorld();
    const session = newSession();
    await world.engine.script({ do: "admit" }, HANG);
    const leftMs = await leaveAfter(await world.chat("hi", { stream: true, ...session }), '"role"');
    await cancelDelay(world, leftMs);
    const headers = { authorization: `Bearer ${KEY_A}` };
    expect((await edge(`/v1/sessions/${session.quire.session_id}`, { headers })).status).toBe(404);
    await until(async () => (await world.chat("ho", session)).status === 200);
    expect((await world.engine.lastCall()).request.tokens).toEqual([BOS, USER, ...ids("ho"), ASSISTANT]);
  });

  it("without a stream was given nothing: its turn leaves no trace, and asked for again it is in the log once", async () => {
    const world = await makeWorld();
    const session = newSession();
    await world.engine.script(...says("one"));
    expect((await world.chat("hi", session)).status).toBe(200);
    for (const named of [session, {}]) {
      await world.engine.script(...ABC_AND_NO_END);
      const response = await world.chat("again", named);
      const id = response.headers.get("x-quire-session");
      await cancelDelay(world, await leaveAfter(response, " "));
      // As clients do by themselves.
      const again = () => world.chat("again", { quire: { session_id: id } });
      await until(async () => (await again()).status === 200);
      const { request } = await world.engine.lastCall();
      expect(request.tokens).toEqual(named === session ? logOf(["hi", "one"], ["again"]) : logOf(["again"]));
    }
  });

  it("without a stream from a fork, which runs in its object, leaves no fork", async () => {
    const world = await makeWorld();
    const messages = [{ role: "user", content: "hi" }];
    await world.engine.script(...says("one"));
    await (await world.chat(messages, newSession())).text();
    messages.push({ role: "assistant", content: "one" }, { role: "user", content: "two" });
    await world.engine.script(...ABC_AND_NO_END);
    const response = await world.chat(messages);
    await cancelDelay(world, await leaveAfter(response, " "));
    expect((await world.engine.lastCall()).request.session?.parentId).toBeDefined();
    const fork = { quire: { session_id: response.headers.get("x-quire-session") } };
    await until(async () => (await world.chat("ho", fork)).status === 200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["ho"]));
  });

  it("is not who asks for the end of a turn without a stream, and waits: what it said is in the log", async () => {
    const world = await makeWorld();
    const session = newSession();
    await world.engine.script(...ABC_AND_NO_END);
    const response = await world.chat("hi", session);
    await until(async () => (await streamOf(session.quire.session_id, { method: "DELETE" })).status === 200);
    // Its connection breaks off behind the error.
    await response.text().catch(() => undefined);
    await until(async () => (await world.chat("ho", session)).status === 200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "abc"], ["ho"]));
  });

  it.each([true, false])("frees the engine within a second (stream: %s)", { timeout: 60_000 }, async (stream) => {
    // The quickest of five: what else runs on this machine only ever adds.
    let quickestMs = Number.POSITIVE_INFINITY;
    for (let round = 0; round < 5 && quickestMs >= 1_000; round++) {
      const world = await makeWorld();
      await world.engine.script({ do: "admit" }, HANG);
      const leftMs = await leaveAfter(await world.chat("hi", { stream, ...newSession() }), stream ? '"role"' : " ");
      quickestMs = Math.min(quickestMs, await cancelDelay(world, leftMs));
    }
    expect(quickestMs).toBeLessThan(1_000);
  });

  it("frees every choice", async () => {
    const world = await makeWorld();
    for (let index = 0; index < 3; index++) {
      await world.engine.script({ do: "admit" }, { do: "tokens", ids: ids("a") }, HANG);
    }
    const response = await world.chat("hi", { stream: true, n: 3 });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    await until(async () => {
      await reader.read();
      return (await world.engine.calls()).length === 3;
    });
    await reader.cancel();
    await until(async () => (await world.engine.calls()).every(({ cancelledMs }) => cancelledMs !== undefined), 10_000);
    for (const { cancelledMs, finished, abortedMs } of await world.engine.calls()) {
      expect(cancelledMs).toBeDefined();
      expect(finished).toBe(true);
      expect(abortedMs).toBeUndefined();
    }
  });

  it("waits for no engine when it was gone before its turn was opened", async () => {
    const world = await makeWorld();
    await register(world.engine, world.model);
    await world.engine.script(HANG);
    const body = JSON.stringify({ model: world.model, messages: [{ role: "user", content: "hi" }], stream: true });
    const headers = { authorization: `Bearer ${KEY_A}` };
    const signal = AbortSignal.abort();
    const request = new Request("http://edge.test/v1/chat/completions", { method: "POST", headers, body, signal });
    expect(await (await handle(request, env)).json()).toMatchObject({ error: { code: "cancelled" } });
  });

  it("is noticed without a session as well", async () => {
    const world = await makeWorld();
    await world.engine.script({ do: "admit" }, HANG);
    const response = await world.post("/v1/completions", { prompt: "hi", stream: true });
    const leftMs = await leaveAfter(response, ": hb");
    await cancelDelay(world, leftMs);
  });
});
