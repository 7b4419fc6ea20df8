/** Attacks that need sockets, a real engine or what is left on disk. The rest of the table is in test/workers/attacks.test.ts. */
import { readdir, readFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, inject, it } from "vitest";
import { encodeFrame } from "../../protocol/frames.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { runQuire } from "../cli/run-quire.ts";

const edgeUrl = inject("edgeUrl");
const engineUrl = inject("engineUrl");
const apiKey = inject("apiKey");
const dataPath = inject("dataPath");

/** Said by tenant "dev" and by nobody else; found nowhere but in its session and its answers. */
const SECRET = "Zanzibar-lighthouse-77310";
let otherKey = "";
const sockets = new Set<Socket>();

beforeAll(async () => {
  const made = await runQuire(["keys", "create", "--tenant=other", `--edge=${edgeUrl}`, `--data=${dataPath}`]);
  expect(made).toMatchObject({ code: 0 });
  otherKey = made.stdout.trim();
});
afterEach(() => {
  for (const socket of sockets) socket.destroy();
  sockets.clear();
});

interface Answer {
  choices: { message: { content: string } }[];
  usage: { prompt_tokens_details?: { cached_tokens: number } };
}

async function ask(content: string, options: { key?: string; body?: object } = {}): Promise<Response> {
  return fetch(`${edgeUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${options.key ?? apiKey}`, "content-type": "application/json" },
    body: JSON.stringify({
      model: "default",
      messages: [{ role: "user", content }],
      max_tokens: 8,
      temperature: 0,
      ...options.body,
    }),
    signal: AbortSignal.timeout(30_000),
  });
}

/** The server answers somebody else, and soon. */
async function expectAlive(): Promise<void> {
  const beginMs = performance.now();
  const response = await ask("Are you there?");
  expect(response.status).toBe(200);
  await response.text();
  expect(performance.now() - beginMs).toBeLessThan(10_000);
}

async function engineBusy(): Promise<number> {
  const status = (await (await fetch(`${engineUrl}/healthz`)).json()) as { runningCount: number; queuedCount: number };
  return status.runningCount + status.queuedCount;
}

/** A connection that says `text` and then nothing; what it hears is collected. */
function dial(url: string, text: string): { socket: Socket; heard: () => string; closed: Promise<void> } {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname, () => socket.write(text));
  sockets.add(socket);
  let heard = "";
  socket.on("data", (bytes) => {
    heard += bytes.toString("latin1");
  });
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.on("error", () => undefined);
  return { socket, heard: () => heard, closed };
}

function head(url: string, headers: string[], at?: string): string {
  const path = at ?? (url === edgeUrl ? "/v1/chat/completions" : "/v1/generate");
  const lines = [`POST ${path} HTTP/1.1`, `Host: ${new URL(url).host}`, `Authorization: Bearer ${apiKey}`, ...headers];
  return `${lines.join("\r\n")}\r\n\r\n`;
}

describe("the owner of the machine", () => {
  it("is not limited: what quire start sets goes over the settings of wrangler.toml", async () => {
    const response = await ask("hi");
    await response.text();
    expect(response.headers.get("x-ratelimit-limit-requests")).toBe(String(LIMITS.requestsPerMinuteMax));
  });
});

describe("another tenant", () => {
  it("asks what has just been asked: it is answered without a page of the other's", async () => {
    const question = `The code of ${SECRET} is 4821. `.repeat(40);
    const cached = async (key: string) => {
      const { usage } = (await (await ask(question, { key })).json()) as Answer;
      return usage.prompt_tokens_details?.cached_tokens ?? 0;
    };
    // What every prompt of this tenant begins with is there from before.
    expect(await cached(apiKey)).toBeLessThan(16);
    expect(await cached(apiKey)).toBeGreaterThan(500);
    expect(await cached(otherKey)).toBe(0);
    expect(await cached(otherKey)).toBeGreaterThan(500);
  });

  it("has its key ended: it is refused", async () => {
    const made = await runQuire(["keys", "create", "--tenant=other", `--edge=${edgeUrl}`, `--data=${dataPath}`]);
    const id = /key_[0-9a-f]{12}/.exec(made.stderr)?.[0] ?? "";
    expect((await ask("hi", { key: made.stdout.trim() })).status).toBe(200);
    expect(await runQuire(["keys", "revoke", id, `--edge=${edgeUrl}`, `--data=${dataPath}`])).toMatchObject({
      code: 0,
    });
    // The isolate that revoked it forgets it at once; another one may remember it for this long.
    const endMs = performance.now() + LIMITS.keyCacheMsMax + 2_000;
    let status = 200;
    // However long an answer takes: the last question is asked behind that time.
    for (let askedMs = 0; status === 200 && askedMs < endMs; ) {
      askedMs = performance.now();
      const response = await ask("hi", { key: made.stdout.trim() });
      await response.text();
      status = response.status;
    }
    expect(status).toBe(401);
  });
});

