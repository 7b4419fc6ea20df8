/** The session's object is lost while a turn runs: a resumable turn goes on in the next one, any other in its Worker. */
import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { describe, expect, inject, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { limiterOf } from "../../workers/limits/tenant-limiter.ts";
import { listOf } from "../../workers/session-expiry.ts";
import { LogStore } from "../../workers/session-log/log-store.ts";
import type { SessionLog } from "../../workers/session-log/session-log.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { TenantIndex } from "../../workers/tenant-index.ts";
import type { Step } from "./fake-engine/script.ts";
import { END, env, ids, KEY_A, KEY_C, logOf, makeWorld, says, streamOf, until, type World } from "./world.ts";

const TEXT = "Ein Satz – äöü – und 🙂 漢字, lang genug, um mitten darin verloren zu gehen. ".repeat(2);
const replies: Step[] = [
  { do: "admit" },
  { do: "reply", ids: [...ids(TEXT), END], gapMs: 8 },
  { do: "done", reason: "stop" },
];

interface Read {
  id: string;
  text: string;
  isError: boolean;
  isEnd: boolean;
}

/** Events of a response up to its end or break, comments left out. */
async function readEvents(response: Response, onEvent: (events: Read[]) => unknown = () => undefined): Promise<Read[]> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const decoder = new TextDecoder();
  const events: Read[] = [];
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const [, id = "", data] = /^(?:id: (\S+)\n)?data: (.*)$/.exec(part) ?? [];
        if (data === undefined) continue;
        const payload = data === "[DONE]" ? {} : JSON.parse(data);
        const text: string = payload.choices?.[0]?.delta?.content ?? "";
        events.push({ id, text, isError: payload.error !== undefined, isEnd: data === "[DONE]" });
        await onEvent(events);
      }
    }
  } catch {
    // The connection broke off: what came whole is there.
  }
  return events;
}

const textOf = (events: readonly Read[]) => events.map(({ text }) => text).join("");
const numberOf = ({ id }: Read) => Number(id.split(".")[1]);

interface Talk {
  world: World;
  key: string;
  session: string;
  /** A new one each time: a stub stays with the object that was lost. */
  stub: () => DurableObjectStub<SessionLog>;
}

async function newTalk(key = KEY_A): Promise<Talk> {
  const world = await makeWorld();
  const session = `lost-${crypto.randomUUID()}`;
  // Its tenant's namespace is known from any call.
  await (await world.chat("?", {}, { key })).text();
  const { namespace } = (await world.engine.lastCall()).request;
  return {
    world,
    key,
    session,
    stub: () => env.SESSION_LOG.get(env.SESSION_LOG.idFromName(`${namespace}/${session}`)),
  };
}

async function start({ world, session, key }: Talk, quire: object, steps = replies): Promise<Response> {
  await world.engine.script(...steps);
  return world.chat("hi", { stream: true, quire: { session_id: session, ...quire } }, { key });
}

/** As a crash or a new version of the Worker ends an object: its memory, its streams and its calls are gone. */
async function lose({ stub }: Talk): Promise<void> {
  await runInDurableObject(stub(), (_, state) => state.abort("lost")).catch(() => undefined);
}

const resume = (session: string, lastId = "") => streamOf(session, { lastId });

/** Reads until the `moment` has come, loses the object, and returns what came. */
async function readAndLose(talk: Talk, response: Response, moment: (events: Read[]) => boolean): Promise<Read[]> {
  let isLost = false;
  return readEvents(response, async (events) => {
    if (isLost || !moment(events)) return;
    isLost = true;
    await lose(talk);
  });
}

/** A resumable turn that is written down, so that it will be taken up; it has no end of its own. */
async function startNoted(talk: Talk): Promise<Response> {
  const head = ids(TEXT).slice(0, 5);
  const response = await start(talk, { resumable: true }, [
    { do: "admit" },
    { do: "tokens", ids: head },
    { do: "hold" },
    { do: "reply", ids: ids(TEXT).slice(head.length), gapMs: 8 },
    { do: "hang" },
  ]);
  await until(() => runInDurableObject(talk.stub(), (_, state) => state.storage.kv.get("running/0000") !== undefined));
  await talk.world.engine.release();
  return response;
}

