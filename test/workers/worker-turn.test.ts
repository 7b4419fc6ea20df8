/** First turns of conversations that name no session: they run in the Worker, and their session's object hears of them afterwards. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it, vi } from "vitest";
import { Fleet } from "../../workers/fleet.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { sessionOf } from "../../workers/stubs.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ASSISTANT,
  BOS,
  END,
  edge,
  env,
  eventsOf,
  ids,
  KEY_A,
  makeWorld,
  says,
  USER,
  until,
  type World,
} from "./world.ts";

const headers = { authorization: `Bearer ${KEY_A}` };
const PROMPT = [BOS, USER, ...ids("hi"), ASSISTANT];

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
    expect(tokens).toEqual([...PROMPT, ...ids("ho"), END, USER, ...ids("again"), ASSISTANT]);
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
    const { response, session } = await begin(world, [
      { do: "admit" },
      { do: "tokens", ids: ids("abc") },
      { do: "hang" },
    ]);
    await untilHeld(world, session);
    expect((await edge(`/v1/sessions/${session}/stream`, { method: "DELETE", headers })).status).toBe(200);
    expect(await eventsOf(response)).not.toContain("[DONE]");
    await (await world.chat("ho", { quire: { session_id: session } })).text();
    const { tokens } = (await world.engine.lastCall()).request;
    expect(tokens).toEqual([...PROMPT, ...ids("abc"), END, USER, ...ids("ho"), ASSISTANT]);
  });

  it("leaves what its client was given when that goes away", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, [
      { do: "admit" },
      { do: "tokens", ids: ids("abc") },
      { do: "hang" },
    ]);
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

  it("takes the turn that was written first when it was lost and another one came", async () => {
    const world = await makeWorld();
    const { response, session } = await begin(world, hangs);
    await lose(world, session);
    await world.engine.script(...says("other"));
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
    await world.engine.release();
    expect((await eventsOf(response)).at(-1)).toMatchObject({ error: { code: "session_busy" } });
    const { messages } = (await (await describeSession(session)).json()) as { messages: object[] };
    expect(messages).toHaveLength(2);
    await (await world.chat("and", { quire: { session_id: session } })).text();
    const { tokens } = (await world.engine.lastCall()).request;
    expect(tokens.slice(0, 5)).toEqual([BOS, USER, ...ids("ho"), ASSISTANT]);
  });

  it("is free again when the Worker that holds it is gone", async () => {
    const stub = sessionOf(env, `n-${crypto.randomUUID()}`, "s");
    const hold = await stub.hold("a");
    expect(hold).toBeDefined();
    expect(await stub.hold("b")).toBeUndefined();
    // The platform disposes of what a Worker had when it ends.
    hold?.[Symbol.dispose]();
    await until(async () => {
      const other = await stub.hold("b");
      other?.[Symbol.dispose]();
      return other !== undefined;
    });
  });
});
