import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { isolateModelNames } from "../../workers/fleet/model-names.ts";
import { Fleet } from "../../workers/fleet.ts";
import { TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { MERGED, mergedTokenizerJson } from "./merged-words.ts";
import {
  ASSISTANT,
  BOS,
  END,
  edge,
  env,
  ids,
  KEY_A,
  KEY_B,
  makeWorld,
  register,
  says,
  textOf,
  USER,
  until,
  type World,
} from "./world.ts";

const newId = () => `test-${crypto.randomUUID()}`;
const auth = (key = KEY_A) => ({ headers: { authorization: `Bearer ${key}` } });

describe("sessions", () => {
  it("take only the new message, and the engine gets the whole log", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script(...says("one"));
    expect(await textOf(await chat("hi", { quire }))).toBe("one");
    await engine.script(...says("two"));
    expect(await textOf(await chat("ho", { quire }))).toBe("two");
    const first = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("one"), END];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...first, USER, ...ids("ho"), ASSISTANT]);
    expect(request.turnStart).toBe(first.length);
    expect(request.spans).toEqual([{ end: first.length, how: "dense" }]);
    expect(request.session).toEqual({ id: quire.session_id, bornMs: expect.any(Number) });
  });

  it("are named by the header as well, and the two must agree", async () => {
    const { chat, engine } = await makeWorld();
    const id = newId();
    const response = await chat("hi", {}, { headers: { "x-quire-session": id } });
    expect(response.headers.get("x-quire-session")).toBe(id);
    await response.text();
    expect((await engine.lastCall()).request.session?.id).toBe(id);
    const both = await chat("hi", { quire: { session_id: newId() } }, { headers: { "x-quire-session": id } });
    expect(both.status).toBe(400);
    expect(await both.json()).toMatchObject({ error: { param: "quire.session_id" } });
  });

  it("are found under their name as a path has it", async () => {
    const { chat, engine } = await makeWorld();
    const id = `user:${newId()}`;
    await engine.script(...says("one"));
    await (await chat("hi", { quire: { session_id: id } })).text();
    for (const name of [id, encodeURIComponent(id)]) {
      const response = await edge(`/v1/sessions/${name}`, auth());
      expect(response.status, name).toBe(200);
      expect(await response.json()).toMatchObject({ id });
    }
    // What a path cannot say is no name either.
    for (const name of ["%", "%ff", "a%2Fb"]) {
      const response = await edge(`/v1/sessions/${name}`, auth());
      expect(response.status, name).toBe(400);
      expect(await response.json()).toMatchObject({ error: { code: "invalid_request", param: "id" } });
    }
    const deleted = await edge(`/v1/sessions/${encodeURIComponent(id)}`, { ...auth(), method: "DELETE" });
    expect(deleted.status).toBe(200);
    expect(await deleted.json()).toMatchObject({ id, deleted: true });
  });

  it("keep the exact ids of a reply that would be tokenized otherwise", async () => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const quire = { session_id: newId() };
    await engine.script(...says("abc"));
    await (await chat("ab", { quire })).text();
    expect((await engine.lastCall()).request.tokens).toEqual([BOS, USER, MERGED.ab, ASSISTANT]);
    await (await chat("abc", { quire })).text();
    const log = [BOS, USER, MERGED.ab, ASSISTANT, ...ids("abc"), END];
    expect((await engine.lastCall()).request.tokens).toEqual([...log, USER, MERGED.abc, ASSISTANT]);
    expect((await engine.lastCall()).request.turnStart).toBe(log.length);
  });

  it("give a reply that ended early its end tokens", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("cut") }, { do: "done", reason: "length" });
    await (await chat("hi", { quire })).text();
    await (await chat("ho", { quire })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("cut")];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, END, USER, ...ids("ho"), ASSISTANT]);
    expect(request.turnStart).toBe(log.length);
  });

  it("keep a reply that ended within a character, byte for byte", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script({ do: "admit" }, { do: "tokens", ids: [97, 0xe2, 0x82] }, { do: "done", reason: "length" });
    expect(await textOf(await chat("hi", { quire }))).toBe("a\uFFFD");
    await (await chat("ho", { quire })).text();
    const { tokens } = (await engine.lastCall()).request;
    expect(tokens).toEqual([BOS, USER, ...ids("hi"), ASSISTANT, 97, 0xe2, 0x82, END, USER, ...ids("ho"), ASSISTANT]);
  });

  it("recognize a transcript that is sent again, and cut the log where it differs", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    const transcript = [{ role: "user", content: "q1" }];
    const turn = async (reply: string) => {
      await engine.script(...says(reply));
      const content = await textOf(await chat(transcript, { quire }));
      transcript.push({ role: "assistant", content });
      return (await engine.lastCall()).request;
    };
    await turn("r1");
    transcript.push({ role: "user", content: "q2" });
    const second = await turn("r2");
    const one = [BOS, USER, ...ids("q1"), ASSISTANT, ...ids("r1"), END];
    expect(second.tokens).toEqual([...one, USER, ...ids("q2"), ASSISTANT]);
    expect(second.turnStart).toBe(one.length);
    transcript.splice(2, 2, { role: "user", content: "q3" });
    const third = await turn("r3");
    expect(third.tokens).toEqual([...one, USER, ...ids("q3"), ASSISTANT]);
    // Up to the letter that differs, which is the last common token.
    expect(third.turnStart).toBe(one.length + 2);
    expect(third.spans).toEqual([{ end: one.length + 2, how: "dense" }]);
    transcript.push({ role: "user", content: "q4" });
    const fourth = await turn("r4");
    expect(fourth.tokens.slice(0, fourth.turnStart)).toEqual([
      ...one,
      USER,
      ...ids("q3"),
      ASSISTANT,
      ...ids("r3"),
      END,
    ]);
    const info = await (await edge(`/v1/sessions/${quire.session_id}`, auth())).json();
    expect((info as { messages: { role: string }[] }).messages.map(({ role }) => role)).toEqual([
      "user",
      "assistant",
      "user",
      "assistant",
      "user",
      "assistant",
    ]);
  });

  it("take a user's repeated words as new words", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script(...says("a"));
    await (await chat("hi", { quire })).text();
    await (await chat("hi", { quire })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, 97, END];
    expect((await engine.lastCall()).request.tokens).toEqual([...log, USER, ...ids("hi"), ASSISTANT]);
  });

  it("cut ids and spans together at a stop string", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("good STOP bad") }, { do: "hang" });
    const response = await chat("hi", { quire, stop: " STOP" });
    expect(await response.json()).toMatchObject({
      choices: [{ message: { content: "good" }, finish_reason: "stop" }],
      usage: { completion_tokens: 9, prompt_tokens_details: { cached_tokens: 0 } },
    });
    const call = await engine.lastCall();
    // Ended by a cancel, not by a closed connection: so the usage arrived.
    expect(call.cancelledMs).toBeDefined();
    expect(call.abortedMs).toBeUndefined();
    await (await chat("ho", { quire })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("good")];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, END, USER, ...ids("ho"), ASSISTANT]);
    expect(request).toMatchObject({ turnStart: log.length, spans: [{ end: log.length, how: "dense" }] });
  });

  it("cut a token that a stop string cuts: its text is delivered and tokenized again", async () => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const quire = { session_id: newId() };
    const steps = [
      { do: "admit" as const },
      { do: "tokens" as const, ids: [97, MERGED["x\n"], 98] },
      { do: "hang" as const },
    ];
    await engine.script(...steps);
    expect(await textOf(await chat("hi", { quire, stop: ["\n"] }))).toBe("ax");
    await (await chat("ho", { quire })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, 97];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, 120, END, USER, ...ids("ho"), ASSISTANT]);
    expect(request.turnStart).toBe(log.length);
  });

  it("remember the engine's spans", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    const prompt = [BOS, USER, ...ids("hi"), ASSISTANT];
    const how = "quest.1:64@1";
    const spans = [
      { end: prompt.length, how: "dense" },
      { end: prompt.length + 2, how },
    ];
    await engine.script({ do: "admit" }, { do: "tokens", ids: [97, 98, END] }, { do: "done", reason: "stop", spans });
    await (await chat("hi", { quire })).text();
    await (await chat("ho", { quire })).text();
    const expected = [
      { end: prompt.length, how: "dense" },
      // The end token never ran: it will, as its neighbours did.
      { end: prompt.length + 3, how },
    ];
    expect((await engine.lastCall()).request.spans).toEqual(expected);
  });

  it("are described without their text, forked and deleted", async () => {
    const { chat, engine, model } = await makeWorld();
    const id = newId();
    await engine.script(...says("one"));
    await (await chat("hi", { quire: { session_id: id } })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("one"), END];
    const body = {
      id,
      object: "session",
      model,
      created: expect.any(Number),
      tokens: log.length,
      turns: 1,
      parent_id: null,
      persisted_tokens: 0,
      persist_pending: false,
    };
    const messages = [
      { role: "user", token_end: 5 },
      { role: "assistant", token_end: log.length - 1 },
    ];
    expect(await (await edge(`/v1/sessions/${id}`, auth())).json()).toEqual({ ...body, messages });
    const forked = await edge(`/v1/sessions/${id}/fork`, { method: "POST", ...auth() });
    const fork = (await forked.json()) as { id: string };
    expect(fork).toEqual({ ...body, id: expect.stringMatching(/^s-/), parent_id: id, messages });
    await (await chat("in the fork", { quire: { session_id: fork.id } })).text();
    const { request } = await engine.lastCall();
    expect(request.session).toEqual({ id: fork.id, parentId: id, bornMs: expect.any(Number) });
    expect(request).toMatchObject({ turnStart: log.length });
    expect(request.tokens.slice(0, log.length)).toEqual(log);
    expect(((await (await edge(`/v1/sessions/${id}`, auth())).json()) as { turns: number }).turns).toBe(1);
    const deleted = await edge(`/v1/sessions/${id}`, { method: "DELETE", ...auth() });
    expect(await deleted.json()).toEqual({ id, object: "session.deleted", deleted: true });
    const { bornMs } = (await engine.calls())[0]!.request.session!;
    expect(await engine.deletes()).toEqual([{ version: 1, namespace: request.namespace, sessionId: id, bornMs }]);
    for (const init of [auth(), { method: "DELETE", ...auth() }]) {
      const gone = await edge(`/v1/sessions/${id}`, init);
      expect(gone.status).toBe(404);
      expect(await gone.json()).toMatchObject({ error: { code: "session_not_found" } });
    }
    expect((await edge(`/v1/sessions/${id}/fork`, { method: "POST", ...auth() })).status).toBe(404);
    expect((await edge(`/v1/sessions/${fork.id}`, auth())).status).toBe(200);
    await (await chat("again", { quire: { session_id: id } })).text();
    expect((await engine.lastCall()).request.tokens).toEqual([BOS, USER, ...ids("again"), ASSISTANT]);
  });

  it("of two tenants never meet, whatever they are called", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await (await chat("secret", { quire })).text();
    const ofA = (await engine.lastCall()).request;
    await (await chat("other", { quire }, { key: KEY_B })).text();
    const ofB = (await engine.lastCall()).request;
    expect(ofB.tokens).toEqual([BOS, USER, ...ids("other"), ASSISTANT]);
    expect(ofA.namespace).toMatch(/^[0-9a-f]{64}$/);
    expect(ofB.namespace).not.toBe(ofA.namespace);
    await (await chat("more", { quire })).text();
    expect((await engine.lastCall()).request.namespace).toBe(ofA.namespace);
    const alone = `${quire.session_id}-a`;
    await (await chat("mine", { quire: { session_id: alone } })).text();
    for (const path of [`/v1/sessions/${alone}`]) {
      expect((await edge(path, auth(KEY_B))).status).toBe(404);
      expect((await edge(`${path}/fork`, { method: "POST", ...auth(KEY_B) })).status).toBe(404);
      expect((await edge(path, { method: "DELETE", ...auth(KEY_B) })).status).toBe(404);
      expect((await edge(path, auth())).status).toBe(200);
    }
  });

  it("belong to one model", async () => {
    const one = await makeWorld();
    const other = await makeWorld();
    const quire = { session_id: newId() };
    await (await one.chat("hi", { quire })).text();
    const response = await other.chat("hi", { quire });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { param: "model", code: "invalid_request" } });
  });

  it.each(["chat", "raw"])(
    "go on with their own model where the client leaves it open, whatever others are there: %s",
    async (kind) => {
      const one = await makeWorld();
      const other = await makeWorld();
      const session = newId();
      const limiter = vi.spyOn(TenantLimiter.prototype, "admit");
      onTestFinished(() => limiter.mockRestore());
      const ask = ({ post }: World, model: string) => {
        isolateModelNames.clear();
        const quire = { session_id: session };
        return kind === "chat"
          ? post("/v1/chat/completions", { model, quire, messages: [{ role: "user", content: "hi" }] })
          : post("/v1/completions", { model, quire, prompt: "hi" });
      };
      expect((await ask(one, one.model)).status).toBe(200);
      // Who is first for those who leave it open is another one when the first one's engine goes, or the fleet starts again.
      const resolve = vi.spyOn(Fleet.prototype, "resolveModel");
      onTestFinished(() => resolve.mockRestore());
      resolve.mockImplementation(async (name) => ({ status: "known", id: name === "default" ? other.model : name }));
      const askedCount = limiter.mock.calls.length;
      await register(other.engine, other.model);
      const response = await ask(one, "default");
      expect(response.status).toBe(200);
      expect(await response.json()).toMatchObject({ model: one.model });
      expect((await one.engine.calls()).map(({ request }) => request.turnStart > 0)).toEqual([false, true]);
      expect(limiter.mock.calls.length).toBeLessThanOrEqual(askedCount + 1);
      // Whoever names another one is told so; and so is whose session's model is gone.
      expect((await ask(other, other.model)).status).toBe(400);
      resolve.mockImplementation(async (name) =>
        name === "default" ? { status: "known", id: other.model } : { status: "no_engine" },
      );
      expect((await ask(one, "default")).status).toBe(503);
    },
  );

  it("do one turn at a time", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script({ do: "admit" }, { do: "wait", ms: 800 }, ...says("slow").slice(1));
    const slow = chat("hi", { quire });
    await until(async () => (await engine.calls()).length === 1);
    const busy = await chat("ho", { quire });
    expect(busy.status).toBe(409);
    expect(busy.headers.get("retry-after")).toBe("1");
    expect(await busy.json()).toMatchObject({ error: { code: "session_busy" } });
    expect((await edge(`/v1/sessions/${quire.session_id}`, { method: "DELETE", ...auth() })).status).toBe(409);
    expect(await textOf(await slow)).toBe("slow");
    expect((await chat("ho", { quire })).status).toBe(200);
  });

  it("survive their object: a new one reads the same log", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await engine.script(...says("kept"));
    await (await chat("hi", { quire })).text();
    const stub = sessionOf(env, await namespaceOf("a", env.QUIRE_TENANT_SALT), quire.session_id);
    await runInDurableObject(stub, (instance: object) => {
      (instance as { marker?: boolean }).marker = true;
    });
    await evictDurableObject(stub);
    const marker = await runInDurableObject(stub, (instance: object) => (instance as { marker?: boolean }).marker);
    expect(marker).toBeUndefined();
    await (await chat("ho", { quire })).text();
    const log = [BOS, USER, ...ids("hi"), ASSISTANT, ...ids("kept"), END];
    expect((await engine.lastCall()).request.tokens).toEqual([...log, USER, ...ids("ho"), ASSISTANT]);
    expect((await engine.lastCall()).request.turnStart).toBe(log.length);
  });

  it("hold logs and messages larger than one row", { timeout: 60_000 }, async () => {
    const { engine, model } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const quire = { session_id: newId() };
    // More than a row of ids, and than a part of a text (with fewer ids than a prompt may have), and no more: the engine's beats wait while it is read.
    // On a busy machine that may take longer than an engine is believed without them, so time stands still.
    const time = vi.spyOn(Date, "now").mockReturnValue(Date.now());
    onTestFinished(() => time.mockRestore());
    const long = "abcé".repeat(212_000);
    const ask = async (content: string) => {
      await register(engine, model, { contextTokensMax: 4_000_000 });
      const response = await edge("/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${KEY_A}` },
        body: JSON.stringify({ model, messages: [{ role: "user", content }], quire }),
      });
      return textOf(response);
    };
    await engine.script(...says("read"));
    expect(await ask(long)).toBe("read");
    expect(await ask("and?")).toBe("ok");
    const { request } = await engine.lastCall();
    const [asked] = await engine.calls();
    const letters = new Map<number, number[]>([
      [MERGED.ab, ids("ab")],
      [MERGED.abc, ids("abc")],
    ]);
    const isSame = (a: readonly number[], b: readonly number[]) =>
      a.length === b.length && a.every((id, index) => id === b[index]);
    const prompt = asked?.request.tokens ?? [];
    const spelled = prompt.flatMap((id) => letters.get(id) ?? [id]);
    expect(isSame(spelled, [BOS, USER, ...ids(long), ASSISTANT])).toBe(true);
    const log = [...prompt, ...ids("read"), END];
    expect(request.turnStart).toBe(log.length);
    expect(isSame(request.tokens, [...log, USER, ...ids("and?"), ASSISTANT])).toBe(true);
  });
});