describe("a resumable turn whose object is lost", () => {
  it("breaks its client's connection off: an end would be taken for the turn's", async () => {
    const talk = await newTalk();
    const reader = ((await startNoted(talk)).body as ReadableStream<Uint8Array>).getReader();
    await reader.read();
    await lose(talk);
    const isEnded = async (): Promise<true> => {
      for (;;) if ((await reader.read()).done) return true;
    };
    await expect(isEnded()).rejects.toThrow();
  });

  const roundCount = inject("isFull") ? 50 : 4;

  it(`goes on without a repeated or missing character, ${roundCount} times`, { timeout: 600_000 }, async () => {
    for (let round = 0; round < roundCount; round++) {
      const talk = await newTalk();
      const { world, session } = talk;
      const eventCount = 10 + Math.floor(Math.random() * 100);
      const before = await readAndLose(talk, await startNoted(talk), (all) => all.length >= eventCount);
      expect(before.at(-1)?.isEnd).toBe(false);
      await world.engine.script(...replies);
      const again = await resume(session, before.at(-1)?.id);
      expect(again.status).toBe(200);
      const events = [...before, ...(await readEvents(again))];
      expect(textOf(events)).toBe(TEXT);
      expect(events.at(-1)?.isEnd).toBe(true);
      const numbers = events.map(numberOf);
      expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b));
      const calls = (await world.engine.calls()).slice(1);
      expect(calls).toHaveLength(2);
      const [first, second] = calls.map(({ request }) => request);
      const written = second?.tokens.slice(first?.tokens.length) ?? [];
      expect(second?.tokens.slice(0, first?.tokens.length)).toEqual(first?.tokens);
      expect(second?.replyStart).toBe(written.length > 0 ? first?.tokens.length : undefined);
      expect(written).toEqual(ids(TEXT).slice(0, written.length));
      // The second engine call did not begin at the beginning, where more than one write had been made.
      if (before.length > 2 * LIMITS.runningSaveTokens)
        expect(written.length).toBeGreaterThanOrEqual(LIMITS.runningSaveTokens);
      const whole = await readEvents(await resume(session));
      expect(textOf(whole)).toBe(TEXT);
      await (await world.chat("ho", { quire: { session_id: session } })).text();
      expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", TEXT], ["ho"]));
    }
  });

  it("is taken up by the alarm when nobody comes back", async () => {
    const talk = await newTalk();
    const { world, session, stub } = talk;
    await readAndLose(talk, await startNoted(talk), () => true);
    await world.engine.script(...replies);
    expect(await runDurableObjectAlarm(stub())).toBe(true);
    expect((await world.engine.calls()).slice(1).map(({ finished }) => finished)).toEqual([false, true]);
    expect(textOf(await readEvents(await resume(session)))).toBe(TEXT);
    // No alarm is left: a list has the session asked whether it is time to go.
    const left = await runInDurableObject(stub(), async (_, { storage }) => {
      return { alarmMs: await storage.getAlarm(), meta: new LogStore(storage).meta() };
    });
    expect(left).toMatchObject({ alarmMs: null, meta: { isListed: true } });
    const { list } = listOf(env, { namespace: left.meta?.namespace ?? "", usedMs: left.meta?.usedMs ?? 0 });
    const rows = await runInDurableObject(list, (_: object, { storage }) => {
      return storage.sql.exec("SELECT 1 FROM sessions WHERE id = ?", stub().id.toString()).toArray();
    });
    expect(rows).toHaveLength(1);
  });

  it("is lost within its first moment: it has to be asked for again, and the session is free", async () => {
    const talk = await newTalk();
    const { world, session } = talk;
    const events = await readAndLose(talk, await start(talk, { resumable: true }), (all) => all.length >= 1);
    expect(events.at(-1)?.isEnd).toBe(false);
    expect((await resume(session, events.at(-1)?.id)).status).toBe(404);
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["ho"]));
  });

  it("is given up when it is lost again and again, and its client hears of it", { timeout: 60_000 }, async () => {
    const talk = await newTalk();
    const { world, session } = talk;
    await readAndLose(talk, await startNoted(talk), () => true);
    for (let attempt = 1; attempt <= LIMITS.runningAttemptCountMax; attempt++) {
      await world.engine.script({ do: "admit" }, { do: "hang" });
      await (await resume(session)).body?.cancel();
      await until(async () => (await world.engine.calls()).length === 2 + attempt);
      await lose(talk);
    }
    const events = await readEvents(await resume(session));
    expect(events.at(-1)?.isError).toBe(true);
    expect(await world.engine.calls()).toHaveLength(2 + LIMITS.runningAttemptCountMax);
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
  });

  it("that is in the log is not written down any more, while its last words wait for others", async () => {
    const talk = await newTalk();
    const { world, session, stub } = talk;
    const entered = Promise.withResolvers<void>();
    const put = vi.spyOn(TenantIndex.prototype, "put").mockImplementation(() => entered.promise);
    onTestFinished(() => put.mockRestore());
    await world.engine.script(...says("at once"));
    const response = await world.chat("hi", { stream: true, quire: { session_id: session, resumable: true } });
    await until(() => put.mock.calls.length > 0);
    await new Promise((resolve) => setTimeout(resolve, 2 * LIMITS.runningNoteMs));
    entered.resolve();
    expect((await readEvents(response)).at(-1)?.isEnd).toBe(true);
    // It would be run once more, or its alarm would end the session.
    const left = await runInDurableObject(stub(), async (_, { storage }) => {
      return { isNoted: storage.kv.get("running/0000") !== undefined, alarmMs: await storage.getAlarm() };
    });
    expect(left).toEqual({ isNoted: false, alarmMs: null });
  });

  it("that is in the log is not run again under its name, though nobody was told of its end", async () => {
    const talk = await newTalk();
    const { world, session } = talk;
    const entered = Promise.withResolvers<void>();
    const put = vi.spyOn(TenantIndex.prototype, "put").mockImplementation(() => entered.promise);
    onTestFinished(() => put.mockRestore());
    await world.engine.script(...says("at once"));
    const named = { headers: { "idempotency-key": "turn-1" } };
    const body = { stream: true, quire: { session_id: session, resumable: true } };
    const response = await world.chat("hi", body, named);
    await until(() => put.mock.calls.length > 0);
    await lose(talk);
    entered.resolve();
    expect((await readEvents(response)).at(-1)?.isEnd).not.toBe(true);
    await world.engine.script(...says("once more"));
    const again = await world.chat("hi", body, named);
    expect([again.status, await world.engine.calls()]).toMatchObject([404, { length: 2 }]);
    expect(await again.json()).toMatchObject({ error: { code: "stream_not_found" } });
    expect((await world.chat("ho", { quire: { session_id: session } })).status).toBe(200);
  });

  it("goes on from its own words, whatever an earlier one had said that failed and left nothing", async () => {
    const talk = await newTalk();
    const { world } = talk;
    const fails: Step = { do: "fail", code: "invalid_request", message: "no" };
    await world.engine.script({ do: "admit" }, { do: "tokens", ids: ids("ab") }, { do: "hold" }, fails);
    const failed = await world.chat("hi", { stream: true, quire: { resumable: true } });
    const id = failed.headers.get("x-quire-session") ?? "";
    const { namespace } = (await world.engine.lastCall()).request;
    const named = { world, key: KEY_A, session: id, stub: () => sessionOf(env, namespace, id) };
    const isNoted = () =>
      runInDurableObject(named.stub(), (_, { storage }) => storage.kv.get("running/0000") !== undefined);
    await until(isNoted);
    await world.engine.release();
    expect((await readEvents(failed)).at(-1)?.isError).toBe(true);
    expect(await isNoted()).toBe(false);
    // Much before it is written down, and more behind that.
    const parts = [40, 80, 100, 140].map((end, index, all) => ids(TEXT).slice(all[index - 1] ?? 0, end));
    const tokens = parts.map((part): Step => ({ do: "tokens", ids: part }));
    const pause: Step = { do: "wait", ms: 20 };
    const response = await start(named, { resumable: true }, [
      ...[{ do: "admit" } as const, tokens[0], pause, tokens[1], { do: "hold" } as const, tokens[2], pause, tokens[3]],
      { do: "hang" },
    ] as Step[]);
    await until(isNoted);
    await world.engine.release();
    const before = await readAndLose(named, response, (all) => textOf(all).length > 100);
    await world.engine.script(...replies);
    const events = [...before, ...(await readEvents(await resume(id, before.at(-1)?.id)))];
    expect(textOf(events)).toBe(TEXT);
  });

  it("that was over is not run again", async () => {
    const talk = await newTalk();
    const { world, session } = talk;
    const events = await readEvents(await start(talk, { resumable: true }));
    await lose(talk);
    expect(await readEvents(await resume(session))).toEqual(events);
    expect(await world.engine.calls()).toHaveLength(2);
  });
});