describe("an engine that is spoken to directly", () => {
  it.each([
    ["without a signature", {}],
    ["with a tenant's key", { authorization: `Bearer ${apiKey}` }],
    [
      "with a signature of zeros",
      {
        authorization: `Quire-HMAC ts=${Date.now()},nonce=${"0".repeat(32)},digest=${"0".repeat(64)},sig=${"0".repeat(64)}`,
      },
    ],
  ])("%s, refuses", async (_name, headers: Record<string, string>) => {
    const body = encodeFrame({ version: 1, namespace: "00000000", sessionId: "s" });
    for (const path of ["/v1/generate", "/v1/cancel", "/v1/sessions/status", "/v1/sessions/delete"]) {
      const response = await fetch(engineUrl + path, { method: "POST", headers, body });
      expect(response.status).toBe(401);
      expect(await response.text()).toBe("not authorized\n");
    }
    await expectAlive();
  });
});

describe("what wrangler brings for developers", () => {
  it.each([
    "/cdn-cgi/explorer",
    "/cdn-cgi/explorer/api/r2/buckets",
    "/cdn-cgi/explorer/api/workers/durable_objects/namespaces",
    "/cdn-cgi/local/explorer",
    "/cdn-cgi/local/explorer/api/r2/buckets",
    "/cdn-cgi/local/explorer/api/workers/durable_objects/namespaces",
    "/cdn-cgi/local/observability",
    "/cdn-cgi/local/platform-proxy",
    "/cdn-cgi/local/r2/s3/quire-pages?list-type=2",
    "/cdn-cgi/local/r2/public/quire-pages",
    "/cdn-cgi/local/r2/public/quire-pages/",
    "/cdn-cgi/local/r2/public/quire-pages/models/",
    "/cdn-cgi/local/r2/public/quire-pages/?list-type=2",
  ])("shows nothing to a stranger: %s", async (path) => {
    for (const headers of [{}, { authorization: `Bearer ${apiKey}` }] as Record<string, string>[]) {
      const response = await fetch(edgeUrl + path, { headers });
      const text = await response.text();
      expect(response.status, text.slice(0, 200)).toBeGreaterThanOrEqual(400);
      expect(text).not.toMatch(/SessionLog|vocab_size|<Key>/);
    }
  });

  it("takes nothing from a stranger", async () => {
    for (const method of ["PUT", "POST", "DELETE"]) {
      for (const path of ["/cdn-cgi/local/r2/public/quire-pages/planted", "/cdn-cgi/local/r2/s3/quire-pages/planted"]) {
        const response = await fetch(edgeUrl + path, { method, body: method === "DELETE" ? null : "x" });
        expect(response.status, `${method} ${path}`).toBeGreaterThanOrEqual(400);
        await response.text();
      }
    }
    expect((await fetch(`${edgeUrl}/cdn-cgi/local/r2/public/quire-pages/planted`)).status).toBe(404);
  });
});

describe("requests within requests", () => {
  const inner = (url: string) => `GET /smuggled HTTP/1.1\r\nHost: ${new URL(url).host}\r\n\r\n`;

  it.each([
    [
      "both lengths",
      (url: string) => `${head(url, ["Content-Length: 6", "Transfer-Encoding: chunked"])}0\r\n\r\n${inner(url)}`,
    ],
    ["two lengths", (url: string) => `${head(url, ["Content-Length: 2", "Content-Length: 60"])}{}${inner(url)}`],
    ["a length of words", (url: string) => `${head(url, ["Content-Length: +2"])}{}${inner(url)}`],
    ["an odd transfer coding", (url: string) => `${head(url, ["Transfer-Encoding: xchunked"])}0\r\n\r\n${inner(url)}`],
    [
      "a folded header",
      (url: string) => `${head(url, ["X-A: b\r\n Transfer-Encoding: chunked", "Content-Length: 2"])}{}${inner(url)}`,
    ],
    [
      "a chunk of a wrong size",
      (url: string) => `${head(url, ["Transfer-Encoding: chunked"])}zz\r\n{}\r\n0\r\n\r\n${inner(url)}`,
    ],
  ])("%s: the inner one is not served as the next of another client", async (_name, text) => {
    for (const url of [edgeUrl, engineUrl]) {
      const { heard, closed } = dial(url, text(url));
      await Promise.race([closed, sleep(1_500)]);
      const answers = [...heard().matchAll(/^HTTP\/1\.[01] (\d{3})/gm)].map(([, status]) => Number(status));
      // One refusal, or none at all: never an answer of its own for what was inside.
      expect(answers.length, heard()).toBeLessThanOrEqual(1);
      for (const status of answers) expect(status).toBeGreaterThanOrEqual(400);
    }
    await expectAlive();
  });

  it("headers without end are cut off", async () => {
    const endless = `${head(edgeUrl, []).slice(0, -2)}X-Long: ${"a".repeat(2_000_000)}`;
    for (const url of [edgeUrl, engineUrl]) {
      const { heard, closed } = dial(url, endless);
      await Promise.race([closed, sleep(3_000)]);
      expect(heard()).not.toMatch(/^HTTP\/1\.[01] 200/m);
    }
    await expectAlive();
  });
});

