/** The engine's HTTP interface, spoken to as the edge does, with hostile clients among them. */
import { mkdtemp, rm } from "node:fs/promises";
import { get } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { Engine } from "../../engine/engine.ts";
import { type EngineServer, startEngineServer } from "../../engine/server.ts";
import { encodeFrame, FrameDecoder } from "../../protocol/frames.ts";
import { ENGINE_PATHS, type EngineEvent, type GenerateRequest, type SessionStatus } from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { engineAudience, signRequest } from "../../protocol/signature.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { request as tinyRequest } from "./harness.ts";
import { HOUSE_0_SERVER } from "./house-server.ts";

const KEY = "engine-key-for-tests";
const PROMPT = [256, 257, ...Buffer.from("A short passage about nothing much. What is it?"), 258];
let server: EngineServer;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quire-engine-"));
  server = await startEngineServer({
    host: "127.0.0.1",
    port: 0,
    modelFolder: "weights/house-0",
    storeUrl: `fs:${folder}`,
    env: {},
    device: "wasm",
    weightEncoding: "f32",
    kvEncoding: "int8",
    summaryKinds: ["min-max", "mean-deviation"],
    poolBytes: 128 * 1024 * 1024,
    contextTokensMax: 8192,
    engineKey: KEY,
    settings: { manifestCommitMs: 0, segmentTokens: 64 },
    log: () => {},
  });
});
afterAll(async () => {
  await server.stop(1000);
  await rm(folder, { recursive: true, force: true });
});

describe("an engine whose port is taken", () => {
  it("ends its loop before it says so", async () => {
    const stop = vi.spyOn(Engine.prototype, "stop");
    const port = Number(new URL(server.url).port);
    await expect(startEngineServer({ ...HOUSE_0_SERVER, port })).rejects.toMatchObject({ code: "EADDRINUSE" });
    expect(stop).toHaveBeenCalledTimes(1);
    expect(stop.mock.settledResults[0]?.type).toBe("fulfilled");
    stop.mockRestore();
  });
});

function house(fields: Partial<GenerateRequest> = {}): GenerateRequest {
  return tinyRequest({ model: "house-0", tokens: idsToBytes(PROMPT), stopTokens: [259], ...fields });
}

async function post(
  path: string,
  body: Uint8Array<ArrayBuffer>,
  init: { key?: string; signal?: AbortSignal } = {},
): Promise<Response> {
  return fetch(server.url + path, {
    method: "POST",
    body,
    headers: { authorization: await sign({ body, path, key: init.key ?? KEY }) },
    ...(init.signal ? { signal: init.signal } : {}),
  });
}

/** A header as the edge makes it, with a test's changes. */
function sign(parts: { body: Uint8Array; path?: string; key?: string; engineId?: string; nowMs?: number }) {
  const { body, path = ENGINE_PATHS.generate, key = KEY, engineId = server.engineId, nowMs = Date.now() } = parts;
  return signRequest(key, { audience: engineAudience(engineId), method: "POST", path }, body, nowMs);
}

async function events(response: Response): Promise<EngineEvent[]> {
  const decoder = new FrameDecoder();
  const all: EngineEvent[] = [];
  for await (const chunk of response.body!) all.push(...(decoder.push(chunk) as EngineEvent[]));
  expect(decoder.atBoundary).toBe(true);
  return all;
}

async function generate(fields: Partial<GenerateRequest> = {}): Promise<EngineEvent[]> {
  return await events(await post(ENGINE_PATHS.generate, encodeFrame(house(fields))));
}

