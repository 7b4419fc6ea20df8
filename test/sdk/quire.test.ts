import { createServer } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Quire, QuireAbortError, QuireApiError, QuireConnectionError, type QuireOptions } from "../../sdk/index.ts";
import { delta, ending, fails, type MisbehavingServer, openServer, sse, streams } from "./misbehaving-server.ts";

let server: MisbehavingServer;
beforeEach(async () => {
  server = await openServer();
});
afterEach(() => server.close());

const quire = (options: Partial<QuireOptions> = {}): Quire =>
  new Quire({ baseUrl: server.baseUrl, apiKey: "key", retryBaseMs: 4, random: () => 0, ...options });

async function collect(reply: AsyncIterable<string>): Promise<string[]> {
  const deltas: string[] = [];
  for await (const part of reply) deltas.push(part);
  return deltas;
}

describe("a turn", () => {
  it("sends only the new message, and yields deltas, usage and the reason", async () => {
    server.scripts.push(
      streams(": hb\n\n", sse({ choices: [{ delta: { role: "assistant" } }] }), delta("Hel"), delta("lo"), ending()),
    );
    const session = quire().session({
      id: "s-1",
      model: "house-0",
      temperature: 0,
      selection: { policy: "quest", budgetTokens: 512 },
    });
    const reply = session.send("Hi", { maxTokens: 5, stop: ["\n"] });
    expect(await collect(reply)).toEqual(["Hel", "lo"]);
    expect(await collect(reply)).toEqual(["Hel", "lo"]);
    expect(await reply.text()).toBe("Hello");
    expect(await reply.finishReason).toBe("stop");
    const usage = await reply.usage;
    expect([usage.promptTokens, usage.completionTokens, usage.totalTokens, usage.cachedTokens]).toEqual([10, 3, 13, 7]);
    expect(usage.quire).toEqual({
      sessionId: "s-1",
      source: { device: 0, host: 0, store: 7 },
      bytesBeforeFirstToken: 4096,
      pagesSelected: 5,
    });
    const [request] = server.received;
    expect([request?.method, request?.path, request?.headers.authorization]).toEqual([
      "POST",
      "/v1/chat/completions",
      "Bearer key",
    ]);
    expect(request?.body).toEqual({
      model: "house-0",
      messages: [{ role: "user", content: "Hi" }],
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0,
      max_tokens: 5,
      stop: ["\n"],
      quire: { session_id: "s-1", resumable: true, selection: { policy: "quest", budget_tokens: 512 } },
    });
  });

  it("is whole without being iterated, and takes several messages", async () => {
    server.scripts.push(streams(delta("ok"), ending("length")));
    const session = quire({ baseUrl: `${server.baseUrl}/v1/` }).session();
    const reply = session.send([
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hi" },
    ]);
    expect([await reply.text(), await reply.finishReason]).toEqual(["ok", "length"]);
    expect(server.received[0]?.body).toMatchObject({
      model: "default",
      messages: [{ role: "system" }, { role: "user" }],
    });
    expect(server.received[0]?.body.quire).toEqual({ session_id: session.id, resumable: true });
    expect(session.id).toMatch(/^[A-Za-z0-9._:-]{1,128}$/);
  });

  it("survives characters and events cut between packets", async () => {
    const bytes = Buffer.from(delta("é😀") + ending());
    server.scripts.push(async (response) => {
      response.writeHead(200);
      for (const byte of bytes) {
        response.write(Uint8Array.of(byte));
        await new Promise((resolve) => setImmediate(resolve));
      }
      response.end();
    });
    expect(await quire().session().send("Hi").text()).toBe("é😀");
  });

  it("that is complete does not care how the connection ends", async () => {
    server.scripts.push(async (response) => {
      response.writeHead(200);
      response.write(delta("done") + ending());
      await new Promise((resolve) => setTimeout(resolve, 20));
      response.destroy();
    });
    expect(await quire().session().send("Hi").text()).toBe("done");
    expect(server.received.length).toBe(1);
  });
});