describe("an answer without a stream that fails late", () => {
  it("breaks off behind the error that says why", async () => {
    const path = `/v1/sessions/late-${crypto.randomUUID()}`;
    const body = JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: "Go on." }],
      max_tokens: 8_000,
      logit_bias: { 259: -100 },
      quire: { session_id: path.slice("/v1/sessions/".length) },
    });
    const { heard, closed } = dial(edgeUrl, head(edgeUrl, [`Content-Length: ${body.length}`]) + body);
    await expect.poll(heard, { timeout: 30_000 }).toMatch(/^HTTP\/1\.1 200 /);
    const headers = { authorization: `Bearer ${apiKey}` };
    const stop = async () => (await fetch(`${edgeUrl}${path}/stream`, { method: "DELETE", headers })).status;
    await expect.poll(stop, { timeout: 30_000 }).toBe(200);
    await closed;
    expect(heard()).toContain('{"error":{"message":"The turn was ended: nobody listened to it."');
    expect(heard()).not.toMatch(/\r\n0\r\n\r\n$/);
  });
});

describe("slow clients", () => {
  it("do not keep others waiting, and their bodies are not waited for", async () => {
    const begun = Array.from({ length: 40 }, () => dial(edgeUrl, head(edgeUrl, []).slice(0, 40)));
    const stalled = Array.from({ length: 40 }, () =>
      dial(edgeUrl, `${head(edgeUrl, ["Content-Length: 1000"])}{"model"`),
    );
    const atEngine = Array.from({ length: 40 }, () =>
      dial(engineUrl, head(engineUrl, ["Content-Length: 9"], "/v1/nothing")),
    );
    await sleep(300);
    const beginMs = performance.now();
    await expectAlive();
    await Promise.race([Promise.all(stalled.map(({ closed }) => closed)), sleep(LIMITS.requestIdleMsMax + 9_000)]);
    for (const { heard } of stalled) expect(heard()).toMatch(/^HTTP\/1\.1 408 [\s\S]*"code":"request_timeout"/);
    expect(performance.now() - beginMs).toBeLessThan(LIMITS.requestIdleMsMax + 10_000);
    expect(begun.length + atEngine.length).toBe(80);
    await expectAlive();
  }, 60_000);

  it("that do not read what they asked for keep nobody waiting, and free the engine when they are gone", async () => {
    const body = JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: "Go on." }],
      stream: true,
      max_tokens: 8_000,
      logit_bias: { 259: -100 },
    });
    const request = head(edgeUrl, ["Content-Type: application/json", `Content-Length: ${body.length}`]) + body;
    const readers = Array.from({ length: 8 }, () => dial(edgeUrl, request));
    for (const { socket } of readers) socket.pause();
    await expect.poll(engineBusy, { timeout: 10_000 }).toBeGreaterThanOrEqual(4);
    const response = await ask("Are you there?");
    expect(response.status).toBe(200);
    await response.text();
    for (const { socket } of readers) socket.destroy();
    await expect.poll(engineBusy, { timeout: 10_000, interval: 50 }).toBe(0);
    await expectAlive();
  }, 60_000);
});

describe("what is left on disk", () => {
  it("holds nothing that was said, whatever went wrong", async () => {
    const headers = { authorization: `Bearer ${apiKey}` };
    const post = (body: string | Uint8Array<ArrayBuffer>) =>
      fetch(`${edgeUrl}/v1/chat/completions`, { method: "POST", headers, body });
    const statuses = [
      (await ask(`My word is ${SECRET}.`)).status,
      (await ask(SECRET, { body: { quire: { session_id: "logs" }, stream: true } })).status,
      (await ask(SECRET, { body: { frobnicate: SECRET } })).status,
      (await ask(SECRET, { body: { model: SECRET } })).status,
      (await ask(SECRET, { body: { stop: SECRET, max_tokens: 1e9 } })).status,
      (await ask(SECRET.repeat(20_000))).status,
      (await post(`{"messages": ${SECRET}`)).status,
      (await post(new Uint8Array([...Buffer.from(SECRET), 0xff]))).status,
    ];
    expect(statuses).toEqual([200, 200, 400, 404, 400, 400, 400, 400]);
    const abort = new AbortController();
    const cut = await fetch(`${edgeUrl}/v1/chat/completions`, {
      method: "POST",
      headers,
      body: JSON.stringify({
        model: "default",
        stream: true,
        max_tokens: 4_000,
        messages: [{ role: "user", content: SECRET }],
      }),
      signal: abort.signal,
    });
    await cut.body?.getReader().read();
    abort.abort();
    await sleep(500);
    const files = await readdir(join(dataPath, "logs"), { recursive: true, withFileTypes: true });
    const logs = files.filter((file) => file.isFile());
    expect(logs.map(({ name }) => name)).toEqual(expect.arrayContaining(["edge.log", "engine.log"]));
    const word = SECRET.slice(0, 8);
    let bytes = 0;
    for (const { parentPath, name } of logs) {
      const text = await readFile(join(parentPath, name), "utf8");
      bytes += text.length;
      expect(text.includes(word), name).toBe(false);
      expect(text.includes(apiKey) || text.includes(otherKey), name).toBe(false);
    }
    // Not vacuous: something was logged.
    expect(bytes).toBeGreaterThan(200);
  });
});
