/** A session as a Worker holds it, against its real object; and what goes wrong between the two. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { packCommit } from "../../workers/session-log/log-image.ts";
import type { LogCommit } from "../../workers/session-log/log-store.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { TurnHold } from "../../workers/session-log/turn-hold.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { TenantIndex } from "../../workers/tenant-index.ts";
import type { TurnJob } from "../../workers/turn-job.ts";
import { HeldSession } from "../../workers/worker-turn/held-session.ts";
import { env, hurry, ids, watchTimers } from "./world.ts";

/** A session that nobody has used, and a turn of it. */
function newSession(isNew: boolean) {
  const namespace = `n-${crypto.randomUUID()}`;
  const job = { namespace, session: { id: "s", implicit: true } } as TurnJob;
  const commitOf = (text: string): LogCommit => ({
    meta: {
      ...{ id: "s", namespace, model: "m", kind: "raw", named: false, createdS: 0, turnCount: 1 },
      version: crypto.randomUUID(),
    },
    ...{ keepTokens: 0, appendTokens: ids(text), keepMessages: 0, appendMessages: [] },
    spans: [{ end: ids(text).length, how: "dense" }],
  });
  // A new one each time: a stub stays with an object that was lost.
  const stub = () => sessionOf(env, namespace, "s");
  return { stub, commitOf, held: new HeldSession(env, { job, turnId: "ours", isNew }) };
}

describe("the session of a first turn", () => {
  it("is the other turn's that was written before its object heard of this one", async () => {
    const { stub, commitOf, held } = newSession(true);
    expect(await held.read()).toBeUndefined();
    expect(await stub().write("other", undefined, packCommit(commitOf("the other's")))).toBe(true);
    const stop = vi.fn();
    const listening = held.listen(stop);
    await vi.waitFor(async () => expect(await stub().stopTurn({ streamId: "ours" })).toBe(true));
    await listening;
    expect(stop).toHaveBeenCalledOnce();
    await expect(held.write(commitOf("ours"))).rejects.toMatchObject({ code: "session_busy" });
    held.end();
    expect(await stub().info()).toMatchObject({ tokens: ids("the other's").length });
  });
});

describe("a session that does not answer", () => {
  it("is not waited for without end, and is free when it answers after all", async () => {
    const { stub, held } = newSession(false);
    const answered = Promise.withResolvers<void>();
    const hold = SessionLog.prototype.hold;
    const late = vi.spyOn(SessionLog.prototype, "hold");
    late.mockImplementationOnce(async function (this: SessionLog, ...asked) {
      await answered.promise;
      return hold.apply(this, asked);
    });
    using timers = watchTimers();
    const confirmed = held.confirm().catch((thrown: unknown) => thrown);
    await timers.ring(LIMITS.sessionMsMax);
    expect(await confirmed).toMatchObject({ code: "deadline_exceeded" });
    await held.release();
    answered.resolve();
    late.mockRestore();
    await vi.waitFor(async () => {
      const other = await stub().hold("other", undefined);
      if (typeof other !== "string") other[Symbol.dispose]();
      expect(other).not.toBe("busy");
    });
  });

  it("because it was lost just then is asked once more: the turn goes on", async () => {
    const { stub, held } = newSession(false);
    const hold = SessionLog.prototype.hold;
    const asked = vi.spyOn(SessionLog.prototype, "hold");
    asked.mockImplementationOnce(async function (this: SessionLog, ...about) {
      await hold.apply(this, about);
      throw new Error("Durable Object reset because its code was updated.");
    });
    expect(await held.confirm()).toBe("same");
    expect(await stub().hold("other", undefined)).toBe("busy");
    await held.release();
    asked.mockReset();
    asked.mockRejectedValue(new Error("overloaded"));
    const { held: failing } = newSession(false);
    await expect(failing.confirm()).rejects.toThrow("overloaded");
    expect(asked).toHaveBeenCalledTimes(2);
    asked.mockRestore();
  });

  it("is asked to write twice, and what came of it is said in time", async () => {
    const { commitOf, held } = newSession(true);
    const asked = vi.spyOn(SessionLog.prototype, "write").mockReturnValue(new Promise(() => undefined));
    using timers = watchTimers();
    const written = held.write(commitOf("x")).catch((thrown: unknown) => thrown);
    for (const _ of [1, 2]) await timers.ring(LIMITS.sessionMsMax);
    expect(await written).toMatchObject({ code: "deadline_exceeded" });
    expect(asked).toHaveBeenCalledTimes(2);
    asked.mockRestore();
  });
});

