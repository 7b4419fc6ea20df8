/** Turns that run in the Worker: what they begin with is a guess, and what their session's object says is so. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { Fleet } from "../../workers/fleet.ts";
import { TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { TenantIndex } from "../../workers/tenant-index.ts";
import { isolateSessions, KnownSessions, unknownSession } from "../../workers/worker-turn/known-sessions.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ABC_AND_NO_END,
  edge,
  env,
  eventsOf,
  ids,
  KEY_A,
  logOf,
  makeWorld,
  says,
  streamOf,
  until,
  type World,
} from "./world.ts";

const headers = { authorization: `Bearer ${KEY_A}` };
const PROMPT = logOf(["hi"]);

/** What is asked is new to its tenant: every model is. */
async function begin(world: World, steps: Step[]): Promise<{ response: Response; session: string }> {
  await world.engine.script(...steps);
  const response = await world.chat("hi", { stream: true });
  expect(response.status).toBe(200);
  return { response, session: response.headers.get("x-quire-session") ?? "" };
}

async function stubOf({ engine }: World, session: string) {
  return sessionOf(env, (await engine.lastCall()).request.namespace, session);
}

/** Waits until the session's object knows of the turn. */
async function untilHeld(world: World, session: string): Promise<void> {
  const stub = await stubOf(world, session);
  await until(() =>
    runInDurableObject(stub, (object: SessionLog) => (object as unknown as { isBusy: boolean }).isBusy),
  );
}

const describeSession = (id: string) => edge(`/v1/sessions/${id}`, { headers });

describe("the first turn of a conversation without a name", () => {
  it("needs no object before its first byte, and is in its session's log when it has ended", async () => {
    const world = await makeWorld();
    const asked = vi.spyOn(SessionLog.prototype, "fetch");
    const { response, session } = await begin(world, says("ho"));
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
    expect(asked).not.toHaveBeenCalled();
    asked.mockRestore();
    expect(await (await describeSession(session)).json()).toMatchObject({ id: session, turns: 1, tokens: 8 });
    await (await world.chat("again", { quire: { session_id: session } })).text();
    const { tokens } = (await world.engine.lastCall()).request;
    expect(tokens).toEqual(logOf(["hi", "ho"], ["again"]));
  });

  it("goes where one has just ended without asking the fleet", async () => {
    const world = await makeWorld();
    const picked = vi.spyOn(Fleet.prototype, "pick");
    let turnCount = 0;
    // At most so many: a machine that takes a second between two turns asks for each.
    while (turnCount === picked.mock.calls.length && turnCount < 200) {
      await (await world.chat(`question ${turnCount}`)).text();
      turnCount += 1;
    }
    expect(picked.mock.calls).toHaveLength(turnCount - 1);
    picked.mockRestore();
  });

  it("has its session to itself, which is there no sooner than its end", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, [{ do: "admit" }, { do: "hold" }, ...says("ho").slice(1)]);
    await untilHeld(world, session);
    expect((await describeSession(session)).status).toBe(404);
    expect((await world.chat("me too", { quire: { session_id: session } })).status).toBe(409);
    expect((await edge(`/v1/sessions/${session}`, { method: "DELETE", headers })).status).toBe(409);
    await world.engine.release();
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
    expect((await world.chat("me too", { quire: { session_id: session } })).status).toBe(200);
  });

  it("ends when it is asked to, and what it said stays in the log", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, ABC_AND_NO_END);
    await untilHeld(world, session);
    expect((await streamOf(session, { method: "DELETE" })).status).toBe(200);
    const events = await eventsOf(response);
    expect(events).not.toContain("[DONE]");
    expect(events.at(-1)).toMatchObject({ error: { code: "cancelled" } });
    await (await world.chat("ho", { quire: { session_id: session } })).text();
    const { tokens } = (await world.engine.lastCall()).request;
    expect(tokens).toEqual(logOf(["hi", "abc"], ["ho"]));
  });

  it("leaves what its client was given when that goes away", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, ABC_AND_NO_END);
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    for (let text = ""; !text.includes("abc"); ) text += new TextDecoder().decode((await reader.read()).value);
    await reader.cancel();
    await until(async () => (await describeSession(session)).status === 200);
    expect(await (await describeSession(session)).json()).toMatchObject({ tokens: PROMPT.length + 3, turns: 1 });
    expect((await world.engine.lastCall()).finished).toBe(true);
  });

  it("that fails leaves no session", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, [
      { do: "admit" },
      { do: "fail", code: "internal", message: "no" },
    ]);
    expect((await eventsOf(response)).at(-1)).toMatchObject({ error: { code: "internal" } });
    expect((await describeSession(session)).status).toBe(404);
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
  });
});

