/** Sessions that nobody uses any more go, the others stay: the lists that have them asked, and those that no list has. */
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { enlist, listOf, SessionExpiry } from "../../workers/session-expiry.ts";
import { packCommit } from "../../workers/session-log/log-image.ts";
import { LogStore, type SessionMeta } from "../../workers/session-log/log-store.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { TenantIndex } from "../../workers/tenant-index.ts";
import { edge, env, hurry, ids, KEY_A, logOf, makeWorld, register, says, textOf, until, watchTimers } from "./world.ts";

const DAY_MS = 24 * 3_600_000;
const never = () => new Promise<never>(() => undefined);

/** Time goes on by so much, until the test is over. */
function pass(ms: number): void {
  const now = Date.now;
  Date.now = () => now() + ms;
  onTestFinished(() => {
    Date.now = now;
  });
}

/** A spy, until the test is over. */
function briefly<T extends { mockRestore(): void }>(spy: T): T {
  onTestFinished(() => spy.mockRestore());
  return spy;
}

/** A tenant of which nobody else knows. */
const newTenant = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(32)), (b) => b.toString(16).padStart(2, "0")).join("");

/** A session with a log of one turn, written as a Worker does it. */
class Kept {
  readonly namespace: string;
  readonly id: string;

  constructor(namespace: string, id = `s-${crypto.randomUUID()}`) {
    this.namespace = namespace;
    this.id = id;
  }

  get stub() {
    return sessionOf(env, this.namespace, this.id);
  }

  get objectId(): string {
    return this.stub.id.toString();
  }

  /** One more turn, now. @param meta what is said of how it ends */
  async use(meta: Partial<SessionMeta>): Promise<void> {
    const old = await runInDurableObject(this.stub, (_: object, state) => new LogStore(state.storage).meta());
    const commit = {
      meta: {
        ...{ id: this.id, namespace: this.namespace, model: "m", kind: "raw", named: true, createdS: 0 },
        ...{ turnCount: (old?.turnCount ?? 0) + 1, version: crypto.randomUUID(), ...meta },
      } satisfies SessionMeta,
      ...{ keepTokens: 0, appendTokens: ids("x"), keepMessages: 0, appendMessages: [] },
      spans: [{ end: 1, how: "dense" }],
    } as const;
    expect(await this.stub.write(crypto.randomUUID(), old?.version, packCommit(commit))).toBe(true);
  }

  /** The first turn of a session that a list has. */
  async begin(): Promise<this> {
    await enlist(env, { ...this, objectId: this.objectId, usedMs: Date.now() });
    await this.use({ usedMs: Date.now(), isListed: true });
    return this;
  }

  async isThere(): Promise<boolean> {
    return (await this.stub.info()) !== undefined;
  }

  meta(): Promise<SessionMeta | undefined> {
    return runInDurableObject(this.stub, (_: object, state) => new LogStore(state.storage).meta());
  }
}

const newSessions = (namespace: string, count: number) =>
  Promise.all(Array.from({ length: count }, () => new Kept(namespace).begin()));

type AnyStub = DurableObjectStub<SessionLog> | DurableObjectStub<SessionExpiry>;

const alarmOf = (stub: AnyStub) => runInDurableObject(stub, (_: object, state) => state.storage.getAlarm());

/** Names of what an object has stored. */
function storedIn(stub: AnyStub): Promise<string[]> {
  return runInDurableObject(stub, (_: object, { storage }) => {
    const tables = storage.sql
      .exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'")
      .toArray();
    return [...tables.map(({ name }) => String(name)), ...[...storage.kv.list()].map(([key]) => key)];
  });
}

/** When who is asked, in a list. */
function listed(list: DurableObjectStub<SessionExpiry>): Promise<Map<string, number>> {
  return runInDurableObject(list, (_: object, { storage }) => {
    const rows = storage.sql.exec("SELECT due_ms, id FROM sessions").toArray();
    return new Map(rows.map(({ id, due_ms: dueMs }) => [String(id), Number(dueMs)]));
  });
}