describe("a generation", () => {
  it("is admitted, streams ids and ends with one terminal event", async () => {
    const all = await generate({ maxTokens: 40 });
    expect(all[0]).toMatchObject({ type: "admitted", engineId: server.engineId });
    const ids = all.flatMap((event) => (event.type === "tokens" ? [...bytesToIds(event.ids)] : []));
    const last = all.at(-1);
    expect(last).toMatchObject({ type: "done", usage: { promptTokens: PROMPT.length, completionTokens: ids.length } });
    expect(all.filter((event) => event.type === "done" || event.type === "failed")).toHaveLength(1);
    expect(ids.length).toBeGreaterThan(0);
  });

  it("gives logprobs that belong to the tokens", async () => {
    const all = await generate({ maxTokens: 5, topLogprobs: 3 });
    const tokens = all.filter((event) => event.type === "tokens");
    const ids = tokens.flatMap((event) => [...bytesToIds(event.ids)]);
    const logprobs = tokens.flatMap((event) => event.logprobs ?? []);
    expect(logprobs).toHaveLength(ids.length);
    for (const [index, entry] of logprobs.entries()) {
      expect(entry.top).toHaveLength(3);
      expect(entry.top[0]).toEqual([ids[index], entry.logprob]);
      expect(entry.logprob).toBeLessThanOrEqual(0);
    }
  });

  it("can be cancelled by name and still tells what it computed", async () => {
    const fields = house({ maxTokens: 4000, stopTokens: [] });
    const response = await post(ENGINE_PATHS.generate, encodeFrame(fields));
    const answer = events(response);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const cancelled = await post(ENGINE_PATHS.cancel, encodeFrame({ version: 1, requestId: fields.requestId }));
    expect(cancelled.status).toBe(204);
    const last = (await answer).at(-1);
    expect(last).toMatchObject({ type: "done", reason: "cancelled" });
    const { spans, usage } = last as Extract<EngineEvent, { type: "done" }>;
    expect(spans.at(-1)?.end).toBe(PROMPT.length + usage.completionTokens);
  });

  it("ends within a second when its connection closes, in prefill too", async () => {
    const abort = new AbortController();
    const long = Array.from({ length: 7000 }, (_, index) => PROMPT[2 + (index % 40)]!);
    const response = await post(
      ENGINE_PATHS.generate,
      encodeFrame(house({ tokens: idsToBytes(long), maxTokens: 900 })),
      { signal: abort.signal },
    );
    expect(response.status).toBe(200);
    expect(server.opened.engine.status.runningCount).toBe(1);
    abort.abort();
    await expect.poll(() => server.opened.engine.status.runningCount, { timeout: 1000, interval: 20 }).toBe(0);
  });
});

describe("a session", () => {
  it("reports what is durable, and forgets it when deleted", async () => {
    const session = { id: "durable" };
    const body = encodeFrame({ version: 1, namespace: house().namespace, sessionId: session.id });
    const all = await generate({ session, maxTokens: 8, stopTokens: [] });
    expect(all.at(-1)?.type).toBe("done");
    const status = async () => (await (await post(ENGINE_PATHS.sessionStatus, body)).json()) as SessionStatus;
    await expect
      .poll(status, { timeout: 3000 })
      .toMatchObject({ persistedTokens: PROMPT.length + 8, pending: false, generation: 1 });
    expect((await post(ENGINE_PATHS.sessionDelete, body)).status).toBe(204);
    expect(await status()).toMatchObject({ persistedTokens: 0 });
  });
});

describe("whoever is not the edge", () => {
  const body = encodeFrame(house());
  const other = encodeFrame(house({ maxTokens: 1 }));
  const send = (authorization: string | undefined, sent = body, path: string = ENGINE_PATHS.generate) =>
    fetch(server.url + path, {
      method: "POST",
      body: sent,
      headers: authorization === undefined ? {} : { authorization },
    });

  it.each<[string, () => Promise<string | undefined>, Uint8Array<ArrayBuffer>?, string?]>([
    ["sends no signature", async () => undefined],
    ["sends the key itself", async () => `Bearer ${KEY}`],
    ["signs with another key", () => sign({ body, key: "another-key-of-16" })],
    [
      "signs for another engine, or for this one before it was started again",
      () => sign({ body, engineId: "engine-1" }),
    ],
    ["signs for another path", () => sign({ body }), body, ENGINE_PATHS.cancel],
    ["signs another body", () => sign({ body }), other],
    ["adds to the body", () => sign({ body }), new Uint8Array([...body, 0])],
    ["comes too late", () => sign({ body, nowMs: Date.now() - LIMITS.signatureSkewMsMax - 1_000 })],
    ["comes too early", () => sign({ body, nowMs: Date.now() + LIMITS.signatureSkewMsMax + 1_000 })],
    ["sends two signatures", async () => `${await sign({ body })}, ${await sign({ body })}`],
  ])("%s, is refused and hears no reason", async (_name, header, sent, path) => {
    const response = await send(await header(), sent, path);
    expect(response.status).toBe(401);
    expect(await response.text()).toBe("not authorized\n");
    expect(server.opened.engine.status).toMatchObject({ runningCount: 0, queuedCount: 0 });
  });

  it("is refused when he sends again what the edge has sent", async () => {
    const authorization = await sign({ body });
    expect((await events(await send(authorization))).at(-1)).toMatchObject({ type: "done" });
    for (let times = 0; times < 3; times++) expect((await send(authorization)).status).toBe(401);
    // A signature whose body did not come is used up as well.
    const cut = await sign({ body });
    expect((await send(cut, other)).status).toBe(401);
    expect((await send(cut)).status).toBe(401);
  });

  it("is refused before his body is read", async () => {
    const { port } = new URL(server.url);
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect(Number(port), "127.0.0.1", () =>
        socket.write("POST /v1/generate HTTP/1.1\r\nHost: e\r\nContent-Length: 16000000\r\n\r\n"),
      );
      socket.on("error", reject).once("data", (bytes) => resolve(String(bytes)));
    });
    expect(answer).toMatch(/^HTTP\/1\.1 401 /);
    expect(answer).toMatch(/connection: close/i);
  });
});

