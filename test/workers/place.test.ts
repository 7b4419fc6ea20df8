/** A turn that goes on while its place is asked for, and one that goes where the last one was. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { keepPlace, NextPlace, nextRequest, PlaceCredit } from "../../workers/limits/place.ts";
import { type Limits, TenantBudget } from "../../workers/limits/tenant-budget.ts";
import { limiterOf, TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
import { NextTurn } from "../../workers/session-log/next-turn.ts";
import { Placement } from "../../workers/session-log/placement.ts";
import { enterTurn } from "../../workers/session-log/turn-course.ts";
import type { TurnJob } from "../../workers/turn-job.ts";
import { edge, env, eventsOf, FakeEngine, KEY_A, makeWorld, register, says, until, watchTimers } from "./world.ts";

const key = (id: string) => ({ id, tenant: "t", scopes: [], createdS: 0 });
const engineOf = (engineId: string) => ({ engineId, url: "http://e", contextTokensMax: 1 });

describe("the credit of a key", () => {
  const limits: Limits = { requestsPerMinute: 10, tokensPerMinute: 1_000, turnsConcurrent: 4 };
  const tenant = { namespace: "n", key: key("key_a") };
  const ask = (budget: TenantBudget, leaseId: string | undefined, tokensEstimated = 0) =>
    budget.admit({ leaseId, tokensEstimated, limits }, 0);

  it("is there while half of everything is left, as the limiter said last", () => {
    const cases: [string, (budget: TenantBudget) => void, boolean][] = [
      ["nothing used", () => undefined, true],
      ["half of the requests", (budget) => [1, 2, 3, 4].map(() => ask(budget, undefined)), true],
      ["more requests", (budget) => [1, 2, 3, 4, 5].map(() => ask(budget, undefined)), false],
      ["half of the tokens", (budget) => ask(budget, undefined, 500), true],
      ["more tokens", (budget) => ask(budget, undefined, 501), false],
      ["half of the places", (budget) => [1, 2].map((id) => ask(budget, `${id}`)), true],
      ["more places", (budget) => [1, 2, 3].map((id) => ask(budget, `${id}`)), false],
    ];
    for (const [name, use, isAllowed] of cases) {
      const credit = new PlaceCredit({ countMax: 2, ageMsMax: 100, now: () => 0 });
      const budget = new TenantBudget();
      use(budget);
      expect(credit.allows(tenant, 0), name).toBe(false);
      credit.note(tenant, ask(budget, undefined));
      expect(credit.allows(tenant, 0), name).toBe(isAllowed);
      expect(credit.allows({ ...tenant, key: key("key_b") }, 0), name).toBe(false);
      expect(credit.allows({ ...tenant, namespace: "m" }, 0), name).toBe(false);
    }
  });

  it("does not cover what is large, ages, and is lost with the first failure", () => {
    let nowMs = 0;
    const credit = new PlaceCredit({ countMax: 2, ageMsMax: 100, now: () => nowMs });
    credit.note(tenant, ask(new TenantBudget(), undefined));
    expect([500, 501].map((tokens) => credit.allows(tenant, tokens))).toEqual([true, false]);
    nowMs = 100;
    expect(credit.allows(tenant, 0)).toBe(false);
    credit.note(tenant, ask(new TenantBudget(), undefined));
    credit.forget(tenant);
    expect(credit.allows(tenant, 0)).toBe(false);
  });
});

describe("a tenant with credit", () => {
  const options = { key: "key-of-two-turns" };
  const used = async () =>
    runInDurableObject(
      limiterOf(env, await namespaceOf("two-turns", "salt for tests")),
      (instance: TenantLimiter) => instance.used,
    );

  it("gets no further than its limits, and a turn that is refused late leaves nothing behind", {
    timeout: 60_000,
  }, async () => {
    const { chat, engine, model } = await makeWorld();
    const hangs = [{ do: "admit" as const }, { do: "hang" as const }];
    const sessions = ["a", "b", "c", "d"].map((name) => `${model}-${name}`);
    expect((await chat("first", {}, options)).headers.get("x-ratelimit-remaining-requests")).not.toBeNull();
    for (let count = 0; count < sessions.length; count++) await engine.script(...hangs);
    // All at once: none of them has heard of the others.
    const answers = await Promise.all(
      sessions.map((session_id) => chat("hi", { stream: true, quire: { session_id } }, options)),
    );
    const refused = answers.flatMap((answer, index) => (answer.status === 429 ? [{ answer, index }] : []));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(2);
    expect(refused).toHaveLength(2);
    for (const { answer, index } of refused) {
      expect(answer.headers.get("retry-after")).toBe("1");
      expect(answer.headers.get("x-ratelimit-limit-requests")).not.toBeNull();
      expect(await answer.json()).toMatchObject({
        error: { code: "rate_limit_exceeded", message: expect.stringContaining("2 turns at a time") },
      });
      const path = `/v1/sessions/${sessions[index]}`;
      expect((await edge(path, { headers: { authorization: `Bearer ${options.key}` } })).status).toBe(404);
    }
    for (const { body, status } of answers) if (status === 200) await body?.cancel();
    await until(async () => (await used()).turns === 0);
    // The sessions that were refused are free. Some of them never came to the engine, which has words left that do not end.
    const other = await makeWorld();
    for (const { index } of refused) {
      const again = await other.chat("hi", { quire: { session_id: sessions[index] } }, options);
      expect(again.status).toBe(200);
      await again.text();
    }
  });

  it.each([false, true])(
    "is refused as soon as that is known, and waits for no engine (resumable: %s)",
    {
      timeout: 60_000,
    },
    async (resumable) => {
      const { chat, engine, model } = await makeWorld();
      await (await chat("first", {}, options)).text();
      const admit = TenantLimiter.prototype.admit;
      const asked = vi.spyOn(TenantLimiter.prototype, "admit");
      asked.mockImplementationOnce(async function (this: TenantLimiter, request) {
        return { ...(await admit.call(this, request)), refusedBy: "tokens" };
      });
      await engine.script({ do: "deaf" });
      const quire = { session_id: `${model}-late`, resumable };
      expect((await chat("hi", { quire }, options)).status).toBe(429);
      expect(asked).toHaveBeenCalledOnce();
      asked.mockRestore();
      // The limiter may have answered before the engine was called.
      const called = async () => (await engine.calls()).slice(1);
      const open = async () => (await called()).filter(({ abortedMs }) => abortedMs === undefined);
      await expect.poll(open, { timeout: 5_000, interval: 20 }).toEqual([]);
      for (const { startedMs, abortedMs = 0 } of await called()) {
        expect(abortedMs - startedMs).toBeLessThan(LIMITS.admissionMsMax);
      }
      expect((await used()).turns).toBe(0);
    },
  );

  it("is counted for every request once, also for those that come to nothing", { timeout: 60_000 }, async () => {
    const { chat, post } = await makeWorld();
    // What was used before drains from a moment on that is known.
    const startMs = Date.now();
    await (await chat("hi", {}, options)).text();
    const before = (await used()).requests;
    for (const [body, status] of [
      [{}, 200],
      [{ frobnicate: 1 }, 400],
      [{}, 200],
      [{ max_tokens: 1 << 29 }, 400],
      [{}, 200],
    ] as const) {
      const answer = await chat("hi", body, options);
      expect(answer.status).toBe(status);
      await answer.text();
    }
    expect((await post("/v1/completions", { prompt: "hi", model: "nope" }, options)).status).toBe(404);
    const drained = ((Date.now() - startMs) * 600) / 60_000;
    const counted = (await used()).requests - before;
    expect(counted).toBeLessThanOrEqual(6);
    expect(counted).toBeGreaterThan(6 - drained - 1);
    expect((await used()).turns).toBe(0);
  });
});

describe("a place for a turn that may come", () => {
  const limits: Limits = { requestsPerMinute: 100, tokensPerMinute: 1_000, turnsConcurrent: 16 };
  const request = (leaseId: string, tokensEstimated = 100) => ({ leaseId, tokensEstimated, limits });

  it("counts like any other from the moment it is reserved, so that limits hold, but is nobody's use", () => {
    const budget = new TenantBudget();
    expect(budget.reserve(request("next"), 0)).toMatchObject({
      refusedBy: undefined,
      requests: { remaining: 99 },
      tokens: { remaining: 900 },
      turns: { remaining: 15 },
    });
    expect(budget.used).toEqual({ requests: 0, tokens: 0, turns: 0 });
    const taken = Array.from({ length: 16 }, (_, at) => budget.admit(request(`turn-${at}`, 1), 0).refusedBy);
    expect(taken).toEqual([...Array(15).fill(undefined), "turns"]);
  });

  it("is its turn's once that says so, and else given back in time with all that was counted", () => {
    const [used, unused] = [new TenantBudget(), new TenantBudget()];
    for (const budget of [used, unused]) budget.reserve(request("next"), 0);
    used.hold("next", LIMITS.placeReservedMsMax - 1);
    expect(used.used).toEqual({ requests: 1, tokens: 100, turns: 1 });
    const lateMs = LIMITS.placeReservedMsMax;
    // Nothing that was reserved has drained twice.
    expect(unused.admit(request("other", 10), lateMs)).toMatchObject({
      requests: { remaining: 99 },
      turns: { remaining: 15 },
    });
    expect(unused.used).toEqual({ requests: 1, tokens: 10, turns: 1 });
    used.settle("next", 40);
    expect(used.used).toMatchObject({ tokens: 40, turns: 0 });
    unused.settle("next", 40);
    expect(unused.used).toMatchObject({ tokens: 10, turns: 1 });
  });

  it("is refused where less than half of anything would be left, and beyond an eighth of the places", () => {
    const counted = (use: (budget: TenantBudget) => void, tokens = 100) => {
      const budget = new TenantBudget();
      use(budget);
      const before = budget.state;
      const isReserved = budget.reserve(request("next", tokens), 0) !== undefined;
      if (!isReserved) expect(budget.state).toEqual(before);
      return isReserved;
    };
    const turns = (count: number) => (budget: TenantBudget) => {
      for (let at = 0; at < count; at++) budget.admit(request(`turn-${at}`, 0), 0);
    };
    const reserved = (count: number) => (budget: TenantBudget) => {
      for (let at = 0; at < count; at++) budget.reserve(request(`next-${at}`, 0), 0);
    };
    expect([0, 7, 8].map((count) => counted(turns(count)))).toEqual([true, true, false]);
    expect([1, 2].map((count) => counted(reserved(count)))).toEqual([true, false]);
    expect([500, 501].map((tokens) => counted(() => undefined, tokens))).toEqual([true, false]);
    const few = { ...limits, turnsConcurrent: 7 };
    expect(new TenantBudget().reserve({ ...request("next"), limits: few }, 0)).toBeUndefined();
  });

  it("is for one turn that asks for no more under the same limits, for a second", () => {
    let nowMs = 0;
    const admission = new TenantBudget().admit(request("x"), 0);
    const takes = (asked: ReturnType<typeof request>, afterMs = 0) => {
      const next = new NextPlace(() => nowMs);
      next.keep({ request: request("next"), admission });
      nowMs += afterMs;
      const first = next.take(asked)?.request.leaseId;
      expect(next.take(asked)).toBeUndefined();
      return first;
    };
    expect(takes(request("asked", 100))).toBe("next");
    expect(takes(request("asked", 101))).toBeUndefined();
    expect(takes({ ...request("asked"), limits: { ...limits, turnsConcurrent: 17 } })).toBeUndefined();
    expect(takes(request("asked"), LIMITS.placementMsMax - 1)).toBe("next");
    expect(takes(request("asked"), LIMITS.placementMsMax)).toBeUndefined();
    expect(nextRequest(request("asked"))).toMatchObject({ tokensEstimated: 200, limits });
  });

  it("is taken by a session whose turns follow upon each other: the limiter is asked no more, and counts each turn", {
    timeout: 60_000,
  }, async () => {
    const { chat, model } = await makeWorld();
    const limiter = limiterOf(env, await namespaceOf("eight-turns", "salt for tests"));
    const key = { key: "key-of-eight-turns" };
    const session = { quire: { session_id: `${model}-quick` } };
    const asked = vi.spyOn(TenantLimiter.prototype, "admit");
    const used = () => runInDurableObject(limiter, (instance: TenantLimiter) => instance.used);
    let turnCount = 0;
    // At most so many: a machine that takes a second between two turns makes none of them quick.
    while (turnCount === asked.mock.calls.length && turnCount < 200) {
      const answer = await chat("hi", session, key);
      expect(answer.status).toBe(200);
      expect(answer.headers.get("x-ratelimit-remaining-requests")).not.toBeNull();
      await answer.text();
      turnCount += 1;
    }
    expect(asked.mock.calls).toHaveLength(turnCount - 1);
    asked.mockRestore();
    expect(await used()).toMatchObject({ turns: 0 });
    const { requests } = await used();
    // Drains by ten a minute.
    expect(requests).toBeLessThanOrEqual(turnCount);
    expect(requests).toBeGreaterThan(turnCount - 1);
  });

  it("is free when the turn that took it cannot be opened", async () => {
    const namespace = `n-${crypto.randomUUID()}`;
    const limiter = limiterOf(env, namespace);
    const reserved = request("next");
    const admission = await limiter.settle("none", 0, reserved);
    if (!admission) throw new Error("nothing was reserved");
    const next = new NextTurn(() => 0);
    next.place.keep({ request: reserved, admission });
    const job = { namespace, place: request("asked") } as TurnJob;
    const opening = enterTurn(job, { env, next }, async () => {
      await limiter.hold("next");
      throw new Error("the session is gone");
    });
    await expect(opening).rejects.toThrow("the session is gone");
    expect(await runInDurableObject(limiter, (instance: TenantLimiter) => instance.used.turns)).toBe(0);
  });
});

describe("the place of a turn that runs", () => {
  const limits: Limits = { requestsPerMinute: 100, tokensPerMinute: 1_000, turnsConcurrent: 1 };

  it("is kept while its prompt is still on its way, however slow its client is", () => {
    const budget = new TenantBudget();
    budget.admit({ leaseId: "turn", tokensEstimated: 100, limits }, 0);
    const slowMs = LIMITS.requestMsMax + LIMITS.engineExpiryMs + LIMITS.indexMsMax;
    keepPlace(
      () => undefined,
      (ms) => {
        expect(budget.admit({ leaseId: "other", tokensEstimated: 0, limits }, slowMs + ms).refusedBy).toBe("turns");
        budget.hold("turn", slowMs + ms);
      },
    );
    budget.settle("turn", 5_000);
    expect(budget.used).toMatchObject({ tokens: 4_900, turns: 0 });
  });

  it("is its own to the end, and free within a minute when whoever ran it is gone without a word", () => {
    const budget = new TenantBudget();
    const due: { atMs: number; act: () => void }[] = [];
    let nowMs = 0;
    const isFull = () => budget.admit({ leaseId: "other", tokensEstimated: 0, limits }, nowMs).refusedBy === "turns";
    budget.admit({ leaseId: "turn", tokensEstimated: 0, limits }, 0);
    keepPlace(
      () => budget.hold("turn", nowMs),
      (ms, act) => due.push({ atMs: nowMs + ms, act }),
    );
    for (; nowMs < LIMITS.turnMsMax; nowMs += 100) {
      if (due[0] && due[0].atMs <= nowMs) due.shift()?.act();
      expect(due.length).toBe(1);
      if (nowMs % 1_000 === 0) expect(isFull(), `after ${nowMs} ms`).toBe(true);
    }
    const goneMs = nowMs;
    while (isFull()) nowMs += 100;
    expect(nowMs - goneMs).toBeLessThanOrEqual(60_000);
  });

  it("is held for as long as its words come", { timeout: 60_000 }, async () => {
    const { chat, engine } = await makeWorld();
    using timers = watchTimers();
    const held = vi.spyOn(TenantLimiter.prototype, "hold");
    await engine.script({ do: "admit" }, { do: "hold" }, ...says("x").slice(1));
    const response = await chat("hi", { stream: true });
    for (let count = 1; count <= 3; count++) {
      await timers.ring(LIMITS.leaseHeldMsMax / 3);
      await until(() => held.mock.calls.length === count);
    }
    held.mockRestore();
    await engine.release();
    expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
  });
});

describe("where the last turn was", () => {
  it("is known for one turn, and not for long", () => {
    let nowMs = 0;
    const placement = new Placement(() => nowMs);
    expect(placement.take()).toBeUndefined();
    placement.keep(engineOf("a"));
    expect(placement.take()?.engineId).toBe("a");
    expect(placement.take()).toBeUndefined();
    placement.keep(engineOf("b"));
    nowMs = 1_000;
    expect(placement.take()).toBeUndefined();
  });

  it("is asked first, and the fleet after all when it is full or gone", { timeout: 60_000 }, async () => {
    for (const step of [
      { do: "fail" as const, code: "queue_full", message: "full" },
      { do: "fail" as const, code: "shutting_down", message: "leaving" },
      { do: "destroy" as const },
    ]) {
      const { chat, engine, model } = await makeWorld();
      const other = new FakeEngine();
      const session = { quire: { session_id: `${model}-again` } };
      await (await chat("a", session)).text();
      await register(other, model);
      await register(engine, model, { draining: true });
      await engine.script(step);
      await other.script(...says("from the other"));
      // Not by `chat`, which would register the engine as one that takes turns.
      const answer = await edge("/v1/chat/completions", {
        method: "POST",
        headers: { authorization: `Bearer ${KEY_A}` },
        body: JSON.stringify({ model, messages: [{ role: "user", content: "b" }], ...session }),
      });
      expect(await answer.json()).toMatchObject({
        choices: [{ message: { content: "from the other" } }],
        usage: { quire: { engines: [other.id] } },
      });
    }
  });
});
