/** A reply whose connection is cut: the library takes it up again behind what it has. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Quire, type QuireOptions } from "../../sdk/index.ts";
import { delta, ending, fails, type MisbehavingServer, openServer, type Script, sse } from "./misbehaving-server.ts";

let server: MisbehavingServer;
beforeEach(async () => {
  server = await openServer();
});
afterEach(() => server.close());

const TURN = "0123456789abcdef0123";
const TEXT = "Zwölf Boxkämpfer jagen Viktor – 🙂 – quer über den großen Sylter Deich.";
/** A reply with an id at each event: the role, a delta per character, and the end. */
const EVENTS = [
  sse({ choices: [{ delta: { role: "assistant", content: "" } }] }),
  ...[...TEXT].map(delta),
  ...ending()
    .split("\n\n")
    .filter((event) => event !== "")
    .map((event) => `${event}\n\n`),
].map((event, index) => `id: ${TURN}.${index}\n${event}`);

const quire = (options: Partial<QuireOptions> = {}): Quire =>
  new Quire({ baseUrl: server.baseUrl, apiKey: "key", retryBaseMs: 1, random: () => 0, ...options });

/** Answers with the events behind `Last-Event-ID` and cuts the connection after `byteCount` bytes. */
function cutAfter(byteCount: number): Script {
  return async (response, { headers }) => {
    const from =
      headers["last-event-id"] === undefined ? 0 : Number(String(headers["last-event-id"]).split(".")[1]) + 1;
    const bytes = Buffer.from(EVENTS.slice(from).join(""));
    response.writeHead(200, { "content-type": "text/event-stream" });
    if (byteCount >= bytes.byteLength) return response.end(bytes);
    response.write(bytes.subarray(0, byteCount));
    await new Promise((resolve) => setTimeout(resolve, 3));
    return response.destroy();
  };
}

const whole = cutAfter(Number.POSITIVE_INFINITY);

