import { afterEach, describe, expect, it, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { AUTO_MODEL, RouterHealth, routePrompt } from "../../workers/prompt-router/auto-model.ts";
import { chooseModel } from "../../workers/prompt-router/choose-model.ts";
import type { PromptRouterService } from "../../workers/prompt-router/contract.ts";
import { FEATURE_COUNT, promptFeatures } from "../../workers/prompt-router/features.ts";
import { handle } from "../../workers/router.ts";
import { metricsText, ROUTING_OUTCOMES, type RoutingOutcome } from "../../workers/routing-counts.ts";
import type { ChatRequest } from "../../workers/validate-chat.ts";
import { env, KEY_A, makeWorld, register, says, until } from "./world.ts";

const SECRET = "The pin of Zuzobe is 4965";
const messages = [{ role: "user" as const, content: `${SECRET}. What is the pin of Zuzobe?` }];
const defaults = { policy: "auto", budgetTokens: 0, exact: false } as const;

/** A router that answers `answer`, and what it was asked. */
function fakeRouter(answer: (features: Float32Array) => unknown) {
  const asked: unknown[][] = [];
  const choose = async (...given: [Float32Array]) => {
    asked.push(given);
    return answer(given[0]);
  };
  return { asked, router: { choose } as PromptRouterService };
}

function chatOf(more: { model?: string; sessionId?: string } = {}): ChatRequest {
  return { model: AUTO_MODEL, messages, turn: { selection: defaults }, ...more } as unknown as ChatRequest;
}

/** What the choice is made with: models other than `known` are not there. */
function contextOf(router: PromptRouterService, known: readonly string[] = ["default", "house"]) {
  const counted: RoutingOutcome[] = [];
  return {
    counted,
    count: (outcome: RoutingOutcome) => void counted.push(outcome),
    env: { ...env, PROMPT_ROUTER: router },
    namespace: `n-${crypto.randomUUID()}`,
    requestId: "r-1",
    namesSelection: false,
    health: new RouterHealth(() => 0),
    resolve: async (name: string | undefined) => {
      if (name === undefined || !known.includes(name)) throw new Error(`no model ${name}`);
      return name;
    },
  };
}

afterEach(() => void vi.restoreAllMocks());

describe("model auto", () => {
  it("runs the turn on the model and selection that the router chose, and says which", async () => {
    const world = await makeWorld();
    await register(world.engine, world.model);
    await world.engine.script(...says("It is 4965."));
    const { router, asked } = fakeRouter(() => ({ model: world.model, policy: "mean-deviation", budgetTokens: 256 }));
    const response = await postAuto(router, { messages });
    expect(response.status).toBe(200);
    const body = (await response.json()) as { model: string };
    expect(body.model).toBe(world.model);
    const { request } = await world.engine.lastCall();
    expect(request).toMatchObject({ selection: { policy: "mean-deviation", budgetTokens: 256, exact: false } });
    // Numbers are all that it was told.
    expect(asked).toHaveLength(1);
    expect(asked[0]).toEqual([promptFeatures(messages)]);
  });

  it("leaves a selection alone that the request names", async () => {
    const world = await makeWorld();
    await register(world.engine, world.model);
    await world.engine.script(...says("It is 4965."));
    const { router } = fakeRouter(() => ({ model: world.model, policy: "mean-deviation", budgetTokens: 256 }));
    const selection = { policy: "quest", budget_tokens: 512 };
    const response = await postAuto(router, { messages, quire: { selection } });
    expect(response.status).toBe(200);
    await response.text();
    const { request } = await world.engine.lastCall();
    expect(request).toMatchObject({ selection: { policy: "quest", budgetTokens: 512 } });
  });

  it("is a model of the list where a router is bound, and unknown where none is", async () => {
    const world = await makeWorld();
    await register(world.engine, world.model);
    const { router } = fakeRouter(() => undefined);
    const headers = { authorization: `Bearer ${KEY_A}` };
    const idsOf = async (bindings: object) => {
      const response = await handle(new Request("http://edge.test/v1/models", { headers }), { ...env, ...bindings });
      return ((await response.json()) as { data: { id: string }[] }).data.map(({ id }) => id);
    };
    expect(await idsOf({ PROMPT_ROUTER: router })).toContain(AUTO_MODEL);
    expect(await idsOf({})).not.toContain(AUTO_MODEL);
    const one = new Request("http://edge.test/v1/models/auto", { headers });
    expect((await handle(one.clone() as Request, { ...env, PROMPT_ROUTER: router })).status).toBe(200);
    expect((await handle(one, env)).status).toBe(404);
    const unrouted = await handle(chatRequest({ messages }), env);
    expect(unrouted.status).toBe(404);
    expect(await unrouted.json()).toMatchObject({ error: { code: "model_not_found", param: "model" } });
  });

  it("does not ask about a request that holds only what is new of its session", async () => {
    const { router, asked } = fakeRouter(() => ({ model: "house", policy: "streaming", budgetTokens: 128 }));
    const chosen = await chooseModel(chatOf({ sessionId: "s-of-nobody" }), contextOf(router));
    expect(chosen).toEqual({ model: "default", selection: defaults });
    expect(asked).toEqual([]);
  });

  it("is not asked about other models", async () => {
    const { router, asked } = fakeRouter(() => ({ model: "house", policy: "streaming", budgetTokens: 128 }));
    expect(await chooseModel(chatOf({ model: "house" }), contextOf(router))).toEqual({
      model: "house",
      selection: defaults,
    });
    expect(asked).toEqual([]);
  });
});

describe("a router that does not choose", () => {
  const garbage: [string, unknown][] = [
    ["nothing", undefined],
    ["null", null],
    ["text", "dense"],
    ["no model", { policy: "dense", budgetTokens: 2048 }],
    ["itself", { model: AUTO_MODEL, policy: "dense", budgetTokens: 2048 }],
    ["a policy of its own", { model: "house", policy: "psychic", budgetTokens: 2048 }],
    ["another choice to make", { model: "house", policy: "auto", budgetTokens: 2048 }],
    ["NaN", { model: "house", policy: "quest", budgetTokens: Number.NaN }],
    ["part of a page", { model: "house", policy: "quest", budgetTokens: 250 }],
    ["too little", { model: "house", policy: "quest", budgetTokens: 16 }],
    ["too much", { model: "house", policy: "quest", budgetTokens: 1 << 24 }],
    ["a text for a number", { model: "house", policy: "quest", budgetTokens: "256" }],
  ];
  it.each(garbage)(
    "answers %s: the turn goes on with the defaults, and the log says so without its words",
    async (_, answer) => {
      const log = vi.spyOn(console, "error").mockImplementation(() => undefined);
      const { router } = fakeRouter(() => answer);
      const context = contextOf(router);
      expect(await chooseModel(chatOf(), context)).toEqual({ model: "default", selection: defaults });
      expect(context.counted).toEqual(["failed"]);
      expect(log).toHaveBeenCalledTimes(1);
      const line = String(log.mock.calls[0]?.[0]);
      expect(JSON.parse(line)).toMatchObject({ level: "error", requestId: "r-1", code: "internal" });
      expect(line).not.toMatch(/Zuzobe|4965/);
    },
  );

  it("fails: the same, and what its error quotes is not logged", async () => {
    const log = vi.spyOn(console, "error").mockImplementation(() => undefined);
    const { router } = fakeRouter(() => {
      throw new Error(`cannot read "${SECRET}"`);
    });
    expect(await chooseModel(chatOf(), contextOf(router))).toEqual({ model: "default", selection: defaults });
    expect(String(log.mock.calls)).not.toMatch(/Zuzobe|4965/);
  });

  it("never answers: it is not waited for", async () => {
    vi.spyOn(console, "error").mockImplementation(() => undefined);
    const { router } = fakeRouter(() => new Promise(() => undefined));
    const context = contextOf(router);
    expect(await chooseModel(chatOf(), context)).toEqual({ model: "default", selection: defaults });
    expect(context.counted).toEqual(["late"]);
  });

  it("chooses a model that is not there: neither its model nor its budget counts", async () => {
    const { router } = fakeRouter(() => ({ model: "house", policy: "quest", budgetTokens: 256 }));
    const context = contextOf(router, ["default"]);
    expect(await chooseModel(chatOf(), context)).toEqual({ model: "default", selection: defaults });
    expect(context.counted).toEqual(["unserved"]);
  });

  it("is left alone after some failures in a row, for a while", async () => {
    vi.spyOn(console, "error").mockImplementation(() => undefined);
    let nowMs = 1_000;
    const health = new RouterHealth(() => nowMs);
    let answer: unknown;
    const { router, asked } = fakeRouter(() => answer);
    const counted: RoutingOutcome[] = [];
    const count = (outcome: RoutingOutcome) => void counted.push(outcome);
    const ask = () => routePrompt(router, messages, { requestId: "r-1", health, count });
    for (let request = 0; request < 10; request++) expect(await ask()).toBeUndefined();
    expect(asked).toHaveLength(LIMITS.promptRouterFailureCountMax);
    expect(counted).toEqual(Array.from({ length: 10 }, (_, at) => (at < asked.length ? "failed" : "resting")));
    nowMs += LIMITS.promptRouterRestMs;
    answer = { model: "house", policy: "quest", budgetTokens: 256 };
    expect(await ask()).toEqual({ model: "house", selection: { policy: "quest", budgetTokens: 256 } });
    // A success forgets the failures before it.
    answer = undefined;
    await ask();
    answer = { model: "house", policy: "quest", budgetTokens: 256 };
    await ask();
    answer = undefined;
    for (let request = 0; request < LIMITS.promptRouterFailureCountMax - 1; request++) await ask();
    expect(health.isResting).toBe(false);
  });
});

describe("what became of prompts", () => {
  const read = async (key: string) => {
    const headers = { authorization: `Bearer ${key}` };
    return handle(new Request("http://edge.test/metrics", { headers }), env);
  };
  const numbersOf = (text: string) =>
    Object.fromEntries(
      [...text.matchAll(/prompts_total\{outcome="(\w+)"\} (\d+)/g)].map(([, name, n]) => [name, Number(n)]),
    );

  it("is counted, and read with an operator's key", async () => {
    const world = await makeWorld();
    await register(world.engine, world.model);
    const before = numbersOf(await (await read("key-of-operator")).text());
    expect(Object.keys(before)).toEqual([...ROUTING_OUTCOMES]);
    const { router } = fakeRouter(() => ({ model: world.model, policy: "quest", budgetTokens: 256 }));
    await world.engine.script(...says("It is 4965."));
    await (await postAuto(router, { messages })).text();
    await until(async () => {
      const now = numbersOf(await (await read("key-of-operator")).text());
      return now.chosen === (before.chosen ?? 0) + 1 && now.failed === before.failed;
    });
    expect((await read(KEY_A)).status).toBe(403);
    expect((await handle(new Request("http://edge.test/metrics"), env)).status).toBe(401);
  });

  it("is the sum over all Fleet objects", () => {
    const text = metricsText([
      { chosen: 1, unserved: 0, late: 2, failed: 0, resting: 0 },
      { chosen: 3, unserved: 1, late: 0, failed: 0, resting: 0 },
    ]);
    expect(numbersOf(text)).toEqual({ chosen: 4, unserved: 1, late: 2, failed: 0, resting: 0 });
    expect(text).toContain("# TYPE quire_prompt_router_prompts_total counter\n");
  });
});

describe("features", () => {
  const user = (content: string) => ({ role: "user" as const, content });
  const hostile: [string, { role: "user"; content: string }[]][] = [
    ["no messages", []],
    ["an empty message", [user("")]],
    ["blanks", [user(" \n\t ")]],
    ["one letter, four million times", [user("A".repeat(4 << 20))]],
    ["a sentence without an end", [user("Word ".repeat(200_000))]],
    ["names only", [user("Zuzobe ".repeat(200_000))]],
    ["half a character", [user("\ud800 What is \udfff?")]],
    ["patterns", [user(`${"(a+)+".repeat(10_000)}$ What is .*?`)]],
    ["many messages", Array.from({ length: LIMITS.messageCountMax }, () => user("Go on."))],
  ];
  it.each(hostile)("are finite numbers for %s", (_, given) => {
    const features = promptFeatures(given);
    expect(features).toHaveLength(FEATURE_COUNT);
    expect(features.every(Number.isFinite)).toBe(true);
    expect(Math.max(...features.map(Math.abs))).toBeLessThan(128);
  });

  it("look at a bounded end of a text", () => {
    const end = ` ${"It rained. ".repeat(20_000)}What is the pin of Zuzobe?`;
    const one = promptFeatures([user("The pin of Zuzobe is 4965. |".repeat(1_000) + end)]);
    const other = promptFeatures([user("The sky over Zuzobe is grey.".repeat(1_000) + end)]);
    expect(one).toEqual(other);
  });

  it("tell what stands in the text from what does not", () => {
    const text = "The pin of Zuzobe is 4965. ".repeat(3);
    const known = promptFeatures([user(`${text}What is the pin of Zuzobe?`)]);
    const unknown = promptFeatures([user(`${text}What is the pin of Badoru?`)]);
    const isAbsent = 7;
    expect([known[isAbsent], unknown[isAbsent]]).toEqual([0, 1]);
    // Names are not what is learnt: two that stand in a text equally often look alike.
    const renamed = promptFeatures([user(`${text}What is the pin of Zuzobe?`.replaceAll("Zuzobe", "Badoru"))]);
    expect(renamed).toEqual(known);
  });
});

function chatRequest(body: object): Request {
  return new Request("http://edge.test/v1/chat/completions", {
    method: "POST",
    headers: { authorization: `Bearer ${KEY_A}`, "content-type": "application/json" },
    body: JSON.stringify({ model: AUTO_MODEL, ...body }),
  });
}

function postAuto(router: PromptRouterService, body: object): Promise<Response> {
  return handle(chatRequest(body), { ...env, PROMPT_ROUTER: router });
}