describe("a session that is being deleted", () => {
  it("takes no turn, which would be lost at its end", async () => {
    const { stub, commitOf } = newSession(false);
    const commit = commitOf("x");
    await stub().write("first", undefined, packCommit(commit));
    const meanwhile: unknown[] = [];
    const forget = TenantIndex.prototype.forget;
    const forgotten = vi.spyOn(TenantIndex.prototype, "forget");
    forgotten.mockImplementationOnce(async function (this: TenantIndex, id) {
      const held = await stub().hold("late", commit.meta.version);
      meanwhile.push(typeof held === "string" ? held : held.isKnown);
      meanwhile.push(await stub().write("lost", commit.meta.version, packCommit(commitOf("y"))));
      await forget.call(this, id);
    });
    expect(await stub().remove()).toBe(true);
    expect(meanwhile).toEqual(["busy", false]);
    forgotten.mockRestore();
    expect(await stub().info()).toBeUndefined();
    expect(await stub().write("next", undefined, packCommit(commit))).toBe(true);
  });

  it("is free again when the index does not say that it has forgotten it", async () => {
    const { stub, commitOf } = newSession(false);
    await stub().write("first", undefined, packCommit(commitOf("x")));
    const forgotten = vi.spyOn(TenantIndex.prototype, "forget").mockReturnValueOnce(new Promise(() => undefined));
    const hurried = hurry(LIMITS.indexMsMax);
    const removed = runInDurableObject(stub(), (session: SessionLog) =>
      session.remove().catch((thrown) => thrown.code),
    );
    expect(await removed).toBe("deadline_exceeded");
    hurried.mockRestore();
    forgotten.mockRestore();
    expect(await stub().info()).toBeDefined();
    expect(await stub().remove()).toBe(true);
    expect(await stub().info()).toBeUndefined();
  });
});

describe("a hold that was lost on its way", () => {
  it("is given again to the same turn, and its end does not end the new one", async () => {
    const { stub } = newSession(false);
    const hold = async (turnId: string) => {
      const held = await stub().hold(turnId, undefined);
      if (typeof held === "string") throw new Error(held);
      return held;
    };
    const lost = await hold("ours");
    const again = await hold("ours");
    lost[Symbol.dispose]();
    for (let look = 0; look < 5; look++) expect(await stub().hold("other", undefined)).toBe("busy");
    expect(await stub().stopTurn({ streamId: "ours" })).toBe(true);
    expect(await again.hold.stopped()).toBe(true);
    again[Symbol.dispose]();
    await vi.waitFor(async () => (await hold("other"))[Symbol.dispose]());
  });

  it("is asked for whether the turn is to end, for as long as it runs", async () => {
    const { stub, held } = newSession(false);
    expect(await held.read()).toBeUndefined();
    const [hurried, asked] = [hurry(LIMITS.holdAskedMsMax), vi.spyOn(TurnHold.prototype, "stopped")];
    const stop = vi.fn();
    const listening = held.listen(stop);
    await vi.waitFor(() => expect(asked.mock.calls.length).toBeGreaterThan(3));
    expect(await stub().stopTurn({ streamId: "ours" })).toBe(true);
    await listening;
    expect(stop).toHaveBeenCalledOnce();
    await held.release();
    for (const spy of [hurried, asked]) spy.mockRestore();
  });

  it("is over for whoever asks whether the turn is to end, once that is written or given up", async () => {
    const { stub, commitOf, held } = newSession(false);
    expect(await held.read()).toBeUndefined();
    const stop = vi.fn();
    const listening = held.listen(stop);
    await held.write(commitOf("x"));
    await listening;
    expect(stop).not.toHaveBeenCalled();
    const given = await stub().hold("next", undefined);
    if (typeof given === "string") throw new Error(given);
    const stopped = given.hold.stopped();
    await stub().release("next");
    expect(await stopped).toBe(false);
  });

  it("ends with whoever has it, also while that one asks", async () => {
    const { stub } = newSession(false);
    const hurried = hurry(LIMITS.holdAskedMsMax);
    // An object, which unlike a Worker can be lost on purpose.
    const holder = () => env.TENANT_INDEX.get(env.TENANT_INDEX.idFromName(`holder-${crypto.randomUUID()}`));
    const lost = runInDurableObject(holder(), async (_, state) => {
      const held = await stub().hold("ours", undefined);
      if (typeof held === "string") throw new Error(held);
      held.hold.stopped().catch(() => undefined);
      expect(await stub().hold("other", undefined)).toBe("busy");
      state.abort("lost");
    });
    await lost.catch(() => undefined);
    await vi.waitFor(async () => {
      const other = await stub().hold("other", undefined);
      if (typeof other !== "string") other[Symbol.dispose]();
      expect(other).not.toBe("busy");
    });
    hurried.mockRestore();
  });
});