/** A small generator of its own, so that a failure can be repeated. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32;
    return state / 2 ** 32;
  };
}

const rounds = process.env.QUIRE_TEST_FULL === "1" ? 200 : 20;

describe("a reply that is cut", () => {
  it(`at any byte, ${rounds} times, and again while it is taken up, is whole`, { timeout: 120_000 }, async () => {
    const random = randomOf(7);
    const length = Buffer.byteLength(EVENTS.join(""));
    for (let round = 0; round < rounds; round++) {
      const cuts = Array.from({ length: 4 }, () => Math.floor(random() * length));
      // More cuts than retries: each of them that brought an event gives all retries back.
      server.scripts.push(...cuts.map(cutAfter), whole);
      const session = quire({ maxRetries: 5 }).session({ id: "s/1" });
      const reply = session.send("Hi");
      const deltas: string[] = [];
      for await (const part of reply) deltas.push(part);
      expect(deltas, `cuts ${cuts}`).toEqual([...TEXT]);
      expect(await reply.finishReason).toBe("stop");
      expect((await reply.usage).completionTokens).toBe(3);
      server.scripts.length = 0;
    }
    const resumed = server.received.filter(({ method }) => method === "GET");
    expect(resumed.length).toBeGreaterThan(rounds);
    expect(new Set(resumed.map(({ path }) => path))).toEqual(new Set(["/v1/sessions/s%2F1/stream"]));
    expect(server.received.every(({ method }) => method !== "DELETE")).toBe(true);
  });

  it("before its first event is asked for again under the same name of the turn", async () => {
    server.scripts.push((response) => response.destroy(), cutAfter(20), whole);
    expect(await quire().session().send("Hi").text()).toBe(TEXT);
    const [first, second, third] = server.received;
    expect([first?.method, second?.method, third?.method]).toEqual(["POST", "POST", "POST"]);
    expect(first?.headers["idempotency-key"]).toMatch(/^[0-9a-f-]{36}$/);
    expect(second?.headers["idempotency-key"]).toBe(first?.headers["idempotency-key"]);
    expect(third?.headers["idempotency-key"]).toBe(first?.headers["idempotency-key"]);
  });

  it("waits for an edge that is away, within its retries, which each step forward renews", async () => {
    const away = fails(503, "no_engine");
    server.scripts.push(
      cutAfter(300),
      away,
      cutAfter(300),
      (response) => response.destroy(),
      cutAfter(300),
      away,
      whole,
    );
    expect(await quire({ maxRetries: 2 }).session().send("Hi").text()).toBe(TEXT);
    server.scripts.push(cutAfter(300), away, away, whole);
    const reply = quire({ maxRetries: 2 }).session().send("Hi");
    await expect(reply.text()).rejects.toMatchObject({ code: "no_engine" });
    expect(TEXT.startsWith(reply.partialText)).toBe(true);
  });

  it("says so when the server does not have the rest any more", async () => {
    server.scripts.push(cutAfter(300), fails(404, "stream_not_found"));
    await expect(quire().session().send("Hi").text()).rejects.toMatchObject({ code: "stream_not_found" });
    expect(server.received).toHaveLength(2);
  });

  it("that the server ended before it said anything is asked for as a new turn", async () => {
    const failed = `id: ${TURN}.0\n${sse({ error: { message: "gone", type: "server_error", code: "engine_failed" } })}`;
    server.scripts.push((response) => response.writeHead(200).end(failed), whole);
    expect(await quire().session().send("Hi").text()).toBe(TEXT);
    const [first, second] = server.received;
    expect(second?.method).toBe("POST");
    expect(second?.headers["idempotency-key"]).not.toBe(first?.headers["idempotency-key"]);
  });

  it("and not resumable ends there", async () => {
    server.scripts.push(cutAfter(500));
    const reply = quire().session().send("Hi", { resumable: false });
    await expect(reply.text()).rejects.toMatchObject({ name: "QuireConnectionError" });
    expect(server.received).toHaveLength(1);
    expect(server.received[0]?.body.quire).toMatchObject({ resumable: false });
    expect(server.received[0]?.headers["idempotency-key"]).toBeUndefined();
  });
});

describe("a reply that is not resumable", () => {
  const ask = () => quire().session().send("Hi", { resumable: false }).text();

  it.each([
    ["before the answer", (response) => response.destroy()],
    ["behind its headers", (response) => response.writeHead(200).write(EVENTS[0] ?? "", () => response.destroy())],
  ] as [string, Script][])("and is cut %s may be in the session's log: it is not asked for twice", async (_, cut) => {
    server.scripts.push(cut, whole);
    await expect(ask()).rejects.toMatchObject({ name: "QuireConnectionError", retryable: true });
    expect(server.received).toHaveLength(1);
  });

  it("and was refused is asked for again", async () => {
    const failed = sse({ error: { message: "gone", type: "server_error", code: "engine_failed" } });
    server.scripts.push(fails(503, "no_engine"), (response) => response.writeHead(200).end(failed), whole);
    expect(await ask()).toBe(TEXT);
    expect(server.received).toHaveLength(3);
  });
});

describe("a resumable reply that is aborted", () => {
  it("is ended at the server, by the name of the turn", async () => {
    server.scripts.push(
      (response) => {
        response.writeHead(200);
        response.write(EVENTS.slice(0, 3).join(""));
      },
      (response) => response.end("{}"),
    );
    const reply = quire().session({ id: "s-1" }).send("Hi");
    for await (const _ of reply) break;
    await server.received[0]?.closed;
    while (server.received.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
    const [post, stop] = server.received;
    expect([stop?.method, stop?.path]).toEqual(["DELETE", "/v1/sessions/s-1/stream"]);
    expect(stop?.headers["idempotency-key"]).toBe(post?.headers["idempotency-key"]);
  });
});