describe("its session's object", () => {
  const hangs: Step[] = [{ do: "admit" }, { do: "tokens", ids: ids("a") }, { do: "hold" }, ...says("b").slice(1)];
  const lose = async (world: World, session: string) => {
    await untilHeld(world, session);
    const lost = runInDurableObject(await stubOf(world, session), (_, state) => state.abort("lost"));
    await lost.catch(() => undefined);
  };

  it("may be lost in mid-turn: the turn goes on and is written", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, hangs);
    await lose(world, session);
    await world.engine.release();
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
    expect(await (await describeSession(session)).json()).toMatchObject({ tokens: PROMPT.length + 3, turns: 1 });
  });

  it("is the turn's again when it was lost: another one waits for its end", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, hangs);
    await lose(world, session);
    await untilHeld(world, session);
    const other = () => world.chat("ho", { quire: { session_id: session } });
    expect((await other()).status).toBe(409);
    await world.engine.release();
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
    await (await other()).text();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "ab"], ["ho"]));
  });

  it("takes the turn that was written first where it could not be held", async () => {
    const held = vi.spyOn(SessionLog.prototype, "hold").mockResolvedValueOnce("busy");
    const world = await makeWorld();
    const { response, session } = await begin(world, hangs);
    await until(() => held.mock.calls.length === 1);
    held.mockRestore();
    await world.engine.script(...says("other"));
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
    const settled = vi.spyOn(TenantLimiter.prototype, "settle");
    await world.engine.release();
    expect((await eventsOf(response)).at(-1)).toMatchObject({ error: { code: "session_busy" } });
    // Its client was given all of it, and it counts.
    expect(settled.mock.calls[0]?.[1]).toBe(PROMPT.length + 3);
    settled.mockRestore();
    const { messages } = (await (await describeSession(session)).json()) as { messages: object[] };
    expect(messages).toHaveLength(2);
    await (await world.chat("and", { quire: { session_id: session } })).text();
    const { tokens } = (await world.engine.lastCall()).request;
    expect(tokens).toEqual(logOf(["ho", "other"], ["and"]));
  });

  it("may be lost just after it has written the turn: that is in its log once, and its client hears of its end", async () => {
    const write = SessionLog.prototype.write;
    const lost = vi.spyOn(SessionLog.prototype, "write").mockImplementationOnce(async function (
      this: SessionLog,
      ...asked
    ) {
      await write.apply(this, asked);
      throw new Error("lost");
    });
    const world = await makeWorld();
    const { response, session } = await begin(world, says("ho"));
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
    expect(lost).toHaveBeenCalledTimes(2);
    lost.mockRestore();
    expect(await (await describeSession(session)).json()).toMatchObject({ turns: 1, tokens: 8 });
  });

  it("is free again when the Worker that holds it is gone", async () => {
    const stub = sessionOf(env, `n-${crypto.randomUUID()}`, "s");
    const held = await stub.hold("a", undefined);
    if (held === "busy" || held === "long") throw new Error(held);
    expect(await stub.hold("b", undefined)).toBe("busy");
    // The platform disposes of what a Worker had when it ends.
    held[Symbol.dispose]();
    await until(async () => {
      const other = await stub.hold("b", undefined);
      if (typeof other !== "string") other[Symbol.dispose]();
      return other !== "busy";
    });
  });
});

const named = () => ({ quire: { session_id: `here-${crypto.randomUUID()}` } });

/** A session after one turn, as this isolate knows it, and how to make that known again when it is so no more. */
async function afterOneTurn(session: object) {
  const world = await makeWorld();
  const put = vi.spyOn(isolateSessions, "put");
  await world.engine.script(...says("one"));
  const response = await world.chat("hi", session);
  await response.text();
  const [known, commit] = put.mock.calls.at(-1) ?? [];
  put.mockRestore();
  if (!known || !commit) throw new Error("nothing is known of the session");
  const { id, namespace } = commit.meta;
  return { world, id, namespace, forgetLater: () => isolateSessions.put(known, commit) };
}