describe("a turn that is not resumable", () => {
  it("goes on without its object, is written, and its place is free", async () => {
    const talk = await newTalk(KEY_C);
    const { world, session } = talk;
    const { namespace } = (await world.engine.lastCall()).request;
    const turnCount = () => runInDurableObject(limiterOf(env, namespace), (limiter) => limiter.used.turns);
    const events = await readAndLose(talk, await start(talk, {}), (all) => all.length >= 10);
    expect(events.at(-1)).toMatchObject({ isError: false, isEnd: true });
    expect(textOf(events)).toBe(TEXT);
    await until(async () => (await turnCount()) === 0);
    expect((await world.chat("ho", { quire: { session_id: session } }, { key: KEY_C })).status).toBe(200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", TEXT], ["ho"]));
  });
});

describe("a turn that runs in its session's object and is not resumable", () => {
  it("ends in an error, frees its engine and its place, and leaves nothing", async () => {
    const world = await makeWorld();
    const long = "hi ".repeat(400);
    await (await world.chat(long, {}, { key: KEY_C })).text();
    const { namespace } = (await world.engine.lastCall()).request;
    const turnCount = () => runInDurableObject(limiterOf(env, namespace), (limiter) => limiter.used.turns);
    await world.engine.script(...replies);
    // The same long words again are a fork, which begins with another session's log.
    const response = await world.chat(long, { stream: true }, { key: KEY_C });
    const session = response.headers.get("x-quire-session") ?? "";
    const stub = () => env.SESSION_LOG.get(env.SESSION_LOG.idFromName(`${namespace}/${session}`));
    const events = await readAndLose({ world, key: KEY_C, session, stub }, response, (all) => all.length >= 10);
    expect(events.at(-1)).toMatchObject({ isError: true, isEnd: false });
    expect(events.filter(({ isError }) => isError)).toHaveLength(1);
    await until(async () => (await world.engine.lastCall()).abortedMs !== undefined);
    await until(async () => (await turnCount()) === 0);
  });
});