describe("an engine without a key", () => {
  const options = { port: 0, modelFolder: "weights/house-0", storeUrl: "memory:", env: {}, device: "wasm" } as const;
  const numbers = {
    weightEncoding: "int8",
    kvEncoding: "int8",
    summaryKinds: ["min-max"],
    poolBytes: 1 << 26,
  } as const;

  it.each([
    [{ host: "0.0.0.0" }, "needs a key to listen on 0.0.0.0"],
    [{ host: "::" }, "needs a key to listen on ::"],
    [{ host: "127.0.0.1.example" }, "needs a key to listen on 127.0.0.1.example"],
    [{ host: "127.0.0.1", edgeUrl: "http://127.0.0.1:1" }, "needs a key to register with an edge"],
    [{ host: "127.0.0.1", engineKey: "short" }, "fewer than 16 characters"],
    [{ host: "127.0.0.1", engineKey: "a-key-of-enough-length,short" }, "fewer than 16 characters"],
    [{ host: "127.0.0.1", engineKey: "," }, "fewer than 16 characters"],
  ])("does not start: %j", async (place, message) => {
    await expect(startEngineServer({ ...options, ...numbers, ...place, log: () => {} })).rejects.toThrow(message);
  });
});

describe("an engine whose device cannot be opened", () => {
  it("leaves no store open", async () => {
    const closed = vi.spyOn(MemoryStore.prototype, "close");
    const options = { host: "127.0.0.1", port: 0, modelFolder: "weights/house-0", storeUrl: "memory:", env: {} };
    const device = { device: "wasm", threads: 1000, weightEncoding: "int8", kvEncoding: "int8" } as const;
    const pool = { summaryKinds: ["min-max"], poolBytes: 1 << 26 } as const;
    const started = startEngineServer({ ...options, ...device, ...pool, log: () => {} });
    await expect(started).rejects.toThrow("threads must be");
    expect(closed).toHaveBeenCalledTimes(1);
    closed.mockRestore();
  });
});