describe("a later turn", () => {
  it("goes to the engine with what is known here, and the object is asked beside it, once", async () => {
    const session = named();
    const { world } = await afterOneTurn(session);
    const [held, ran] = [vi.spyOn(SessionLog.prototype, "hold"), vi.spyOn(SessionLog.prototype, "fetch")];
    await (await world.chat("ho", session)).text();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["ho"]));
    expect(held).toHaveBeenCalledTimes(1);
    expect(await held.mock.results[0]?.value).toMatchObject({ isKnown: true });
    expect(ran).not.toHaveBeenCalled();
    vi.restoreAllMocks();
  });

  it("that began with a log which has changed since shows nothing of it, and goes on from the right one", async () => {
    const session = named();
    const { world, namespace, id, forgetLater } = await afterOneTurn(session);
    await world.engine.script(...says("two"));
    await (await world.chat("ho", session)).text();
    isolateSessions.take(namespace, id);
    forgetLater();
    await world.engine.script({ do: "admit" }, { do: "tokens", ids: ids("wrong") }, { do: "hang" });
    await world.engine.script(...says("right"));
    const text = await (await world.chat("and", { stream: true, ...session })).text();
    expect(text).toContain("right");
    expect(text).not.toContain("wrong");
    const [wrong, right] = (await world.engine.calls()).slice(2);
    expect(wrong?.request.tokens).toEqual(logOf(["hi", "one"], ["and"]));
    expect(right?.request.tokens).toEqual(logOf(["hi", "one"], ["ho", "two"], ["and"]));
    await until(async () => {
      const { abortedMs, cancelledMs } = (await world.engine.calls())[2] ?? {};
      return abortedMs !== undefined || cancelledMs !== undefined;
    });
  });

  it("of a session that was deleted meanwhile begins it anew", async () => {
    const session = named();
    const { world, id } = await afterOneTurn(session);
    expect((await edge(`/v1/sessions/${id}`, { method: "DELETE", headers })).status).toBe(200);
    await (await world.chat("ho", session)).text();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["ho"]));
    expect(await (await describeSession(id)).json()).toMatchObject({ turns: 1 });
  });

  it("is refused while a turn of another Worker has the session, and none of its words come out", async () => {
    const session = named();
    const { world, namespace, id } = await afterOneTurn(session);
    const held = await sessionOf(env, namespace, id).hold("another", undefined);
    if (typeof held === "string") throw new Error(held);
    const response = await world.chat("ho", session);
    expect(response.status).toBe(409);
    expect(await response.json()).toMatchObject({ error: { code: "session_busy" } });
    held[Symbol.dispose]();
    await until(async () => (await world.chat("ho", session)).status === 200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["ho"]));
  });

  it("is refused as soon as that is known, and waits for no engine", async () => {
    const session = named();
    const { world, namespace, id } = await afterOneTurn(session);
    const held = await sessionOf(env, namespace, id).hold("another", undefined);
    if (typeof held === "string") throw new Error(held);
    await world.engine.script({ do: "deaf" });
    const { length } = await world.engine.calls();
    const startMs = Date.now();
    expect((await world.chat("ho", session)).status).toBe(409);
    expect(Date.now() - startMs).toBeLessThan(LIMITS.admissionMsMax);
    // The engine was called or not, as it came; nobody waits for it any more.
    await until(async () =>
      (await world.engine.calls()).slice(length).every(({ abortedMs }) => abortedMs !== undefined),
    );
    held[Symbol.dispose]();
  });

  it("runs in the object where the log is too long to leave it", async () => {
    const session = named();
    const { world } = await afterOneTurn(session);
    vi.spyOn(SessionLog.prototype, "hold").mockResolvedValueOnce("long");
    const ran = vi.spyOn(SessionLog.prototype, "fetch");
    expect((await world.chat("ho", session)).status).toBe(200);
    expect(ran).toHaveBeenCalledTimes(1);
    vi.restoreAllMocks();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["ho"]));
  });

  it("of a transcript that is known here asks no index, also where the log was another's meanwhile", async () => {
    const { world, id, namespace, forgetLater } = await afterOneTurn({});
    const talk = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "one" },
      { role: "user", content: "ho" },
    ];
    const asked = vi.spyOn(TenantIndex.prototype, "resolve");
    await world.engine.script(...says("two"));
    const second = await world.chat(talk);
    expect(second.headers.get("x-quire-session")).toBe(id);
    await second.text();
    isolateSessions.take(namespace, id);
    forgetLater();
    const third = await world.chat([...talk, { role: "assistant", content: "two" }, { role: "user", content: "and" }]);
    expect(third.headers.get("x-quire-session")).toBe(id);
    await third.text();
    expect(asked).not.toHaveBeenCalled();
    asked.mockRestore();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["ho", "two"], ["and"]));
  });
});

describe("what is known of sessions", () => {
  const metaOf = (id: string) => ({
    id,
    namespace: "n",
    model: "m",
    kind: "raw" as const,
    named: true,
    createdS: 0,
    turnCount: 1,
    version: id,
  });
  const turnOf = (id: string, tokenCount: number) => ({
    meta: metaOf(id),
    ...{ keepTokens: 0, appendTokens: new Uint32Array(tokenCount), keepMessages: 0, appendMessages: [], spans: [] },
  });

  it("counts the names of a prompt's blocks among what it takes", () => {
    const sessions = new KnownSessions({ bytesMax: 100_000, transcriptCountMax: 4 });
    const tokens = new Uint32Array(6_400);
    for (const id of ["a", "b"]) {
      const session = unknownSession(() => 0);
      session.memory.router.describe({ namespace: "n", tokens, turnStart: 0, spans: [], turnAgeMs: undefined });
      sessions.put(session, turnOf(id, 1));
    }
    expect(["a", "b"].map((id) => sessions.take("n", id)?.meta?.id)).toEqual([undefined, "b"]);
  });

  it("is bounded: who ended a turn longest ago goes first, and a log that is too long is not kept", () => {
    const sessions = new KnownSessions({ bytesMax: 100_000, transcriptCountMax: 4 });
    for (const id of ["a", "b", "c"])
      sessions.put(
        unknownSession(() => 0),
        turnOf(id, 10_000),
      );
    expect(["a", "b", "c"].map((id) => sessions.take("n", id)?.meta?.id)).toEqual([undefined, "b", "c"]);
    expect(sessions.take("n", "b")).toBeUndefined();
    sessions.put(
      unknownSession(() => 0),
      turnOf("long", LIMITS.logMemoryBytesMax),
    );
    expect(sessions.take("n", "long")).toBeUndefined();
    expect(sessions.take("m", "b")).toBeUndefined();
  });
});
