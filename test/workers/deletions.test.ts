/** Sessions that are deleted: which engines hear of it and when, also those that were not there, and what a session of the same name is afterwards. */
import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { Deletions, type EndedSession } from "../../workers/fleet/deletions.ts";
import { Fleet, fleetOf } from "../../workers/fleet.ts";
import type { PickedEngine } from "../../workers/fleet-table.ts";
import { packCommit } from "../../workers/session-log/log-image.ts";
import type { SessionMeta } from "../../workers/session-log/log-store.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { edge, env, FakeEngine, hurry, ids, KEY_A, makeWorld, register, says, until, type World } from "./world.ts";

const newId = () => `d-${crypto.randomUUID()}`;
const auth = { headers: { authorization: `Bearer ${KEY_A}` } };
const remove = (id: string) => edge(`/v1/sessions/${id}`, { method: "DELETE", ...auth });
const deletedIds = async (engine: FakeEngine) => (await engine.deletes()).map(({ sessionId }) => sessionId);

/** A session of one turn. */
async function begin({ chat }: World, id = newId()): Promise<string> {
  await (await chat("hi", { quire: { session_id: id } })).text();
  return id;
}

/** Time goes on by so much, until the test is over. */
function pass(ms: number): void {
  const now = Date.now;
  Date.now = () => now() + ms;
  onTestFinished(() => {
    Date.now = now;
  });
}

describe("a session that is deleted", () => {
  it("is ended by every engine of its model before its client hears of it, and by no other", async () => {
    const world = await makeWorld();
    const [second, stranger] = [new FakeEngine(), new FakeEngine()];
    const id = await begin(world);
    await Promise.all([register(second, world.model), register(stranger, "another-model")]);
    const { bornMs } = (await world.engine.lastCall()).request.session!;
    expect((await remove(id)).status).toBe(200);
    for (const engine of [world.engine, second])
      expect(await engine.deletes()).toEqual([
        { version: 1, namespace: expect.any(String), sessionId: id, bornMs: bornMs as number },
      ]);
    expect(await stranger.deletes()).toEqual([]);
    await register(second, world.model);
    await register(stranger, "another-model");
    expect([await deletedIds(second), await deletedIds(stranger)]).toEqual([[id], []]);
  });

  it("while no engine is there is ended by the first one that comes, also when the fleet was lost meanwhile, once", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    const fleet = fleetOf(env, await namespaceOf("a", env.QUIRE_TENANT_SALT));
    await evictDurableObject(fleet);
    expect((await remove(id)).status).toBe(200);
    expect(await world.engine.deletes()).toEqual([]);
    await evictDurableObject(fleet);
    const late = new FakeEngine();
    await register(late, world.model);
    await until(async () => (await late.deletes()).length > 0);
    expect(await deletedIds(late)).toEqual([id]);
    await register(late, world.model);
    await register(late, world.model);
    expect(await deletedIds(late)).toEqual([id]);
  });

  it("is told again to an engine that failed, with its next beat", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    await world.engine.deleteAnswer("failed");
    expect((await remove(id)).status).toBe(200);
    await world.engine.deleteAnswer("done");
    await register(world.engine, world.model);
    await until(async () => (await world.engine.deletes()).length === 2);
    await register(world.engine, world.model);
    expect(await deletedIds(world.engine)).toEqual([id, id]);
  });

  it("waits for no engine that says nothing for longer than one may be silent", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    await world.engine.deleteAnswer("none");
    const hurried = hurry(LIMITS.engineExpiryMs, 50);
    onTestFinished(() => hurried.mockRestore());
    expect((await remove(id)).status).toBe(200);
    expect(await deletedIds(world.engine)).toEqual([id]);
    expect((await edge(`/v1/sessions/${id}`, auth)).status).toBe(404);
  });

  it("is heard of by an engine that was away before it gets a turn again", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    const other = new FakeEngine();
    await register(other, world.model);
    pass(LIMITS.engineExpiryMs + 1);
    await register(world.engine, world.model);
    expect((await remove(id)).status).toBe(200);
    expect(await other.deletes()).toEqual([]);
    await register(other, world.model);
    expect(await deletedIds(other)).toEqual([id]);
  });

  it("is there as before when the fleet takes no note of it, and can be deleted again", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    const noting = vi.spyOn(Fleet.prototype, "endSession").mockRejectedValueOnce(new Error("lost"));
    onTestFinished(() => noting.mockRestore());
    expect((await remove(id)).status).toBe(500);
    expect((await edge(`/v1/sessions/${id}`, auth)).status).toBe(200);
    expect((await remove(id)).status).toBe(200);
    expect((await edge(`/v1/sessions/${id}`, auth)).status).toBe(404);
  });

  it("is not written again by a turn whose Worker asks twice", async () => {
    const namespace = await namespaceOf("a", env.QUIRE_TENANT_SALT);
    const id = newId();
    const stub = sessionOf(env, namespace, id);
    const meta: SessionMeta = {
      ...{ id, namespace, model: "m", kind: "raw", named: true, createdS: 1, turnCount: 1, version: newId() },
    };
    const text = { keepTokens: 0, appendTokens: ids("x"), keepMessages: 0, appendMessages: [] };
    const commit = packCommit({ meta, ...text, spans: [{ end: 1, how: "dense" }] });
    expect(await stub.write("turn", undefined, commit)).toBe(true);
    expect(await stub.remove()).toBe(true);
    expect(await stub.write("turn", undefined, commit)).toBe(true);
    expect(await stub.info()).toBeUndefined();
    // Another turn begins it anew.
    const other = packCommit({ meta: { ...meta, version: newId() }, ...text, spans: [{ end: 1, how: "dense" }] });
    expect(await stub.write("another", undefined, other)).toBe(true);
    expect(await stub.info()).toBeDefined();
  });
});

