/** Forks and what they are copied from: a session that is forked is used, and one that cannot be asked holds no turn up. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { LogStore } from "../../workers/session-log/log-store.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { edge, env, KEY_A, logOf, makeWorld, says, textOf, until, type World } from "./world.ts";

const DAY_MS = 24 * 3_600_000;
const headers = { authorization: `Bearer ${KEY_A}` };

/** Time goes on by so much, until the test is over. */
function pass(ms: number): void {
  const now = Date.now;
  Date.now = () => now() + ms;
  onTestFinished(() => {
    Date.now = now;
  });
}

/** A session of one turn. */
async function begin(world: World) {
  const id = `parent-${crypto.randomUUID()}`;
  await world.engine.script(...says("one"));
  expect(await textOf(await world.chat("hi", { quire: { session_id: id } }))).toBe("one");
  const { namespace } = (await world.engine.lastCall()).request;
  const stub = () => sessionOf(env, namespace, id);
  const meta = () => runInDurableObject(stub(), (_: object, { storage }) => new LogStore(storage).meta());
  return { id, stub, meta };
}

/** What goes on from that session without naming it. */
const transcript = [
  { role: "user", content: "hi" },
  { role: "assistant", content: "one" },
  { role: "user", content: "two" },
];

describe("a session that is forked", () => {
  it("by its name is used: it stays as long as somebody does so", async () => {
    const { id, stub, meta } = await begin(await makeWorld());
    const before = await meta();
    pass(LIMITS.sessionIdleMsMax - DAY_MS);
    const forkedMs = Date.now();
    expect((await edge(`/v1/sessions/${id}/fork`, { method: "POST", headers })).status).toBe(200);
    await until(async () => ((await meta())?.usedMs ?? 0) >= forkedMs);
    pass(2 * DAY_MS);
    await stub().expire();
    // Nothing else has changed: a turn that goes on from its log is not refused.
    expect(await meta()).toEqual({ ...before, usedMs: expect.any(Number) });
    pass(LIMITS.sessionIdleMsMax);
    await stub().expire();
    expect(await meta()).toBeUndefined();
  });

  it("by its transcript is used, too, and its own next turn finds its log", async () => {
    const world = await makeWorld();
    const { id, meta } = await begin(world);
    const before = await meta();
    expect(await textOf(await world.chat(transcript))).toBe("ok");
    expect((await world.engine.lastCall()).request.session?.parentId).toBe(id);
    await until(async () => ((await meta())?.usedMs ?? 0) > (before?.usedMs ?? 0));
    expect(await textOf(await world.chat("more", { quire: { session_id: id } }))).toBe("ok");
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "one"], ["more"]));
  });

  it("and deleted at the same moment is deleted", async () => {
    const world = await makeWorld();
    const { stub } = await begin(world);
    await stub().image();
    expect(await stub().remove()).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 100));
    const tables = await runInDurableObject(stub(), (_: object, { storage }) =>
      storage.sql.exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'").toArray(),
    );
    expect(tables).toEqual([]);
  });
});

describe("a transcript that begins as a session does", () => {
  it.each(["fails", "is lost"])("is a turn like any other where that session's object %s", async (how) => {
    const world = await makeWorld();
    const { stub } = await begin(world);
    const image = vi.spyOn(SessionLog.prototype, "image");
    onTestFinished(() => image.mockRestore());
    if (how === "fails") image.mockRejectedValueOnce(new Error("overloaded"));
    else {
      image.mockImplementationOnce(async () => {
        await runInDurableObject(stub(), (_, state) => state.abort("a new version")).catch(() => undefined);
        return undefined;
      });
    }
    expect(await textOf(await world.chat(transcript))).toBe("ok");
    expect(image).toHaveBeenCalledTimes(1);
    expect((await world.engine.lastCall()).request.turnStart).toBe(0);
  });
});

describe("the body of a fork", () => {
  const fork = (id: string, body?: string) =>
    edge(`/v1/sessions/${id}/fork`, { method: "POST", headers, ...(body === undefined ? {} : { body }) });

  it.each([
    ["that names it", '{"session_id":"mine"}', 400, { code: "invalid_request", param: "session_id" }],
    ["that is a list", "[]", 400, { code: "invalid_request" }],
    ["that is no JSON", "{", 400, { code: "invalid_request" }],
    ["that is long", `{"a":"${"a".repeat(5000)}"}`, 413, { code: "request_too_large" }],
  ])("%s is refused", async (_name, body, status, error) => {
    const { id } = await begin(await makeWorld());
    const answer = await fork(id, body);
    expect(answer.status).toBe(status);
    expect(await answer.json()).toMatchObject({ error });
  });

  it("may be absent or say nothing", async () => {
    const { id } = await begin(await makeWorld());
    for (const body of [undefined, "", "{}"]) {
      const answer = await fork(id, body);
      expect(answer.status).toBe(200);
      expect(await answer.json()).toMatchObject({ parent_id: id });
    }
  });
});
