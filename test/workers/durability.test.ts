import { describe, expect, it } from "vitest";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { FleetTable } from "../../workers/fleet-table.ts";
import { edge, FakeEngine, heartbeatOf, KEY_A, KEY_B, makeWorld, register, says, until } from "./world.ts";

const newId = () => `durable-${crypto.randomUUID()}`;

async function describeSession(id: string, key = KEY_A): Promise<Record<string, unknown>> {
  const response = await edge(`/v1/sessions/${id}`, { headers: { authorization: `Bearer ${key}` } });
  return response.json();
}

describe("how much of a session is durable", () => {
  it("is what the engine of its last turn says, whoever else is less busy", async () => {
    const { chat, engine, model } = await makeWorld();
    const id = newId();
    await (await chat("hi", { quire: { session_id: id } })).text();
    const idle = new FakeEngine();
    await register(idle, model);
    await register(engine, model, { queuedCount: 60, draining: true });
    await engine.storedStatus({ persistedTokens: 0, generation: 0, pending: true });
    expect(await describeSession(id)).toMatchObject({ tokens: 8, persisted_tokens: 0, persist_pending: true });
    await engine.storedStatus({ persistedTokens: 7, generation: 1, pending: false });
    expect(await describeSession(id)).toMatchObject({ tokens: 8, persisted_tokens: 7, persist_pending: false });
    // As after a client left and the engine had computed more than it was given.
    await engine.storedStatus({ persistedTokens: 11, generation: 2, pending: false });
    expect(await describeSession(id)).toMatchObject({ tokens: 8, persisted_tokens: 8, persist_pending: false });
    expect(await idle.statusRequests()).toEqual([]);
    const { namespace } = (await engine.lastCall()).request;
    const asked = { version: 1, namespace, sessionId: id };
    expect(await engine.statusRequests()).toEqual([asked, asked, asked]);
  });

  it("is pending while a turn runs", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: newId() };
    await (await chat("hi", { quire })).text();
    await engine.storedStatus({ persistedTokens: 7, generation: 1, pending: false });
    await engine.script({ do: "admit" }, { do: "wait", ms: 500 }, ...says("slow").slice(1));
    const slow = chat("ho", { quire });
    await until(async () => (await engine.calls()).length === 2);
    expect(await describeSession(quire.session_id)).toMatchObject({ persisted_tokens: 7, persist_pending: true });
    await (await slow).text();
    expect(await describeSession(quire.session_id)).toMatchObject({ persisted_tokens: 7, persist_pending: false });
  });

  it.each([
    ["says nothing", undefined],
    ["answers nonsense", { persistedTokens: "many" }],
  ])("is unknown when the engine %s, and the rest is told", async (_, status) => {
    const { chat, engine } = await makeWorld();
    const id = newId();
    await (await chat("hi", { quire: { session_id: id } })).text();
    await engine.storedStatus(status);
    expect(await describeSession(id)).toMatchObject({ id, tokens: 8, persisted_tokens: null, persist_pending: null });
    expect(await engine.statusRequests()).toHaveLength(1);
  });

  it("is asked for nobody else's session", async () => {
    const { chat, engine } = await makeWorld();
    const id = newId();
    await (await chat("hi", { quire: { session_id: id } })).text();
    expect(await describeSession(id, KEY_B)).toMatchObject({ error: { code: "session_not_found" } });
    expect(await engine.statusRequests()).toEqual([]);
  });
});

describe("the engine to ask", () => {
  const beat = (changes: object = {}): EngineHeartbeat =>
    heartbeatOf(new FakeEngine(), "m", changes) as EngineHeartbeat;

  it("is the one that served the session, draining or not; without it the best one that stays, and at last any", () => {
    const table = new FleetTable();
    const [busy, idle, draining] = [beat({ queuedCount: 9 }), beat(), beat({ draining: true })];
    table.heartbeat(draining, 0);
    const find = (engineId?: string, nowMs = 0) => table.find({ model: "m", engineId }, nowMs)?.engineId;
    expect(find()).toBe(draining.engineId);
    table.heartbeat(busy, 0);
    expect(find()).toBe(busy.engineId);
    table.heartbeat(idle, 0);
    expect(find()).toBe(idle.engineId);
    expect(find("gone")).toBe(idle.engineId);
    expect(find(busy.engineId)).toBe(busy.engineId);
    expect(find(draining.engineId)).toBe(draining.engineId);
    expect(table.find({ model: "other", engineId: busy.engineId }, 0)).toBeUndefined();
    expect(find(busy.engineId, LIMITS.engineExpiryMs + 1)).toBeUndefined();
  });

  it("is charged no turn", () => {
    const table = new FleetTable();
    const [a, b] = [beat({ engineId: "a" }), beat({ engineId: "b" })];
    for (const engine of [a, b]) table.heartbeat(engine, 0);
    for (let count = 0; count < 3; count++) table.find({ model: "m", engineId: "a" }, 0);
    expect(table.pick({ model: "m", excludeIds: [] }, 0)?.engineId).toBe("a");
  });
});
