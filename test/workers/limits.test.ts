import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { limitsOf } from "../../workers/limits/admission.ts";
import { duration, rateHeaders } from "../../workers/limits/rate-headers.ts";
import { type AdmissionRequest, TenantBudget } from "../../workers/limits/tenant-budget.ts";
import { limiterOf, type TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
import { END, edge, env, eventsOf, ids, makeWorld, says, until } from "./world.ts";

const limits = { requestsPerMinute: 60, tokensPerMinute: 600, turnsConcurrent: 2 };
const ask = (more: Partial<AdmissionRequest> = {}): AdmissionRequest => ({
  leaseId: undefined,
  tokensEstimated: 0,
  limits,
  ...more,
});

async function stateOf(tenant: string) {
  const limiter = limiterOf(env, await namespaceOf(tenant, "salt for tests"));
  return await runInDurableObject(limiter, (instance: TenantLimiter) => instance.used);
}

describe("what a tenant has used", () => {
  it("lets a minute's requests come at once, then one for each that has drained", () => {
    const budget = new TenantBudget();
    for (let count = 1; count <= 60; count++) {
      const admission = budget.admit(ask(), 5_000);
      expect(admission).toMatchObject({ refusedBy: undefined, requests: { limit: 60, remaining: 60 - count } });
    }
    const refused = budget.admit(ask(), 5_000);
    expect(refused).toMatchObject({
      refusedBy: "requests",
      retryAfterMs: 1_000,
      requests: { remaining: 0, resetMs: 60_000 },
    });
    expect(budget.admit(ask(), 5_999).refusedBy).toBe("requests");
    expect(budget.admit(ask(), 6_000).refusedBy).toBeUndefined();
    expect(budget.admit(ask(), 6_000).refusedBy).toBe("requests");
    // An oracle of its own: over any hour no more than a minute's burst and an hour's drain gets in.
    let admitted = 0;
    for (let ms = 6_000; ms < 3_606_000; ms += 250) if (!budget.admit(ask(), ms).refusedBy) admitted += 1;
    expect(admitted).toBeGreaterThanOrEqual(3_598);
    expect(admitted).toBeLessThanOrEqual(3_600);
  });

  it("counts tokens as estimated, then as they were, and lets debts drain", () => {
    const budget = new TenantBudget();
    expect(budget.admit(ask({ leaseId: "a", tokensEstimated: 100 }), 0).tokens.remaining).toBe(500);
    budget.settle("a", 40);
    expect(budget.admit(ask({ leaseId: "b", tokensEstimated: 10 }), 0).tokens.remaining).toBe(550);
    budget.settle("b", 1_160);
    budget.settle("b", 1_160);
    // 1,200 used, 600 a minute: nothing for a minute, and then what drains.
    expect(budget.admit(ask(), 0)).toMatchObject({
      refusedBy: "tokens",
      retryAfterMs: 60_000,
      tokens: { remaining: 0 },
    });
    expect(budget.admit(ask(), 59_999).refusedBy).toBe("tokens");
    expect(budget.admit(ask({ tokensEstimated: 10 }), 61_000).refusedBy).toBeUndefined();
  });

  it("lets what is larger than a whole minute's worth go when nothing else is used", () => {
    const budget = new TenantBudget();
    expect(budget.admit(ask({ tokensEstimated: 1 }), 0).refusedBy).toBeUndefined();
    expect(budget.admit(ask({ tokensEstimated: 9_999 }), 0)).toMatchObject({ refusedBy: "tokens", retryAfterMs: 100 });
    expect(budget.admit(ask({ tokensEstimated: 9_999 }), 100).refusedBy).toBeUndefined();
  });

  it("gives so many places; one that no turn takes, or whose turn cannot run any more, is free again", () => {
    const budget = new TenantBudget();
    budget.admit(ask({ leaseId: "a", tokensEstimated: 300 }), 0);
    budget.admit(ask({ leaseId: "b", tokensEstimated: 100 }), 0);
    expect(budget.admit(ask({ leaseId: "c" }), 0)).toMatchObject({ refusedBy: "turns", retryAfterMs: 1_000 });
    expect(budget.admit(ask(), 0).refusedBy).toBeUndefined();
    budget.hold("nobody", 0);
    const later = LIMITS.leaseUnheldMsMax;
    for (let ms = 0; ms < later; ms += LIMITS.leaseHeldMsMax / 2) budget.hold("a", ms);
    expect(budget.admit(ask({ leaseId: "c" }), later - 1).refusedBy).toBe("turns");
    expect(budget.admit(ask({ leaseId: "c" }), later).refusedBy).toBeUndefined();
    budget.hold("c", later);
    expect(budget.admit(ask({ leaseId: "d" }), later).refusedBy).toBe("turns");
    budget.settle("a", 0);
    expect(budget.admit(ask({ leaseId: "d" }), later).refusedBy).toBeUndefined();
    expect(budget.admit(ask({ leaseId: "e" }), later + LIMITS.leaseHeldMsMax).refusedBy).toBeUndefined();
  });

  it("refused requests count nothing", () => {
    const budget = new TenantBudget();
    budget.admit(ask({ tokensEstimated: 600 }), 0);
    const before = budget.state;
    for (let count = 0; count < 100; count++)
      expect(budget.admit(ask({ tokensEstimated: 1 }), 0).refusedBy).toBe("tokens");
    expect(budget.state).toEqual(before);
  });

  it("goes on from what was saved, under keys of different limits", () => {
    const budget = new TenantBudget();
    for (let count = 0; count < 60; count++) budget.admit(ask(), 1_000);
    const again = new TenantBudget(budget.state);
    expect(again.admit(ask(), 1_000).refusedBy).toBe("requests");
    const wide = { ...limits, requestsPerMinute: 100 };
    expect(again.admit(ask({ limits: wide }), 1_000)).toMatchObject({
      refusedBy: undefined,
      requests: { remaining: 39 },
    });
    // A clock that jumps back takes nothing away and gives nothing.
    expect(again.admit(ask({ limits: wide }), 0).requests.remaining).toBe(38);
  });
});

describe("a limited tenant", () => {
  it("hears of its limits, as OpenAI writes them, and of their end", async () => {
    const { chat, engine } = await makeWorld();
    const key = "key-of-few-requests";
    const startMs = Date.now();
    for (const remaining of ["2", "1", "0"]) {
      const response = await chat("hi", {}, { key });
      expect(response.status).toBe(200);
      expect(response.headers.get("x-ratelimit-limit-requests")).toBe("3");
      expect(response.headers.get("x-ratelimit-remaining-requests")).toBe(remaining);
      expect(response.headers.get("x-ratelimit-reset-requests")).toMatch(/^\d+(\.\d)?s$|^1m0s$/);
      expect(response.headers.get("x-ratelimit-limit-tokens")).toBe(String(LIMITS.tokensPerMinuteDefault));
      await response.text();
    }
    const calls = (await engine.calls()).length;
    const refused = await chat("hi", {}, { key });
    expect(refused.status).toBe(429);
    // Three a minute: one is free again 20 s after the first, however long this took.
    const leftS = 20 - (Date.now() - startMs) / 1_000;
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThanOrEqual(Math.floor(leftS));
    expect(Number(refused.headers.get("retry-after"))).toBeLessThanOrEqual(20);
    expect(refused.headers.get("x-ratelimit-remaining-requests")).toBe("0");
    expect(refused.headers.get("access-control-expose-headers")).toContain("x-ratelimit-reset-requests");
    expect(await refused.json()).toMatchObject({
      error: {
        message: expect.stringMatching(/^Rate limit reached: 3 requests per minute\. Please try again in [\d.]+s\.$/),
        type: "rate_limit_error",
        param: null,
        code: "rate_limit_exceeded",
      },
    });
    // Other routes of the tenant count as well; another tenant is not touched.
    const auth = { authorization: `Bearer ${key}` };
    for (const [method, path] of [
      ["GET", "/v1/sessions/x"],
      ["DELETE", "/v1/sessions/x"],
      ["POST", "/v1/sessions/x/fork"],
    ] as const) {
      expect((await edge(path, { method, headers: auth })).status).toBe(429);
    }
    expect((await chat("hi")).status).toBe(200);
    expect((await engine.calls()).length).toBe(calls + 1);
  });

  it("has a number of turns at a time, and its place back at the end of each, however it ends", async () => {
    const { chat, engine, post } = await makeWorld();
    const key = "key-of-few-turns";
    const options = { key };
    await engine.script({ do: "admit" }, { do: "hang" });
    await engine.script({ do: "admit" }, { do: "hang" });
    const running = [await chat("1", { stream: true }, options), await chat("2", { stream: true }, options)];
    const refused = await chat("3", {}, options);
    expect(refused.status).toBe(429);
    expect(refused.headers.get("retry-after")).toBe("1");
    expect(await refused.json()).toMatchObject({ error: { code: "rate_limit_exceeded" } });
    for (const { body } of running) await body?.cancel();
    await until(async () => (await stateOf("few-turns")).turns === 0);
    // By its end, by a failure, by a refusal of the body, the model or the engine: none keeps a place.
    for (let round = 0; round < 3; round++) {
      expect((await chat("hi", {}, options)).status).toBe(200);
      await engine.script({ do: "admit" }, { do: "destroy" });
      await (await chat("hi", {}, options)).text();
      expect((await chat("hi", { frobnicate: 1 }, options)).status).toBe(400);
      expect((await post("/v1/completions", { prompt: "hi", model: "nope" }, options)).status).toBe(404);
      await engine.script({ do: "fail", code: "queue_full", message: "full" });
      expect((await chat("hi", {}, options)).status).toBe(429);
    }
    await until(async () => (await stateOf("few-turns")).turns === 0);
  });

  it("may begin its next turn as soon as it has heard the end of the last", { timeout: 60_000 }, async () => {
    const { chat, engine } = await makeWorld();
    const options = { key: "key-of-few-turns" };
    for (let round = 0; round < 10; round++) {
      await engine.script(...says("ok"));
      await engine.script(...says("ok"));
      const both = await Promise.all([chat("a", { stream: true }, options), chat("b", { stream: true }, options)]);
      for (const response of both) {
        expect(response.status).toBe(200);
        expect((await eventsOf(response)).at(-1)).toBe("[DONE]");
      }
    }
  });

  it("pays for the tokens that are new to its log and for those it was given", async () => {
    const { chat, engine, model } = await makeWorld();
    const options = { key: "key-of-few-tokens" };
    const session = { quire: { session_id: `${model}-paid` } };
    const used = async () => (await stateOf("few-tokens")).tokens;
    // What was used drains: 10 tokens a second, as long as a busy machine takes.
    const startMs = Date.now();
    const drained = () => 5 + (10 * (Date.now() - startMs)) / 1_000;
    await engine.script(...says("four"));
    const first = (await (await chat("x".repeat(100), session, options)).json()) as { usage: Record<string, number> };
    const one = await used();
    const { prompt_tokens: prompt = 0, completion_tokens: completion = 0 } = first.usage;
    expect(prompt).toBeGreaterThan(100);
    expect(one).toBeGreaterThan(prompt + completion - drained());
    expect(one).toBeLessThanOrEqual(prompt + completion);
    await engine.script(
      { do: "admit" },
      { do: "tokens", ids: [...ids("y".repeat(50)), END] },
      { do: "done", reason: "stop" },
    );
    const second = (await (await chat("z", session, options)).json()) as { usage: Record<string, number> };
    // The log's tokens were paid for in the first turn.
    const added = (second.usage.prompt_tokens ?? 0) - prompt - completion + (second.usage.completion_tokens ?? 0);
    expect(added).toBeLessThan(70);
    const two = await used();
    expect(two - one).toBeGreaterThan(added - drained());
    expect(two - one).toBeLessThanOrEqual(added + 2);
    await engine.script(
      { do: "admit" },
      { do: "tokens", ids: [...ids("y".repeat(900)), END] },
      { do: "done", reason: "stop" },
    );
    expect((await chat("z", session, options)).status).toBe(200);
    const refused = await chat("z", session, options);
    expect(refused.status).toBe(429);
    expect(refused.headers.get("x-ratelimit-remaining-tokens")).toBe("0");
    expect(((await refused.json()) as { error: { message: string } }).error.message).toContain("600 tokens per minute");
  });

  it("is counted across the object's death", async () => {
    const limiter = limiterOf(env, "e".repeat(64));
    const asked = { leaseId: undefined, tokensEstimated: 5, limits: { ...limits, requestsPerMinute: 1 } };
    expect((await limiter.admit(asked)).refusedBy).toBeUndefined();
    const stored = () => runInDurableObject(limiter, (_, state) => state.storage.kv.get("budget"));
    expect(await stored()).toBeUndefined();
    await until(async () => (await stored()) !== undefined);
    expect(await stored()).toMatchObject({ requestsUsed: 1, tokensUsed: 5 });
  });
});

describe("limits", () => {
  it("are the key's, then the deployment's, then the defaults", () => {
    expect(limitsOf(undefined, {})).toEqual({
      requestsPerMinute: LIMITS.requestsPerMinuteDefault,
      tokensPerMinute: LIMITS.tokensPerMinuteDefault,
      turnsConcurrent: LIMITS.turnsConcurrentDefault,
    });
    const deployed = { QUIRE_LIMITS: '{"requests_per_minute":5,"tokens_per_minute":6}' };
    expect(limitsOf({ requestsPerMinute: 9 }, deployed)).toEqual({
      requestsPerMinute: 9,
      tokensPerMinute: 6,
      turnsConcurrent: LIMITS.turnsConcurrentDefault,
    });
    for (const bad of ["{", "[]", '{"requests":1}', '{"requests_per_minute":0}']) {
      expect(() => limitsOf(undefined, { QUIRE_LIMITS: bad })).toThrow("its limits cannot be read");
    }
  });

  it("are written as OpenAI writes them", () => {
    const written = [0, 1, 999, 1_000, 1_540, 59_949, 59_999, 60_000, 361_000, 3_600_000].map(duration);
    expect(written).toEqual(["0ms", "1ms", "999ms", "1s", "1.5s", "59.9s", "1m0s", "1m0s", "6m1s", "60m0s"]);
    expect(
      rateHeaders({
        requests: { limit: 60, remaining: 59, resetMs: 1_000 },
        tokens: { limit: 150_000, remaining: 149_984, resetMs: 361_000 },
      }),
    ).toEqual({
      "x-ratelimit-limit-requests": "60",
      "x-ratelimit-remaining-requests": "59",
      "x-ratelimit-reset-requests": "1s",
      "x-ratelimit-limit-tokens": "150000",
      "x-ratelimit-remaining-tokens": "149984",
      "x-ratelimit-reset-tokens": "6m1s",
    });
  });
});
