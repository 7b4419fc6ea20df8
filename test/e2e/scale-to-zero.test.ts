/** No engine runs until somebody asks: the hook starts a real one, turns wait for it, and it ends when nobody asks any more. */
import { createHash } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Stage, type StageEngine } from "../../cli/demo-stage.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { verifySignature } from "../../protocol/signature.ts";
import { passage } from "./support/words.ts";

const question = "What is the code of Badoru?";
const answer = "The code of Badoru is 4821.";

/** A hook that does what it is told, and the calls that it got. */
class Hook {
  readonly calls: { model: string; authorization: string; body: Uint8Array }[] = [];
  url = "";
  onCall: () => number = () => 204;
  readonly #server: Server;

  constructor() {
    this.#server = createServer(async (request, response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      const body = Buffer.concat(chunks);
      const { model } = JSON.parse(body.toString()) as { model: string };
      this.calls.push({ model, authorization: request.headers.authorization ?? "", body });
      response.writeHead(this.onCall()).end();
    });
  }

  async open(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/wake`;
    return this;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

interface World {
  hook: Hook;
  stage: Stage;
  life: AbortController;
}

async function openWorld(vars: Record<string, string>): Promise<World> {
  const hook = await new Hook().open();
  const life = new AbortController();
  const stage = await Stage.open(life.signal, { QUIRE_WAKE_URL: hook.url, ...vars });
  return { hook, stage, life };
}

async function closeWorld(world: World | undefined): Promise<void> {
  world?.life.abort();
  await world?.stage.close();
  await world?.hook.close();
}

function ask(stage: Stage, session: string, stream: boolean): Promise<Response> {
  return fetch(`${stage.edgeUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${stage.apiKey}`, "content-type": "application/json" },
    body: JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: question }],
      temperature: 0,
      stream,
      quire: { session_id: session },
    }),
  });
}

/** An edge that knew an engine, which is gone, and has noticed. */
async function openDeserted(): Promise<World> {
  const world = await openWorld({ QUIRE_WAKE_WAIT_MS: "3500" });
  await (await world.stage.addEngine()).kill();
  await new Promise((resolve) => setTimeout(resolve, LIMITS.engineExpiryMs + 1_000));
  return world;
}

/** Comes about while the other edge is asked. */
let deserted: Promise<World>;
beforeAll(() => {
  deserted = openDeserted();
  // Awaited by those who use it, which says so if it failed.
  deserted.catch(() => undefined);
});
afterAll(async () => closeWorld(await deserted.catch(() => undefined)));

describe("an edge without engines", () => {
  let world: World;
  let first: StageEngine;
  beforeAll(async () => {
    world = await openWorld({ QUIRE_IDLE_RELEASE_MS: "2500" });
    first = await world.stage.addEngine();
  });
  afterAll(() => closeWorld(world));

  it("lets an idle engine go, and starts one by one call when turns come: all of them are answered, from stored pages", async () => {
    const { stage, hook } = world;
    const session = stage.client.session({ id: "kept", temperature: 0 });
    expect(await session.send(`${passage}${question}`).text()).toBe(answer);
    expect(await first.ended).toBe("ended with exit code 0");
    const started: Promise<StageEngine>[] = [];
    // Later than headers are held back (2 s), however fast an engine starts here.
    hook.onCall = () => {
      started.push(new Promise((resolve) => setTimeout(resolve, 3_000)).then(() => stage.addEngine()));
      return 202;
    };
    const resumed = session.send(question);
    const responses = await Promise.all([ask(stage, "a", true), ask(stage, "b", false)]);
    for (const response of responses) expect(response.status).toBe(200);
    const [streamed, plain] = await Promise.all(responses.map((response) => response.text()));
    expect(streamed).toContain(": hb\n\n");
    expect(streamed).toContain("data: [DONE]");
    expect(JSON.parse(plain ?? "")).toMatchObject({ choices: [{ message: { role: "assistant" } }] });
    expect(await resumed.text()).toBe(answer);
    const { cachedTokens, quire } = await resumed.usage;
    expect(cachedTokens).toBeGreaterThan(passage.length);
    expect(quire.source?.store).toBe(cachedTokens);
    expect(hook.calls.map(({ model }) => model)).toEqual(["house-0"]);
    const [call] = hook.calls;
    const target = { audience: "wake", method: "POST", path: "/wake" };
    const claims = await verifySignature(stage.engineKey, target, call?.authorization ?? "", Date.now());
    expect(claims?.digest).toBe(
      createHash("sha256")
        .update(call?.body ?? "")
        .digest("hex"),
    );
    expect(started).toHaveLength(1);
    expect(await (await started[0])?.ended).toBe("ended with exit code 0");
  });

  it("is 503 with Retry-After at once when the hook refuses", async () => {
    world.hook.onCall = () => 500;
    const response = await ask(world.stage, "c", true);
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("5");
    expect(await response.json()).toMatchObject({ error: { code: "no_engine" } });
  });
});

describe("an edge whose hook starts nothing", () => {
  let world: World;
  beforeAll(async () => {
    world = await deserted;
  });

  it("says so in the stream when the time is over, with the time to come again, and the session is as before", async () => {
    const startMs = performance.now();
    const response = await ask(world.stage, "lost", true);
    expect(response.status).toBe(200);
    expect(performance.now() - startMs).toBeGreaterThan(1_500);
    const text = await response.text();
    expect(text).toContain(": hb\n\n");
    expect(text).toMatch(/retry: 5000\ndata: \{"error":\{[^\n]*"code":"no_engine"\}\}\n\n$/);
    expect(world.hook.calls).toHaveLength(1);
    const headers = { authorization: `Bearer ${world.stage.apiKey}` };
    expect((await fetch(`${world.stage.edgeUrl}/v1/sessions/lost`, { headers })).status).toBe(404);
  });
});
