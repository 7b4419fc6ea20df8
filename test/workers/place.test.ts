/** A turn that goes on while its place is asked for, and one that goes where the last one was. */
import { runInDurableObject } from "cloudflare:test";
import { describe, expect, it } from "vitest";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { PlaceCredit } from "../../workers/limits/place.ts";
import { type Limits, TenantBudget } from "../../workers/limits/tenant-budget.ts";
import { limiterOf, type TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
import { Placement } from "../../workers/session-log/placement.ts";
import { edge, env, FakeEngine, KEY_A, makeWorld, register, says, until } from "./world.ts";

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
    // The sessions that were refused are free.
    for (const { index } of refused) {
      const again = await chat("hi", { quire: { session_id: sessions[index] } }, options);
      expect(again.status).toBe(200);
      await again.text();
    }
  });

  it("is counted for every request once, also for those that come to nothing", { timeout: 60_000 }, async () => {
    const { chat, post } = await makeWorld();
    const before = (await used()).requests;
    const startMs = Date.now();
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