const isThereOf = (sessions: readonly Kept[]) => Promise.all(sessions.map((session) => session.isThere()));

describe("a list of sessions", () => {
  it("asks them all when the time has come, once; those that nobody used go, and nothing is left", async () => {
    const namespace = newTenant();
    const sessions = await newSessions(namespace, 3);
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    expect(dueMs - Date.now()).toBeGreaterThan(LIMITS.sessionIdleMsMax);
    expect(dueMs - Date.now()).toBeLessThanOrEqual(LIMITS.sessionIdleMsMax + DAY_MS);
    expect(await alarmOf(list)).toBe(dueMs);
    for (const { stub } of sessions) expect(await alarmOf(stub)).toBeNull();
    expect(await listed(list)).toEqual(new Map(sessions.map(({ objectId }) => [objectId, dueMs])));
    pass(dueMs - Date.now());
    const asked = briefly(vi.spyOn(SessionLog.prototype, "expire"));
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(asked).toHaveBeenCalledTimes(3);
    expect(await isThereOf(sessions)).toEqual([false, false, false]);
    for (const stub of [list, ...sessions.map((session) => session.stub)]) {
      expect(await storedIn(stub)).toEqual([]);
      expect(await alarmOf(stub)).toBeNull();
    }
    // The list is as good as new.
    const [again] = await newSessions(namespace, 1);
    await list.enter(again?.objectId ?? "", Date.now() + DAY_MS);
    expect((await listed(list)).size).toBe(1);
    expect(Math.abs(((await alarmOf(list)) ?? 0) - Date.now() - DAY_MS)).toBeLessThan(10_000);
  });

  it("has an alarm that rings by itself", async () => {
    const session = new Kept(newTenant());
    await session.use({ usedMs: Date.now() - LIMITS.sessionIdleMsMax, isListed: true });
    const list = env.SESSION_EXPIRY.get(env.SESSION_EXPIRY.newUniqueId());
    await list.enter(session.objectId, Date.now() + 200);
    await until(async () => !(await session.isThere()));
    await until(async () => (await storedIn(list)).length === 0);
    expect(await alarmOf(list)).toBeNull();
  });

  it("asks nobody before the time, also when its alarm rings", async () => {
    const namespace = newTenant();
    const sessions = await newSessions(namespace, 2);
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    const asked = briefly(vi.spyOn(SessionLog.prototype, "expire"));
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(asked).not.toHaveBeenCalled();
    expect((await listed(list)).size).toBe(2);
    expect(await alarmOf(list)).toBe(dueMs);
    expect(await isThereOf(sessions)).toEqual([true, true]);
  });

  it("holds nothing of the ids that clients gave, and a session once", async () => {
    const namespace = newTenant();
    const session = await new Kept(namespace, "me@example.com").begin();
    await session.begin();
    const { list } = listOf(env, { namespace, usedMs: Date.now() });
    expect([...(await listed(list)).keys()]).toEqual([expect.stringMatching(/^[0-9a-f]{64}$/)]);
    expect(await storedIn(list)).toEqual(["sessions"]);
  });

  it("leaves a session that was used meanwhile to the list of that day", async () => {
    const namespace = newTenant();
    const [used, unused] = (await newSessions(namespace, 2)) as [Kept, Kept];
    const first = listOf(env, { namespace, usedMs: Date.now() });
    pass(10 * DAY_MS);
    await used.use({ usedMs: Date.now(), isListed: true });
    expect(await alarmOf(used.stub)).toBeNull();
    const second = listOf(env, { namespace, usedMs: Date.now() });
    pass(first.dueMs - Date.now());
    expect(await runDurableObjectAlarm(first.list)).toBe(true);
    expect(await isThereOf([used, unused])).toEqual([true, false]);
    expect(await storedIn(first.list)).toEqual([]);
    expect(await alarmOf(first.list)).toBeNull();
    expect(await listed(second.list)).toEqual(new Map([[used.objectId, second.dueMs]]));
    expect(await alarmOf(second.list)).toBe(second.dueMs);
    pass(second.dueMs - Date.now());
    expect(await runDurableObjectAlarm(second.list)).toBe(true);
    expect(await used.isThere()).toBe(false);
    expect(await storedIn(second.list)).toEqual([]);
  });

  it("leaves a session in which a turn runs to today's", async () => {
    const namespace = newTenant();
    const session = await new Kept(namespace).begin();
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    pass(dueMs - Date.now());
    const held = await session.stub.hold("turn", (await session.meta())?.version);
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(await session.isThere()).toBe(true);
    const today = listOf(env, { namespace, usedMs: Date.now() });
    expect(await listed(today.list)).toEqual(new Map([[session.objectId, today.dueMs]]));
    if (typeof held !== "string") held[Symbol.dispose]();
  });

  it.each(["whose end failed", "who does not answer"])("asks again later %s", async (why) => {
    const namespace = newTenant();
    const sessions = await newSessions(namespace, 3);
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    pass(dueMs - Date.now());
    const expire = briefly(vi.spyOn(SessionLog.prototype, "expire"));
    if (why === "who does not answer") expire.mockImplementationOnce(never);
    else briefly(vi.spyOn(TenantIndex.prototype, "forget")).mockImplementationOnce(never);
    briefly(hurry(LIMITS.sessionMsMax, 2_000));
    expect(await runDurableObjectAlarm(list)).toBe(true);
    const left = await listed(list);
    const there = (
      await Promise.all(sessions.map(async (session) => ((await session.isThere()) ? session.objectId : [])))
    ).flat();
    expect(there).toHaveLength(1);
    expect([...left.keys()]).toEqual(there);
    for (const atMs of [...left.values(), (await alarmOf(list)) ?? 0]) {
      expect(Math.abs(atMs - Date.now() - LIMITS.expiryRetryMs)).toBeLessThan(10_000);
    }
    expire.mockClear();
    pass(LIMITS.expiryRetryMs);
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(expire).toHaveBeenCalledTimes(1);
    expect(await isThereOf(sessions)).toEqual([false, false, false]);
    expect(await storedIn(list)).toEqual([]);
  });

  it("loses nobody when it is lost while it asks", async () => {
    const namespace = newTenant();
    const sessions = await newSessions(namespace, 3);
    const { dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    const usedMs = Date.now();
    const list = () => listOf(env, { namespace, usedMs }).list;
    pass(dueMs - Date.now());
    const expire = briefly(vi.spyOn(SessionLog.prototype, "expire").mockImplementation(never));
    const ringing = runDurableObjectAlarm(list()).catch(() => undefined);
    await until(() => expire.mock.calls.length === 3);
    await runInDurableObject(list(), (_: object, state) => state.abort("lost")).catch(() => undefined);
    await ringing;
    expire.mockRestore();
    expect((await listed(list())).size).toBe(3);
    expect((await alarmOf(list())) ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(Date.now() + LIMITS.expiryRetryMs);
    pass(LIMITS.expiryRetryMs);
    expect(await runDurableObjectAlarm(list())).toBe(true);
    expect(await isThereOf(sessions)).toEqual([false, false, false]);
    expect(await storedIn(list())).toEqual([]);
  });

  it("asks so many at a time, and the next ones after a pause", async () => {
    const namespace = newTenant();
    const count = 2 * LIMITS.expiryBatchMax + 3;
    const sessions = await newSessions(namespace, count);
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    pass(dueMs - Date.now());
    const counts: number[] = [];
    while ((await alarmOf(list)) !== null) {
      expect(await runDurableObjectAlarm(list)).toBe(true);
      const nextMs = await alarmOf(list);
      counts.push(nextMs === null ? 0 : (await listed(list)).size);
      expect((nextMs ?? 0) - Date.now()).toBeLessThanOrEqual(LIMITS.expiryPauseMs);
    }
    expect(counts).toEqual([count - LIMITS.expiryBatchMax, 3, 0]);
    expect(await isThereOf(sessions)).not.toContain(true);
    expect(await storedIn(list)).toEqual([]);
  });

  it("keeps a session that is entered while it is asked: clocks differ", async () => {
    const namespace = newTenant();
    const session = await new Kept(namespace).begin();
    const usedMs = Date.now();
    const { list, dueMs } = listOf(env, { namespace, usedMs });
    pass(dueMs - Date.now());
    const expire = vi.spyOn(SessionLog.prototype, "expire").mockImplementationOnce(async () => {
      await enlist(env, { namespace, objectId: session.objectId, usedMs });
    });
    onTestFinished(() => expire.mockRestore());
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(await listed(list)).toEqual(new Map([[session.objectId, dueMs]]));
    expect((await alarmOf(list)) ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(Date.now() + LIMITS.expiryPauseMs);
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(await session.isThere()).toBe(false);
    expect(await storedIn(list)).toEqual([]);
  });

  it("writes nothing into a session that its client deleted", async () => {
    const namespace = newTenant();
    const session = await new Kept(namespace).begin();
    const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
    expect(await session.stub.remove()).toBe(true);
    expect(await storedIn(session.stub)).toEqual([]);
    pass(dueMs - Date.now());
    expect(await runDurableObjectAlarm(list)).toBe(true);
    expect(await storedIn(session.stub)).toEqual([]);
    expect(await storedIn(list)).toEqual([]);
  });
});

describe("a session that no list has", () => {
  it("has an alarm of its own with each turn, and goes by it", async () => {
    const session = new Kept(newTenant());
    await session.use({ usedMs: Date.now(), isListed: false });
    pass(10 * DAY_MS);
    await session.use({ usedMs: Date.now(), isListed: false });
    const dueMs = (await alarmOf(session.stub)) ?? 0;
    expect(Math.abs(dueMs - Date.now() - LIMITS.sessionIdleMsMax)).toBeLessThan(10_000);
    pass(dueMs - Date.now());
    expect(await runDurableObjectAlarm(session.stub)).toBe(true);
    expect(await storedIn(session.stub)).toEqual([]);
    expect(await alarmOf(session.stub)).toBeNull();
  });

  it("goes by its alarm also with a log of before there were lists, and is listed by its next turn otherwise", async () => {
    const namespace = newTenant();
    const [old, used] = [new Kept(namespace), new Kept(namespace)];
    for (const session of [old, used]) {
      await session.use({});
      expect(await alarmOf(session.stub)).toBeGreaterThan(Date.now() + LIMITS.sessionIdleMsMax - 60_000);
      await evictDurableObject(session.stub);
    }
    await used.begin();
    expect(await alarmOf(used.stub)).toBeNull();
    pass(LIMITS.sessionIdleMsMax);
    expect(await runDurableObjectAlarm(old.stub)).toBe(true);
    expect(await isThereOf([old, used])).toEqual([false, true]);
    expect(await storedIn(old.stub)).toEqual([]);
  });

  it("asks the index again later, as often as it takes", async () => {
    const session = new Kept(newTenant());
    await session.use({ usedMs: Date.now(), isListed: false });
    pass(LIMITS.sessionIdleMsMax);
    briefly(vi.spyOn(TenantIndex.prototype, "forget")).mockImplementationOnce(never);
    briefly(hurry(LIMITS.indexMsMax));
    expect(await runDurableObjectAlarm(session.stub)).toBe(true);
    expect(await session.isThere()).toBe(true);
    expect(Math.abs(((await alarmOf(session.stub)) ?? 0) - Date.now() - LIMITS.expiryRetryMs)).toBeLessThan(10_000);
    expect(await runDurableObjectAlarm(session.stub)).toBe(true);
    expect(await storedIn(session.stub)).toEqual([]);
  });

  it.each([true, false])(
    "is left alone by a list that still has it from an earlier life; written by us: %s",
    async (isOurs) => {
      const namespace = newTenant();
      const session = await new Kept(namespace).begin();
      const { list, dueMs } = listOf(env, { namespace, usedMs: Date.now() });
      expect(await session.stub.remove()).toBe(true);
      pass(dueMs - Date.now());
      // Otherwise as a version without lists writes it.
      await session.use(isOurs ? { usedMs: Date.now(), isListed: false } : {});
      const alarmMs = await alarmOf(session.stub);
      expect(alarmMs).toBeGreaterThan(Date.now() + LIMITS.sessionIdleMsMax - 60_000);
      expect(await runDurableObjectAlarm(list)).toBe(true);
      expect([await session.isThere(), await alarmOf(session.stub)]).toEqual([true, alarmMs]);
      expect(await storedIn(list)).toEqual([]);
    },
  );

  it("stays when an alarm rings before its time", async () => {
    const namespace = newTenant();
    const [alone, inList] = [new Kept(namespace), await new Kept(namespace).begin()];
    await alone.use({ usedMs: Date.now(), isListed: false });
    const usedMs = Date.now();
    pass(DAY_MS);
    for (const { stub } of [alone, inList]) {
      await runInDurableObject(stub, (_: object, state) => state.storage.setAlarm(Date.now() + DAY_MS));
      expect(await runDurableObjectAlarm(stub)).toBe(true);
    }
    expect(await isThereOf([alone, inList])).toEqual([true, true]);
    expect(Math.abs(((await alarmOf(alone.stub)) ?? 0) - usedMs - LIMITS.sessionIdleMsMax)).toBeLessThan(10_000);
    expect(await alarmOf(inList.stub)).toBeNull();
  });
});

describe("a turn", () => {
  const tenantA = () => namespaceOf("a", env.QUIRE_TENANT_SALT);
  const newId = () => `expiry-${crypto.randomUUID()}`;
  const kept = async (id: string) => new Kept(await tenantA(), id);

  it.each([false, true])("enters its session in a list, once; resumable: %s", async (resumable) => {
    const { chat } = await makeWorld();
    const session = await kept(newId());
    const quire = { session_id: session.id, resumable };
    const entered = briefly(vi.spyOn(SessionExpiry.prototype, "enter"));
    for (const text of ["hi", "ho", "hu"]) expect(await textOf(await chat(text, { quire }))).toBe("ok");
    expect(entered.mock.calls.filter(([objectId]) => objectId === session.objectId)).toHaveLength(1);
    const usedMs = (await session.meta())?.usedMs ?? 0;
    expect(Math.abs(usedMs - Date.now())).toBeLessThan(10_000);
    const { list, dueMs } = listOf(env, { namespace: session.namespace, usedMs });
    expect((await listed(list)).get(session.objectId)).toBe(dueMs);
    expect(await alarmOf(session.stub)).toBeNull();
  });

  it.each([false, true])(
    "waits for no list before its words, and briefly behind them; resumable: %s",
    async (resumable) => {
      const { chat, engine } = await makeWorld();
      const session = await kept(newId());
      const quire = { session_id: session.id, resumable };
      const entered = briefly(vi.spyOn(SessionExpiry.prototype, "enter").mockImplementation(never));
      await engine.script(...says("all of it"));
      using timers = watchTimers();
      const response = await chat("hi", { stream: true, quire });
      const reader = (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      while (!text.includes("all of it")) text += (await reader.read()).value;
      await until(() => entered.mock.calls.length > 0);
      expect(await session.isThere()).toBe(false);
      await timers.ring(LIMITS.indexMsMax);
      for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
      expect(text).toContain("[DONE]");
      // No list has it: it has an alarm of its own, until its next turn has it listed.
      expect((await session.meta())?.isListed).toBe(false);
      expect(await alarmOf(session.stub)).toBeGreaterThan(Date.now() + LIMITS.sessionIdleMsMax - 60_000);
      entered.mockRestore();
      expect(await textOf(await chat("ho", { quire }))).toBe("ok");
      expect((await session.meta())?.isListed).toBe(true);
      expect(await alarmOf(session.stub)).toBeNull();
    },
  );

  it("goes on where there is no list, with an alarm", async () => {
    const { chat } = await makeWorld();
    const session = await kept(newId());
    briefly(vi.spyOn(SessionExpiry.prototype, "enter").mockRejectedValue(new Error("no list")));
    expect(await textOf(await chat("hi", { quire: { session_id: session.id } }))).toBe("ok");
    expect(await session.meta()).toMatchObject({ isListed: false });
    expect(await alarmOf(session.stub)).toBeGreaterThan(Date.now() + LIMITS.sessionIdleMsMax - 60_000);
  });

  it("of a fork enters the fork: what its parent's log says of lists is not said of it", async () => {
    const { chat, engine } = await makeWorld();
    const parent = await kept(newId());
    await engine.script(...says("one"));
    await (await chat("hi", { quire: { session_id: parent.id } })).text();
    const fork = async () => {
      const path = `/v1/sessions/${parent.id}/fork`;
      const response = await edge(path, { method: "POST", headers: { authorization: `Bearer ${KEY_A}` } });
      return kept(((await response.json()) as { id: string }).id);
    };
    const isListed = async (session: Kept) => {
      const { list } = listOf(env, { namespace: session.namespace, usedMs: (await session.meta())?.usedMs ?? 0 });
      return (await listed(list)).has(session.objectId);
    };
    const named = await fork();
    expect([await isListed(named), await alarmOf(named.stub)]).toEqual([true, null]);
    const entered = briefly(vi.spyOn(SessionExpiry.prototype, "enter").mockRejectedValue(new Error("no list")));
    const alone = await fork();
    expect(await isListed(alone)).toBe(false);
    expect(await alarmOf(alone.stub)).toBeGreaterThan(Date.now() + LIMITS.sessionIdleMsMax - 60_000);
    entered.mockRestore();
    // A transcript that begins as a named session does is a fork, whose object copies that beginning.
    const transcript = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "one" },
      { role: "user", content: "two" },
    ];
    const response = await chat(transcript);
    const unnamed = await kept(response.headers.get("x-quire-session") ?? "");
    expect(await textOf(response)).toBe("ok");
    expect((await engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["two"]));
    expect((await unnamed.meta())?.parentId).toBe(parent.id);
    expect([await isListed(unnamed), await alarmOf(unnamed.stub)]).toEqual([true, null]);
  });

  it("that fails at once leaves of a session that it would have made the error, for a while, and then nothing", async () => {
    const { chat, engine } = await makeWorld();
    for (const name of [newId(), undefined]) {
      await engine.script({ do: "admit" }, { do: "fail", code: "invalid_request", message: "no" });
      const quire = { resumable: true, ...(name !== undefined && { session_id: name }) };
      const response = await chat(`hi ${crypto.randomUUID()}`, { stream: true, quire });
      const session = await kept(name ?? response.headers.get("x-quire-session") ?? "");
      expect(await response.text()).toContain("error");
      expect(await session.isThere()).toBe(false);
      expect(await storedIn(session.stub)).not.toEqual([]);
      expect((await alarmOf(session.stub)) ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(
        Date.now() + LIMITS.replayKeepMs,
      );
      expect(await runDurableObjectAlarm(session.stub)).toBe(true);
      expect(await storedIn(session.stub)).toEqual([]);
    }
  });

  it("has what is stored of its session deleted when that goes", async () => {
    const { chat, engine, model } = await makeWorld();
    const session = await kept(newId());
    expect(await textOf(await chat("hi", { quire: { session_id: session.id } }))).toBe("ok");
    await session.use({ model, usedMs: Date.now() - LIMITS.sessionIdleMsMax, isListed: true });
    await register(engine, model);
    await session.stub.expire();
    expect(await session.isThere()).toBe(false);
    expect(await engine.deletes()).toMatchObject([{ namespace: session.namespace, sessionId: session.id }]);
  });
});