describe("before the first token it tries again", () => {
  for (const [name, bad] of [
    ["429", fails(429, "queue_full")],
    ["500", fails(500, "internal")],
    ["503", fails(503, "no_engine")],
    ["409 of a session that is still busy", fails(409, "session_busy")],
    ["a cut before the answer", (response) => response.destroy()],
    ["a cut after the headers", streams(": hb\n\n")],
    ["garbage", streams("data: {nonsense\n\n")],
    ["an answer of another kind", streams(sse({ hello: "world" }))],
    [
      "an error in the stream",
      streams(sse({ error: { message: "gone", type: "server_error", code: "engine_failed" } })),
    ],
  ] as [string, ReturnType<typeof streams>][]) {
    it(`after ${name}`, async () => {
      server.scripts.push(bad, bad, streams(delta("ok"), ending()));
      const reply = quire().session().send("Hi");
      expect(await collect(reply)).toEqual(["ok"]);
      expect(server.received.length).toBe(3);
      expect(server.received[2]?.body).toEqual(server.received[0]?.body);
    });
  }

  it("after silence", async () => {
    server.scripts.push(() => undefined, streams(delta("ok"), ending()));
    expect(await quire({ timeoutMs: 300 }).session().send("Hi").text()).toBe("ok");
  });

  it("while heartbeats are not silence", async () => {
    server.scripts.push(async (response) => {
      response.writeHead(200);
      for (let beat = 0; beat < 24; beat++) {
        response.write(": hb\n\n");
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      response.end(delta("ok") + ending());
    });
    // Long against a pause of a busy machine, short against the whole.
    expect(await quire({ timeoutMs: 2_000, maxRetries: 0 }).session().send("Hi").text()).toBe("ok");
  });

  it("not sooner than Retry-After", async () => {
    server.scripts.push(fails(429, "queue_full", { "retry-after": "0.2" }), streams(delta("ok"), ending()));
    const began = performance.now();
    expect(await quire().session().send("Hi").text()).toBe("ok");
    expect(performance.now() - began).toBeGreaterThanOrEqual(195);
  });

  it("as often as it was told, and then says what the server said", async () => {
    for (let count = 0; count < 3; count++) server.scripts.push(fails(503, "no_engine", { "retry-after": "0" }));
    const error = await quire({ maxRetries: 2 })
      .session()
      .send("Hi")
      .text()
      .catch((thrown) => thrown);
    expect(error).toBeInstanceOf(QuireApiError);
    expect(error).toMatchObject({
      message: "it is no_engine",
      status: 503,
      code: "no_engine",
      type: "server_error",
      param: "messages",
      retryAfterMs: 0,
      requestId: "r-9",
    });
    expect(server.received.length).toBe(3);
  });

  it("but not when the request is at fault, or the wait asked for is too long", async () => {
    server.scripts.push(
      fails(400, "context_length_exceeded"),
      fails(401, "invalid_api_key"),
      fails(429, "queue_full", { "retry-after": "3600" }),
    );
    for (const status of [400, 401, 429]) {
      await expect(quire().session().send("Hi").text()).rejects.toMatchObject({ name: "QuireApiError", status });
    }
    expect(server.received.length).toBe(3);
  });
});

describe("after the first token it does not", () => {
  for (const [name, rest, type] of [
    ["a cut", "", QuireConnectionError],
    ["garbage", "data: {nonsense\n\n", QuireConnectionError],
    [
      "an error in the stream",
      sse({ error: { message: "gone", type: "server_error", code: "engine_failed" } }),
      QuireApiError,
    ],
  ] as const) {
    it(`after ${name}`, async () => {
      server.scripts.push(streams(delta("one"), rest));
      const reply = quire().session().send("Hi");
      const deltas: string[] = [];
      await expect(
        (async () => {
          for await (const part of reply) deltas.push(part);
        })(),
      ).rejects.toBeInstanceOf(type);
      expect(deltas).toEqual(["one"]);
      expect(reply.partialText).toBe("one");
      await expect(reply.usage).rejects.toBeInstanceOf(type);
      await expect(reply.finishReason).rejects.toBeInstanceOf(type);
      expect(server.received.length).toBe(1);
    });
  }

  it("after silence", async () => {
    server.scripts.push((response) => {
      response.writeHead(200);
      response.write(delta("one"));
    });
    await expect(quire({ timeoutMs: 300 }).session().send("Hi").text()).rejects.toThrow("silent for 300 ms");
    await server.received[0]?.closed;
  });
});

describe("aborting frees the server", () => {
  const endless = async (response: Parameters<ReturnType<typeof streams>>[0]): Promise<void> => {
    response.writeHead(200);
    while (!response.destroyed) {
      response.write(delta("x"));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };

  const endlessHeartbeats = async (response: Parameters<ReturnType<typeof streams>>[0]): Promise<void> => {
    while (!response.destroyed) {
      response.write(": hb\n\n");
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };

  it("by leaving the loop", async () => {
    server.scripts.push(endless);
    const reply = quire().session().send("Hi");
    for await (const part of reply) {
      expect(part).toBe("x");
      break;
    }
    await server.received[0]?.closed;
    await expect(reply.usage).rejects.toBeInstanceOf(QuireAbortError);
  });

  it("by giving up on an answer that goes on", async () => {
    server.scripts.push(async (response) => {
      response.writeHead(200);
      response.write(delta("x") + sse({ error: { message: "gone", type: "server_error", code: "engine_failed" } }));
      await endlessHeartbeats(response);
    });
    await expect(quire().session().send("Hi").text()).rejects.toMatchObject({ code: "engine_failed" });
    await server.received[0]?.closed;
  });

  it("by abort(), while somebody waits", async () => {
    server.scripts.push(() => undefined);
    const reply = quire().session().send("Hi");
    const text = reply.text();
    setTimeout(() => reply.abort("enough"), 30);
    await expect(text).rejects.toMatchObject({ name: "QuireAbortError", cause: "enough" });
    await server.received[0]?.closed;
  });

  it("by a signal: before, and between two tries", async () => {
    await expect(quire().session().send("Hi", { signal: AbortSignal.abort() }).text()).rejects.toBeInstanceOf(
      QuireAbortError,
    );
    expect(server.received.length).toBe(0);
    server.scripts.push(fails(503, "no_engine", { "retry-after": "30" }));
    const controller = new AbortController();
    const reply = quire().session().send("Hi", { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    await expect(collect(reply)).rejects.toBeInstanceOf(QuireAbortError);
  });
});

describe("other calls", () => {
  const json =
    (value: unknown): ReturnType<typeof streams> =>
    (response) => {
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
    };

  it("models", async () => {
    server.scripts.push(
      fails(503, "no_engine"),
      json({ object: "list", data: [{ id: "house-0", object: "model", created: 5, owned_by: "quire" }] }),
    );
    expect(await quire().models()).toEqual([{ id: "house-0", created: 5, ownedBy: "quire" }]);
  });

  it("fork and delete", async () => {
    server.scripts.push(json({ id: "s-2" }), streams(delta("ok"), ending()), (response) =>
      response.writeHead(204).end(),
    );
    const session = quire().session({ id: "a:b", model: "m", temperature: 0 });
    const fork = await session.fork();
    expect([fork.id, fork.model]).toEqual(["s-2", "m"]);
    expect(await fork.send("Hi").text()).toBe("ok");
    await fork.delete();
    expect(server.received.map(({ method, path }) => `${method} ${path}`)).toEqual([
      "POST /v1/sessions/a%3Ab/fork",
      "POST /v1/chat/completions",
      "DELETE /v1/sessions/s-2",
    ]);
    expect(server.received[1]?.body.temperature).toBe(0);
  });

  it("deleting what is not there is done; what is busy is asked again", async () => {
    server.scripts.push(
      fails(404, "session_not_found"),
      fails(409, "session_busy"),
      json({ deleted: true }),
      fails(401, "nope"),
    );
    for (let count = 0; count < 2; count++) await quire().session().delete();
    await expect(quire().session().delete()).rejects.toMatchObject({ status: 401 });
    expect(server.received.length).toBe(4);
  });

  it("answers of somebody else are connection errors", async () => {
    server.scripts.push((response) => response.end("<html>"), json({ data: 5 }));
    await expect(quire({ maxRetries: 0 }).models()).rejects.toBeInstanceOf(QuireConnectionError);
    await expect(quire({ maxRetries: 0 }).models()).rejects.toBeInstanceOf(QuireConnectionError);
  });

  it("nobody there is a connection error that says where", async () => {
    const free = createServer();
    const port = await new Promise<number>((resolve) => {
      free.listen(0, "127.0.0.1", () => resolve((free.address() as { port: number }).port));
    });
    await new Promise((resolve) => free.close(resolve));
    const client = quire({ baseUrl: `http://127.0.0.1:${port}`, maxRetries: 1 });
    const message = `The connection to http://127.0.0.1:${port} failed.`;
    await expect(client.models()).rejects.toMatchObject({ name: "QuireConnectionError", message });
    await expect(client.session().send("Hi").text()).rejects.toBeInstanceOf(QuireConnectionError);
  });
});
