import { createHash, randomBytes } from "node:crypto";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { KeyCache, KeyTableCache } from "../../workers/auth/key-cache.ts";
import { KeyIndex, keyTableJson, readKeyTable } from "../../workers/auth/key-record.ts";
import { KeyRing } from "../../workers/auth/key-ring.ts";
import type { Env } from "../../workers/env.ts";
import { handle } from "../../workers/router.ts";
import { edge, env, KEY_A, makeWorld, textOf } from "./world.ts";

const OPERATOR = "key-of-operator";

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
const newKey = () => `qk-${randomBytes(32).toString("base64url")}`;
const bearer = (key: string) => ({ authorization: `Bearer ${key}` });

async function ring(method: string, path: string, body?: unknown, key = OPERATOR) {
  const response = await edge(`/v1/keys${path}`, {
    method,
    headers: { ...bearer(key), "content-type": "application/json" },
    body: body === undefined ? null : JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

/** The status of an authenticated request that does nothing. */
async function statusFor(key: string): Promise<number> {
  const response = await edge("/v1/models", { headers: bearer(key) });
  await response.text();
  return response.status;
}

const inAnHour = () => Math.floor(Date.now() / 1000) + 3600;

describe("the key ring", () => {
  it("takes hashes and serves the keys behind them, in their tenant's name", async () => {
    const key = newKey();
    expect(await statusFor(key)).toBe(401);
    const made = await ring("POST", "", { hash: sha256(key), tenant: "ring-a", label: "ci", expires_s: inAnHour() });
    expect(made.status).toBe(201);
    expect(made.body).toMatchObject({
      object: "key",
      id: `key_${sha256(key).slice(0, 12)}`,
      tenant: "ring-a",
      scopes: ["generate", "sessions:read", "sessions:write"],
      label: "ci",
    });
    expect(JSON.stringify(made.body)).not.toContain(sha256(key).slice(12));
    expect(await statusFor(key)).toBe(200);
    const { chat, engine } = await makeWorld();
    expect(await textOf(await chat("hi", {}, { key }))).toBe("ok");
    const mine = (await engine.lastCall()).request.namespace;
    expect(await textOf(await chat("hi"))).toBe("ok");
    expect((await engine.lastCall()).request.namespace).not.toBe(mine);
  });

  it("is asked again where its object was lost, and refuses nobody for that", async () => {
    const key = newKey();
    await ring("POST", "", { hash: sha256(key), tenant: "ring-lost" });
    const found = vi.spyOn(KeyRing.prototype, "find");
    onTestFinished(() => found.mockRestore());
    found.mockRejectedValueOnce(new Error("Durable Object reset because its code was updated."));
    expect(await statusFor(key)).toBe(200);
    expect(found).toHaveBeenCalledTimes(2);
  });

  it("lists pages of ids without hashes, one tenant's or all", async () => {
    const tenant = `pages-${randomBytes(4).toString("hex")}`;
    const keys = Array.from({ length: 5 }, newKey);
    for (const key of keys) expect((await ring("POST", "", { hash: sha256(key), tenant })).status).toBe(201);
    const wanted = keys.map((key) => `key_${sha256(key).slice(0, 12)}`).sort();
    const seen: string[] = [];
    let more = true;
    while (more) {
      const { status, body } = await ring(
        "GET",
        `?tenant=${tenant}&limit=2&after=${seen.at(-1) ?? "key_000000000000"}`,
      );
      expect(status).toBe(200);
      seen.push(...(body.data as { id: string }[]).map(({ id }) => id));
      more = body.has_more as boolean;
    }
    expect(seen).toEqual(wanted);
    expect(((await ring("GET", "?tenant=nobody")).body.data as unknown[]).length).toBe(0);
    expect((await ring("GET", "")).body.data).toEqual(
      expect.arrayContaining(wanted.map((id) => expect.objectContaining({ id }))),
    );
  });

  it("ends keys: now, later, never later than before", async () => {
    const [revoked, expired, kept] = [newKey(), newKey(), newKey()];
    const id = (key: string) => `key_${sha256(key).slice(0, 12)}`;
    const endS = inAnHour();
    for (const key of [revoked, expired, kept])
      await ring("POST", "", { hash: sha256(key), tenant: "t", expires_s: endS });
    for (const key of [revoked, expired, kept]) expect(await statusFor(key)).toBe(200);
    expect((await ring("DELETE", `/${id(revoked)}`)).status).toBe(200);
    expect(await statusFor(revoked)).toBe(401);
    expect((await ring("POST", `/${id(expired)}/expire`, { expires_s: 1 })).status).toBe(200);
    expect(await statusFor(expired)).toBe(401);
    expect((await ring("POST", `/${id(kept)}/expire`, { expires_s: endS + 9999 })).body).toMatchObject({
      expires_s: endS,
    });
    expect(await statusFor(kept)).toBe(200);
    expect((await ring("GET", `/${id(kept)}`)).body).toMatchObject({ tenant: "t", expires_s: endS });
    for (const [method, path] of [
      ["DELETE", ""],
      ["GET", ""],
      ["POST", "/expire"],
    ] as const) {
      const gone = await ring(method, `/${id(revoked)}${path}`, method === "POST" ? { expires_s: 1 } : undefined);
      expect(gone).toMatchObject({ status: 404, body: { error: { code: "not_found", param: "id" } } });
    }
  });

  it.each([
    ["no hash", { tenant: "t" }, "hash"],
    ["a key instead of its hash", { hash: newKey(), tenant: "t" }, "hash"],
    ["no tenant", { hash: sha256(newKey()) }, "tenant"],
    ["a tenant that is a path", { hash: sha256(newKey()), tenant: "../a" }, "tenant"],
    ["an unknown scope", { hash: sha256(newKey()), tenant: "t", scopes: ["root"] }, "scopes"],
    ["an operator", { hash: sha256(newKey()), tenant: "t", scopes: ["keys"] }, "scopes"],
    ["no scopes", { hash: sha256(newKey()), tenant: "t", scopes: [] }, "scopes"],
    [
      "limits of nothing",
      { hash: sha256(newKey()), tenant: "t", limits: { requests_per_minute: 0 } },
      "requests_per_minute",
    ],
    ["an unknown field", { hash: sha256(newKey()), tenant: "t", admin: true }, "admin"],
    ["a key that is there", { hash: sha256(KEY_A), tenant: "t" }, undefined],
  ])("refuses %s", async (_name, body, param) => {
    const answer = await ring("POST", "", body);
    if (param === undefined) {
      // Tables do not meet: one that is in the secret stays who it was, whatever the ring says of it.
      expect(answer.status).toBe(201);
      const again = await ring("POST", "", body);
      expect(again).toMatchObject({ status: 400, body: { error: { param: "hash" } } });
      return;
    }
    expect(answer.status).toBe(400);
    expect((answer.body.error as { param: string }).param).toContain(param);
  });

  it("is for operators", async () => {
    for (const [method, path] of [
      ["GET", ""],
      ["POST", ""],
      ["GET", "/key_000000000000"],
      ["DELETE", "/key_000000000000"],
      ["POST", "/key_000000000000/expire"],
    ] as const) {
      const answer = await ring(method, path, method === "POST" ? {} : undefined, KEY_A);
      expect(answer).toMatchObject({ status: 403, body: { error: { code: "permission_denied" } } });
    }
  });
});

describe("scopes and ends of keys", () => {
  it("a key does what its scopes say and nothing else", async () => {
    const { model, chat, post } = await makeWorld();
    await (await chat("hi", { quire: { session_id: `${model}-s` } })).text();
    const denied = (scope: string) => ({
      error: {
        message: `This API key does not have the scope '${scope}'.`,
        type: "permission_error",
        param: null,
        code: "permission_denied",
      },
    });
    const session = `/v1/sessions/${model}-s`;
    const reader = bearer("key-that-reads");
    expect((await edge(session, { headers: reader })).status).toBe(200);
    expect((await edge("/v1/models", { headers: reader })).status).toBe(200);
    for (const [scope, answer] of [
      ["generate", await chat("hi", {}, { key: "key-that-reads" })],
      ["generate", await post("/v1/completions", { prompt: "hi" }, { key: "key-that-reads" })],
      ["generate", await edge(`${session}/stream`, { headers: reader })],
      ["generate", await edge(`${session}/stream`, { method: "DELETE", headers: reader })],
      ["sessions:write", await edge(session, { method: "DELETE", headers: reader })],
      ["sessions:write", await edge(`${session}/fork`, { method: "POST", headers: reader })],
      ["generate", await chat("hi", {}, { key: OPERATOR })],
      ["sessions:read", await edge(session, { headers: bearer(OPERATOR) })],
    ] as const) {
      expect(answer.status).toBe(403);
      expect(await answer.json()).toEqual(denied(scope));
    }
  });

  it("an expired key is refused", async () => {
    const response = await edge("/v1/models", { headers: bearer("key-that-ended") });
    expect(response.status).toBe(401);
    expect(await response.json()).toMatchObject({
      error: { code: "invalid_api_key", message: "This API key has expired." },
    });
  });
});

describe("a table of keys", () => {
  const hash = sha256("k");

  it("is what it was after writing and reading", () => {
    const record = {
      tenant: "t",
      scopes: ["generate"],
      created_s: 5,
      expires_s: 9,
      label: "l'été",
      limits: { requests_per_minute: 1, tokens_per_minute: 2, turns_concurrent: 3 },
    };
    const table = readKeyTable(JSON.stringify({ [hash]: record }));
    expect(keyTableJson(table)).toEqual({ [hash]: { id: `key_${hash.slice(0, 12)}`, ...record } });
    expect(readKeyTable(JSON.stringify(keyTableJson(table)))).toEqual(table);
    expect(new KeyIndex(table).find(hash)?.tenant).toBe("t");
    expect(new KeyIndex(table).find(sha256("other"))).toBeUndefined();
    expect(new KeyIndex(table).find(hash.slice(0, 63))).toBeUndefined();
  });

  it.each([
    "[]",
    '{"abc":{"tenant":"t"}}',
    `{"${hash}":{}}`,
    `{"${hash}":{"tenant":7}}`,
    `{"__proto__":{"tenant":"t"}}`,
    `{"${hash.toUpperCase()}":{"tenant":"t"}}`,
  ])("is refused: %s", (text) => {
    expect(() => readKeyTable(text)).toThrow();
  });

  it("has a limit", () => {
    const big = Object.fromEntries(Array.from({ length: 257 }, (_, index) => [sha256(`${index}`), { tenant: "t" }]));
    expect(() => readKeyTable(JSON.stringify(big))).toThrow("at most 256");
  });
});

describe("what an isolate remembers of keys", () => {
  it("is another table when the secret is another one", () => {
    const tables = new KeyTableCache();
    const of = (key: string) => JSON.stringify({ [sha256(key)]: { tenant: key } });
    const first = tables.of(of("a"));
    expect(first.find(sha256("a"))?.tenant).toBe("a");
    expect(tables.of(of("a"))).toBe(first);
    expect(tables.of(of("b")).find(sha256("a"))).toBeUndefined();
    expect(() => tables.of("{")).toThrow();
    expect(tables.of(of("b")).find(sha256("b"))?.tenant).toBe("b");
    expect(tables.of("").find(sha256("b"))).toBeUndefined();
  });

  const record = { id: "key_1", tenant: "t", scopes: ["generate"], createdS: 0 } as const;

  it("is bounded in time and number", () => {
    let now = 0;
    const cache = new KeyCache({ countMax: 2, ageMsMax: 10, staleMsMax: 50, now: () => now });
    cache.put("a", record);
    cache.put("b", record);
    expect(cache.get("a")).toBe(record);
    cache.put("c", record);
    expect([cache.get("b"), cache.stale("b")]).toEqual([undefined, undefined]);
    expect(cache.get("a")).toBe(record);
    now = 9;
    expect(cache.get("a")).toBe(record);
    now = 10;
    expect([cache.get("a"), cache.stale("a")]).toEqual([undefined, record]);
    now = 50;
    expect(cache.stale("a")).toBeUndefined();
    cache.put("d", record);
    cache.delete("d");
    expect(cache.stale("d")).toBeUndefined();
    cache.put("d", record);
    cache.clear();
    expect(cache.stale("d")).toBeUndefined();
  });

  it("serves those who were here while the key ring does not answer, and nobody else", async () => {
    const [key, other] = [newKey(), newKey()];
    for (const each of [key, other]) await ring("POST", "", { hash: sha256(each), tenant: "stale" });
    expect(await statusFor(key)).toBe(200);
    const broken = {
      ...env,
      KEY_RING: { idFromName: () => "", get: () => ({ find: () => Promise.reject(new Error("down")) }) },
    };
    const ask = async (each: string) => {
      const request = new Request("http://edge.test/v1/models", { headers: bearer(each) });
      const response = await handle(request, broken as unknown as Env);
      await response.text();
      return response.status;
    };
    const { now } = Date;
    try {
      const laterMs = now() + LIMITS.keyCacheMsMax + 1;
      Date.now = () => laterMs;
      expect(await ask(key)).toBe(200);
      expect(await ask(other)).toBe(500);
      Date.now = () => laterMs + LIMITS.keyStaleMsMax;
      expect(await ask(key)).toBe(500);
    } finally {
      Date.now = now;
    }
    expect(await statusFor(key)).toBe(200);
  });
});
