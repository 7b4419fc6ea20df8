import { describe, expect, it } from "vitest";
import indexHtml from "../../web/index.html?raw";
import { edge, KEY_A, KEY_B, makeWorld, register } from "./world.ts";

const auth = { authorization: `Bearer ${KEY_A}` };

describe("routes", () => {
  it("every answer has a request id of its own and may be read by a browser", async () => {
    const seen = new Set<string | null>();
    for (const path of ["/healthz", "/nowhere", "/v1/models", "/"]) {
      const response = await edge(path);
      await response.text();
      expect(response.headers.get("access-control-allow-origin")).toBe("*");
      expect(response.headers.get("access-control-expose-headers")).toContain("x-quire-session");
      expect(response.headers.get("x-request-id")).toMatch(/^req_[0-9a-f-]{36}$/);
      seen.add(response.headers.get("x-request-id"));
    }
    expect(seen.size).toBe(4);
    const preflight = await edge("/v1/chat/completions", { method: "OPTIONS" });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get("access-control-allow-headers")).toContain("authorization");
    expect(preflight.headers.get("access-control-allow-methods")).toContain("DELETE");
  });

  it("a caller's request id comes back, and reaches the engine in front of one that is unique", async () => {
    const { chat, engine } = await makeWorld();
    // The longest one: with what the edge adds it must still be an id that engines take.
    const own = `trace-${"1".repeat(58)}`;
    const answers = [0, 1].map(() => chat("hi", { n: 2 }, { headers: { "x-request-id": own } }));
    for (const response of await Promise.all(answers)) {
      expect(response.status).toBe(200);
      expect(response.headers.get("x-request-id")).toBe(own);
      await response.text();
    }
    const atEngine = (await engine.calls()).map(({ request }) => request.requestId);
    expect(new Set(atEngine).size).toBe(4);
    for (const id of atEngine) {
      expect(id.startsWith(`${own}.`)).toBe(true);
      expect(id).toMatch(/^[A-Za-z0-9._:-]{1,128}$/);
    }
    for (const bad of ["two words", "x".repeat(65), "a,b", ""]) {
      const response = await edge("/healthz", { headers: { "x-request-id": bad } });
      await response.text();
      expect(response.headers.get("x-request-id")).toMatch(/^req_[0-9a-f-]{36}$/);
    }
  });

  it.each(["/chat/completions", "/v1/v1/chat/completions", "/chat/completions/"])(
    "%s names the path that was meant",
    async (path) => {
      const response = await edge(path, { method: "POST" });
      expect(response.status).toBe(404);
      const { error } = (await response.json()) as { error: { message: string } };
      expect(error.message).toBe(`Invalid URL (POST ${path}). Did you mean /v1/chat/completions?`);
    },
  );

  it.each([
    ["", "The body of your request is empty: send a JSON object."],
    ['{"model":"house",}', "We could not parse the JSON body of your request: it goes wrong at line 1, column 18."],
    ['{\n  "model": "house"', "We could not parse the JSON body of your request: it breaks off at line 2, column 19."],
  ])("the body %j is refused with the place", async (body, message) => {
    const headers = { authorization: `Bearer ${KEY_A}` };
    const response = await edge("/v1/chat/completions", { method: "POST", headers, body });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { message, code: "invalid_request" } });
  });

  it("unknown paths are 404, known paths with another method 405", async () => {
    const unknown = await edge("/v1/nowhere");
    expect(unknown.status).toBe(404);
    expect(await unknown.json()).toEqual({
      error: {
        message:
          "Invalid URL (GET /v1/nowhere). There are /v1/chat/completions, /v1/completions, /v1/models and /v1/sessions/{id}.",
        type: "invalid_request_error",
        param: null,
        code: "not_found",
      },
    });
    for (const [path, method, allow] of [
      ["/v1/chat/completions", "GET", "POST"],
      ["/v1/models", "POST", "GET, HEAD"],
      ["/v1/sessions/x", "PUT", "GET, HEAD, DELETE"],
      ["/v1/sessions/x/stream", "HEAD", "GET, DELETE"],
      ["/", "POST", "GET, HEAD"],
    ] as const) {
      const response = await edge(path, { method });
      expect(response.status).toBe(405);
      expect(response.headers.get("allow")).toBe(allow);
      if (method === "HEAD") continue;
      expect(await response.json()).toMatchObject({ error: { code: "method_not_allowed" } });
    }
  });

  it("a turn is found with a query and with a slash at its end, too", async () => {
    for (const path of ["/v1/chat/completions", "/v1/completions"]) {
      for (const end of ["", "/", "?a=b", "/?a=/v1"]) {
        const response = await edge(`${path}${end}`, { method: "POST", body: "{}" });
        expect(response.status, path + end).toBe(401);
        expect(await response.json()).toMatchObject({ error: { code: "invalid_api_key" } });
      }
    }
    const longer = await edge("/x/v1/chat/completions", { method: "POST", body: "{}" });
    expect(longer.status).toBe(404);
    await longer.text();
  });

  it("answer HEAD as GET, without a body", async () => {
    const headers = { authorization: `Bearer ${KEY_A}` };
    for (const [path, status] of [
      ["/healthz", 200],
      ["/", 200],
      ["/v1/models", 200],
      ["/v1/sessions/none", 404],
    ] as const) {
      const [head, get] = await Promise.all([edge(path, { method: "HEAD", headers }), edge(path, { headers })]);
      expect([path, head.status, await head.text()]).toEqual([path, status, ""]);
      expect(head.headers.get("content-type")).toBe(get.headers.get("content-type"));
      await get.text();
    }
  });

  it("need a key that is known", async () => {
    const requests: [string, string][] = [
      ["POST", "/v1/chat/completions"],
      ["POST", "/v1/completions"],
      ["GET", "/v1/models"],
      ["GET", "/v1/models/x"],
      ["GET", "/v1/sessions/x"],
      ["DELETE", "/v1/sessions/x"],
      ["POST", "/v1/sessions/x/fork"],
      ["POST", "/v1/engines/heartbeat"],
    ];
    for (const [method, path] of requests) {
      for (const headers of [{}, { authorization: "Bearer wrong" }, { authorization: `Basic ${KEY_A}` }]) {
        const response = await edge(path, { method, headers, body: method === "POST" ? "{}" : null });
        expect(response.status, `${method} ${path}`).toBe(401);
        expect(response.headers.get("www-authenticate")).toBe("Bearer");
        expect(await response.json()).toMatchObject({
          error: { type: "authentication_error", code: "invalid_api_key", param: null },
        });
      }
    }
  });

  it("list the models of live engines", async () => {
    const { model, engine } = await makeWorld();
    await register(engine, model);
    const body = { id: model, object: "model", created: expect.any(Number), owned_by: "quire" };
    const list = (await (await edge("/v1/models", { headers: auth })).json()) as { object: string; data: object[] };
    expect(list.object).toBe("list");
    expect(list.data).toContainEqual(body);
    expect(await (await edge(`/v1/models/${model}`, { headers: auth })).json()).toEqual(body);
    const unknown = await edge("/v1/models/nope", { headers: { authorization: `Bearer ${KEY_B}` } });
    expect(unknown.status).toBe(404);
    expect(await unknown.json()).toMatchObject({ error: { code: "model_not_found", param: "model" } });
  });

  it("serve the playground, which may run nothing but its own files", async () => {
    const page = await edge("/");
    expect(page.headers.get("content-type")).toBe("text/html; charset=utf-8");
    expect(page.headers.get("content-security-policy")).toContain("script-src 'self'");
    expect(await page.text()).toBe(indexHtml);
    for (const [path, type] of [
      ["/app.js", "text/javascript; charset=utf-8"],
      ["/style.css", "text/css; charset=utf-8"],
    ] as const) {
      const response = await edge(path);
      expect(response.headers.get("content-type")).toBe(type);
      expect((await response.text()).length).toBeGreaterThan(100);
    }
  });
});