describe("bad input gets one clear answer", () => {
  const cases: [string, Partial<GenerateRequest> | Record<string, unknown>, string, string][] = [
    ["another version", { version: 2 }, "invalid_request", "version"],
    ["another model", { model: "other" }, "model_not_found", "model"],
    ["a namespace that is not hex", { namespace: "../../etc" }, "invalid_request", "namespace"],
    ["no tokens", { tokens: new Uint8Array(0) }, "invalid_request", "tokens"],
    ["half a token", { tokens: new Uint8Array(5) }, "invalid_request", "tokens"],
    ["an id outside of the vocabulary", { tokens: idsToBytes([999]) }, "invalid_request", "tokens"],
    ["a turn that starts after its end", { turnStart: 9999 }, "invalid_request", "turnStart"],
    ["spans that do not cover", { turnStart: 5, spans: [{ end: 3, how: "dense" }] }, "invalid_request", "spans"],
    [
      "a provenance of no policy",
      { turnStart: 3, spans: [{ end: 3, how: "magic.1:128@16" }] },
      "invalid_request",
      "spans.how",
    ],
    ["a provenance of no form", { turnStart: 3, spans: [{ end: 3, how: "quest" }] }, "invalid_request", "spans.how"],
    [
      "a provenance whose sinks take its budget",
      { turnStart: 3, spans: [{ end: 3, how: "quest+sink(128).1:128@16" }] },
      "invalid_request",
      "spans.how",
    ],
    ["more than the context", { maxTokens: 8192 }, "context_length_exceeded", "maxTokens"],
    ["no tokens to generate", { maxTokens: 0 }, "invalid_request", "maxTokens"],
    [
      "an unknown policy",
      { selection: { policy: "magic", budgetTokens: 128, exact: true } as never },
      "invalid_request",
      "quire.selection.policy",
    ],
    [
      "a budget that is no page",
      { selection: { policy: "quest", budgetTokens: 130, exact: true } },
      "invalid_request",
      "quire.selection.budget_tokens",
    ],
    [
      "a temperature that is none",
      { sampling: { ...house().sampling, temperature: Number.NaN } },
      "invalid_request",
      "sampling.temperature",
    ],
    ["too many logprobs", { topLogprobs: 21 }, "invalid_request", "topLogprobs"],
    ["a session without a name", { session: { id: "" } }, "invalid_request", "session.id"],
  ];
  it.each(cases)("%s", async (_name, fields, code, param) => {
    const all = await generate(fields as Partial<GenerateRequest>);
    expect(all).toEqual([{ type: "failed", code, param, message: expect.stringMatching(/\S/) }]);
  });

  it("leaves it to the edge, which waits 5 s, to close an idle connection", async () => {
    const answer = await fetch(`${server.url}/healthz`);
    expect(Number(/timeout=(\d+)/.exec(answer.headers.get("keep-alive") ?? "")?.[1])).toBeGreaterThan(30);
  });

  it("refuses a wrong key, a wrong path and a wrong method", async () => {
    expect((await post(ENGINE_PATHS.generate, encodeFrame(house()), { key: "wrong" })).status).toBe(401);
    expect((await post("/v1/nothing", new Uint8Array(0))).status).toBe(404);
    const got = await fetch(server.url + ENGINE_PATHS.generate);
    expect([got.status, got.headers.get("allow")]).toEqual([405, "POST"]);
    expect(await (await fetch(`${server.url}/healthz`)).json()).toMatchObject({ ok: true });
    for (const path of ["/healthz", "/metrics"]) {
      expect((await fetch(server.url + path, { method: "HEAD" })).status).toBe(200);
      for (const method of ["POST", "PUT", "DELETE", "OPTIONS"]) {
        const refused = await fetch(server.url + path, { method });
        expect([refused.status, refused.headers.get("allow")]).toEqual([405, "GET, HEAD"]);
      }
    }
  });

  it.each(["//", "///", "//:99999999/", "*", "http://", "/%zz", "//healthz"])("has no path %j", async (path) => {
    const { port } = new URL(server.url);
    const status = await new Promise((resolve, reject) => {
      get({ host: "127.0.0.1", port, path }, (response) => resolve(response.resume().statusCode)).on("error", reject);
    });
    expect(status).toBe(404);
  });

  it("answers seeded nonsense of the edge's own signature with a refusal that names a field, or runs it", async () => {
    const fields = Object.keys(house({ session: { id: "s" }, topLogprobs: 1 }));
    const value = fc.oneof(
      fc.jsonValue({ maxDepth: 2 }),
      fc.uint8Array({ maxLength: 9 }),
      fc.constantFrom(-1, 0.5, 1e300),
    );
    const changes = fc.dictionary(fc.constantFrom(...fields), value, { minKeys: 1, maxKeys: 3, noNullPrototype: true });
    let runCount = 0;
    await fc.assert(
      fc.asyncProperty(changes, async (changed) => {
        const all = await generate({
          ...house({ maxTokens: 1 }),
          requestId: `fuzz-${runCount++}`,
          ...changed,
        } as never);
        const last = all.at(-1);
        if (last?.type === "failed")
          expect(["invalid_request", "model_not_found", "context_length_exceeded"]).toContain(last.code);
        else expect(last?.type).toBe("done");
      }),
      { numRuns: 150, seed: 9 },
    );
    expect(server.opened.engine.status).toMatchObject({ runningCount: 0, queuedCount: 0 });
  });

  it("survives garbage, cut frames and frames that claim to be huge", async () => {
    const huge = new Uint8Array([0xff, 0xff, 0xff, 0x7f, 1, 2, 3]);
    expect((await events(await post(ENGINE_PATHS.generate, huge))).at(-1)).toMatchObject({
      type: "failed",
      code: "request_too_large",
    });
    const cut = encodeFrame(house()).slice(0, 40);
    expect((await events(await post(ENGINE_PATHS.generate, cut))).at(-1)).toMatchObject({
      type: "failed",
      code: "invalid_request",
    });
    const garbage = new Uint8Array([3, 0, 0, 0, 0xc1, 0xc1, 0xc1]);
    expect((await events(await post(ENGINE_PATHS.generate, garbage))).at(-1)).toMatchObject({ type: "failed" });
    const { port } = new URL(server.url);
    await new Promise<void>((resolve) => {
      const socket = connect(Number(port), "127.0.0.1", () => socket.end("\x00\xff nonsense\r\n\r\n"));
      socket.resume().on("close", () => resolve());
      socket.on("error", () => resolve());
    });
    expect((await generate({ maxTokens: 2 })).at(-1)?.type).toBe("done");
  });
});