describe("when a session began", () => {
  it("is told with each of its turns, by whatever engine, and is another time for one that follows it or was forked", async () => {
    const world = await makeWorld();
    const { chat, engine } = world;
    const startMs = Date.now();
    const id = await begin(world);
    await engine.script({ do: "status", status: 500 });
    await engine.script(...says("b"));
    await (await chat("more", { quire: { session_id: id } })).text();
    const forked = await edge(`/v1/sessions/${id}/fork`, { method: "POST", ...auth });
    const fork = ((await forked.json()) as { id: string }).id;
    await (await chat("in the fork", { quire: { session_id: fork } })).text();
    await remove(id);
    await begin(world, id);
    const born = (await engine.calls()).map(({ request }) => [request.session?.id, request.session?.bornMs as number]);
    const [first] = born;
    expect(first![1]).toBeGreaterThanOrEqual(startMs);
    expect(born.filter(([name]) => name === id).slice(0, -1)).toEqual(born.slice(0, -2).map(() => first));
    expect(born.at(-2)).toEqual([fork, expect.any(Number)]);
    expect(born.at(-2)![1]).toBeGreaterThan(first![1] as number);
    expect(born.at(-1)![1]).toBeGreaterThan(first![1] as number);
  });

  it("is the second in which it was created, for a log of before", async () => {
    const world = await makeWorld();
    const id = await begin(world);
    const stub = sessionOf(env, await namespaceOf("a", env.QUIRE_TENANT_SALT), id);
    const { createdS } = (await stub.info())!;
    await runInDurableObject(stub, (_: object, state) => {
      const [row] = state.storage.sql.exec("SELECT json FROM meta").toArray();
      const { bornMs: _born, ...meta } = JSON.parse(String(row!.json)) as SessionMeta;
      state.storage.sql.exec("UPDATE meta SET json = ?", JSON.stringify(meta));
    });
    await evictDurableObject(stub);
    await remove(id);
    expect(await world.engine.deletes()).toMatchObject([{ sessionId: id, bornMs: createdS * 1_000 }]);
  });
});

describe("what engines have to hear of", () => {
  const session = (id: string, model = "m"): EndedSession => ({ namespace: "00", id, model, bornMs: 1 });
  const engine = (engineId: string): PickedEngine => ({ engineId, url: "http://e", contextTokensMax: 1 });

  /** Deletions of a Fleet object of their own, with engines that answer when they are told to. */
  function inObject<T>(
    act: (world: {
      open(): Deletions;
      told: string[];
      clock: { ms: number };
      fail: Set<string>;
      rows(): number;
      peak(): number;
      tries(): number;
    }) => Promise<T>,
  ): Promise<T> {
    const fleet = env.FLEET.get(env.FLEET.newUniqueId());
    return runInDurableObject(fleet, async (_: object, { storage }) => {
      const [told, clock, fail] = [[] as string[], { ms: 0 }, new Set<string>()];
      let [running, peak, tries] = [0, 0, 0];
      const open = () =>
        new Deletions({
          sql: storage.sql,
          engines: () => [engine("e1"), engine("e2")],
          tell: async ({ engineId }, { id }) => {
            tries += 1;
            running += 1;
            peak = Math.max(peak, running);
            await new Promise((resolve) => setTimeout(resolve, 1));
            running -= 1;
            if (fail.has(engineId)) throw new Error("down");
            told.push(`${engineId} ${id}`);
          },
          onFailure: () => undefined,
          now: () => clock.ms,
        });
      const rows = () => Number(storage.sql.exec("SELECT count(*) AS n FROM deletions").one().n);
      return await act({ open, told, clock, fail, rows, peak: () => peak, tries: () => tries });
    });
  }

  it("is told to each once, a few at a time, and kept until one has heard and all others had the time to come back", () =>
    inObject(async ({ open, told, clock, fail, rows, peak }) => {
      const first = open();
      fail.add("e2");
      for (let at = 0; at < 40; at++) await first.add(session(`s${at}`));
      expect(told).toHaveLength(40);
      expect(rows()).toBe(40);
      fail.delete("e2");
      await Promise.all([first.tellAll(engine("e2"), "m"), first.tellAll(engine("e2"), "m")]);
      expect(told).toHaveLength(80);
      expect(peak()).toBe(LIMITS.deletionCallsMax);
      await first.tellAll(engine("e3"), "other");
      expect(told).toHaveLength(80);
      clock.ms = LIMITS.deletionKeepMs;
      const again = open();
      await again.tellAll(engine("e3"), "m");
      expect(told).toHaveLength(120);
      clock.ms += 1;
      await again.tellAll(engine("e4"), "m");
      expect(told).toHaveLength(120);
      expect(rows()).toBe(0);
    }));

  it("is not all tried on an engine that fails: the rest waits for its next beat", () =>
    inObject(async ({ open, told, fail, tries }) => {
      const deletions = open();
      for (let at = 0; at < 40; at++) await deletions.add(session(`s${at}`));
      fail.add("e3");
      const before = tries();
      await deletions.tellAll(engine("e3"), "m");
      expect(tries() - before).toBe(LIMITS.deletionCallsMax);
      fail.clear();
      await deletions.tellAll(engine("e3"), "m");
      expect(told.filter((line) => line.startsWith("e3 "))).toHaveLength(40);
    }));

  it("is kept while no engine has heard of it, for as long as a session is, and never more than there is room for", () =>
    inObject(async ({ open, told, clock, fail, rows }) => {
      const deletions = open();
      fail.add("e1").add("e2");
      await deletions.add(session("lost"));
      fail.clear();
      await deletions.add(session("heard"));
      clock.ms = LIMITS.sessionIdleMsMax;
      await open().tellAll(engine("e3"), "other");
      expect(rows()).toBe(1);
      fail.add("e3");
      const again = open();
      await again.tellAll(engine("e3"), "m");
      expect(rows()).toBe(1);
      clock.ms += 1;
      await again.tellAll(engine("e3"), "m");
      expect([rows(), told.filter((line) => line.endsWith("lost"))]).toEqual([0, []]);
    }));
});
