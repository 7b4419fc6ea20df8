import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, inject, it } from "vitest";
import { FRAMES } from "../../workers/session-log/event-coding.ts";
import { eventBytes, ReplayBuffer } from "../../workers/session-log/replay-buffer.ts";
import { Replays } from "../../workers/session-log/replays.ts";
import { TurnStream } from "../../workers/session-log/turn-stream.ts";
import type { TurnEvent, TurnJob } from "../../workers/turn-job.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ABC_AND_NO_END,
  END,
  env,
  eventsOf,
  ids,
  KEY_A,
  KEY_B,
  logOf,
  makeWorld,
  says,
  streamOf,
  until,
  type World,
} from "./world.ts";

const newId = () => `resume-${crypto.randomUUID()}`;
const TEXT = "Ein Satz mit Umlauten – äöü – und 🙂 漢字, der lange genug ist, um überall zu reißen. ".repeat(2);
const whole: Step[] = [
  { do: "admit" },
  ...[...ids(TEXT), END].flatMap((id, index): Step[] =>
    index % 3 === 0
      ? [
          { do: "tokens", ids: [id] },
          { do: "wait", ms: 1 },
        ]
      : [{ do: "tokens", ids: [id] }],
  ),
  { do: "done", reason: "stop" },
];

/** What a client has of a stream: whole events only, as the standard has it. */
class Received {
  readonly events: { id: string; data: string }[] = [];
  #rest = "";
  #decoder = new TextDecoder();

  get lastId(): string {
    return this.events.at(-1)?.id ?? "";
  }

  get isOver(): boolean {
    return this.events.at(-1)?.data === "[DONE]";
  }

  push(bytes: Uint8Array): void {
    const parts = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n\n");
    this.#rest = parts.pop() ?? "";
    for (const part of parts) {
      if (part.startsWith(":")) continue;
      const [, id = "", data = ""] = /^id: (\S+)\ndata: (.*)$/.exec(part) ?? [];
      this.events.push({ id, data });
    }
  }

  /** The connection is gone, and with it the half of an event that was there. */
  cut(): void {
    this.#rest = "";
    this.#decoder = new TextDecoder();
  }

  /** The payloads, without what differs between two equal answers. */
  payloads(): unknown[] {
    return this.events.map(({ data }) => {
      if (data === "[DONE]") return data;
      const { id: _, created: __, model: ___, usage, ...rest } = JSON.parse(data);
      const quire = usage === null || usage === undefined ? usage : { ...usage, quire: null };
      return { ...rest, usage: quire };
    });
  }

  text(): string {
    return this.payloads()
      .map(
        (payload) => (payload as { choices?: { delta?: { content?: string } }[] }).choices?.[0]?.delta?.content ?? "",
      )
      .join("");
  }
}

/** Reads at most `byteCount` bytes and goes away. */
async function readSome(response: Response, received: Received, byteCount: number): Promise<void> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  let left = byteCount;
  while (left > 0) {
    const { done, value } = await reader.read();
    if (done) return;
    received.push(value.subarray(0, left));
    left -= value.byteLength;
  }
  await reader.cancel();
  received.cut();
}

const resume = (session: string, lastId = "", key = KEY_A) => streamOf(session, { lastId, key });

async function start(world: World, session: string, steps: Step[] = whole, more: object = {}): Promise<Response> {
  await world.engine.script(...steps);
  const quire = { session_id: session, resumable: true };
  return world.chat("hi", { stream: true, stream_options: { include_usage: true }, quire, ...more });
}

async function undisturbed(world: World): Promise<Received> {
  const received = new Received();
  await readSome(await start(world, newId()), received, Number.POSITIVE_INFINITY);
  return received;
}

const numbersOf = ({ events }: Received) => events.map(({ id }) => Number(id.split(".")[1]));

describe("a resumable stream", () => {
  const cutCount = inject("isFull") ? 200 : 10;

  it(`cut at a random byte and resumed, ${cutCount} times, is the undisturbed one`, { timeout: 600_000 }, async () => {
    const world = await makeWorld();
    const expected = await undisturbed(world);
    expect(expected.text()).toBe(TEXT);
    expect(expected.isOver).toBe(true);
    const byteCount = expected.events.reduce((sum, { id, data }) => sum + id.length + data.length + 13, 0);
    for (let round = 0; round < cutCount; round++) {
      const session = newId();
      const received = new Received();
      const cutAt = Math.floor(Math.random() * byteCount);
      await readSome(await start(world, session), received, cutAt);
      for (let tries = 0; !received.isOver && tries < 20; tries++) {
        const response = received.lastId === "" ? await resume(session) : await resume(session, received.lastId);
        expect(response.status, `cut at ${cutAt}`).toBe(200);
        const again = tries < 2 ? Math.floor(Math.random() * byteCount) : Number.POSITIVE_INFINITY;
        await readSome(response, received, again);
      }
      expect(received.payloads(), `cut at ${cutAt}`).toEqual(expected.payloads());
      expect(numbersOf(received), `cut at ${cutAt}`).toEqual(numbersOf(expected));
    }
  });

  it("runs on with nobody there, and the log has it", async () => {
    const world = await makeWorld();
    const session = newId();
    const received = new Received();
    await readSome(await start(world, session), received, 400);
    await until(async () => (await world.engine.lastCall()).finished);
    expect((await world.engine.lastCall()).cancelledMs).toBeUndefined();
    // The engine has said all; the log is written a moment later.
    await until(async () => (await world.chat("ho", { quire: { session_id: session } })).status === 200);
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", TEXT], ["ho"]));
  });

  it("is there after its end, and after the object has started again; then the next turn takes its place", async () => {
    const world = await makeWorld();
    const session = newId();
    const received = new Received();
    await readSome(await start(world, session), received, 700);
    await until(async () => (await world.engine.lastCall()).finished);
    const { namespace } = (await world.engine.lastCall()).request;
    const { lastId } = received;
    await until(async () => (await resume(session, lastId).then(eventsOf)).at(-1) === "[DONE]");
    await evictDurableObject(env.SESSION_LOG.get(env.SESSION_LOG.idFromName(`${namespace}/${session}`)));
    await readSome(await resume(session, lastId), received, Number.POSITIVE_INFINITY);
    expect(received.text()).toBe(TEXT);
    expect(received.isOver).toBe(true);
    const fromStart = new Received();
    await readSome(await resume(session), fromStart, Number.POSITIVE_INFINITY);
    expect(fromStart.events).toEqual(received.events);
    await (await world.chat("ho", { quire: { session_id: session } })).text();
    expect((await resume(session, lastId)).status).toBe(404);
    expect((await resume(session)).status).toBe(404);
  });

  it("is followed by two clients at a time, each with all of it", async () => {
    const world = await makeWorld();
    const session = newId();
    const first = new Received();
    const second = new Received();
    const response = await start(world, session);
    const other = await resume(session);
    await Promise.all([
      readSome(response, first, Number.POSITIVE_INFINITY),
      readSome(other, second, Number.POSITIVE_INFINITY),
    ]);
    expect(first.text()).toBe(TEXT);
    expect(second.events).toEqual(first.events);
  });

  it("ends when it is asked to, and what it said stays in the log", async () => {
    const world = await makeWorld();
    const session = newId();
    const received = new Received();
    const response = await start(world, session, ABC_AND_NO_END);
    await readSome(response, received, 650);
    const stop = (key: string) => streamOf(session, { method: "DELETE", key });
    expect((await stop(KEY_B)).status).toBe(404);
    expect((await world.engine.lastCall()).cancelledMs).toBeUndefined();
    expect((await stop(KEY_A)).status).toBe(200);
    await until(async () => (await world.engine.lastCall()).finished);
    await until(async () => (await stop(KEY_A)).status === 404);
    const events = await eventsOf(await resume(session));
    expect(events.at(-1)).toMatchObject({ error: { code: "cancelled" } });
    await (await world.chat("ho", { quire: { session_id: session } })).text();
    expect((await world.engine.lastCall()).request.tokens).toEqual(logOf(["hi", "abc"], ["ho"]));
  });

  it("that fails says so to a client that comes back, once", async () => {
    const world = await makeWorld();
    const session = newId();
    const received = new Received();
    const steps: Step[] = [
      { do: "admit" },
      { do: "tokens", ids: ids("abc") },
      { do: "wait", ms: 100 },
      { do: "destroy" },
    ];
    await readSome(await start(world, session, steps), received, 650);
    const events = await eventsOf(await resume(session));
    expect(events.filter((event) => (event as { error?: unknown }).error !== undefined)).toHaveLength(1);
    expect(events.at(-1)).toMatchObject({ error: { code: "engine_failed" } });
  });

  it("works without a session's name, through the one that the answer tells", async () => {
    const world = await makeWorld();
    await world.engine.script(...whole);
    const response = await world.chat(`hi ${newId()}`, { stream: true, quire: { resumable: true } });
    const session = response.headers.get("x-quire-session") ?? "";
    const received = new Received();
    await readSome(response, received, 900);
    await readSome(await resume(session, received.lastId), received, Number.POSITIVE_INFINITY);
    expect(received.text()).toBe(TEXT);
  });
});

describe("what cannot be resumed", () => {
  it("is another tenant's stream, an unknown session, a turn that is not resumable, an event that never was", async () => {
    const world = await makeWorld();
    const session = newId();
    const received = new Received();
    await readSome(await start(world, session), received, Number.POSITIVE_INFINITY);
    const code = async (response: Response) => ((await response.json()) as { error: { code: string } }).error.code;
    const other = await resume(session, received.lastId, KEY_B);
    expect(other.status).toBe(404);
    expect(await code(other)).toBe("stream_not_found");
    expect(await code(await resume(newId(), received.lastId))).toBe("stream_not_found");
    const [turn] = received.lastId.split(".");
    expect(await code(await resume(session, `${turn}.99999`))).toBe("stream_not_found");
    expect(await code(await resume(session, `${"0".repeat(20)}.1`))).toBe("stream_not_found");
    const malformed = await resume(session, "7");
    expect(malformed.status).toBe(400);
    expect(await malformed.json()).toMatchObject({ error: { param: "Last-Event-ID" } });
    const plain = newId();
    await world.engine.script(...says("x"));
    const response = await world.chat("hi", { stream: true, quire: { session_id: plain } });
    expect((await response.text()).startsWith("id: ")).toBe(true);
    expect((await resume(plain)).status).toBe(404);
  });

  it("is raw text without a session: 400", async () => {
    const world = await makeWorld();
    const response = await world.post("/v1/completions", { prompt: "x", quire: { resumable: true } });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { param: "quire.resumable" } });
  });
});

describe("TurnStream without a listener", () => {
  const event = (text: string): TurnEvent => ({ type: "text", choice: 0, text, offset: 0 });

  it("ends the turn after its time", async () => {
    const stream = new TurnStream({ resumable: true, absenceMsMax: 50 });
    const reader = (stream.subscribe(0, FRAMES) as ReadableStream<Uint8Array>).getReader();
    await reader.cancel();
    await until(() => stream.gone.aborted, 2_000);
    await stream.close();
  });

  it("ends the turn when what nobody was given is too much, and lives as long as somebody reads", async () => {
    const stream = new TurnStream({ resumable: true });
    const reader = (stream.subscribe(0, FRAMES) as ReadableStream<Uint8Array>).getReader();
    const megabyte = "x".repeat(1024 * 1024);
    for (let index = 0; index < 8; index++) {
      stream.send(event(megabyte));
      for (let byteCount = 0; byteCount < megabyte.length; ) byteCount += (await reader.read()).value?.byteLength ?? 0;
    }
    expect(stream.gone.aborted).toBe(false);
    expect(stream.held.first).toBeGreaterThan(0);
    expect(stream.subscribe(0, FRAMES)).toBeUndefined();
    await reader.cancel();
    for (let index = 0; index < 8; index++) stream.send(event(megabyte));
    await until(() => stream.gone.aborted, 2_000);
    await stream.close();
  });
});

describe("Replays", () => {
  const job = (resumable: boolean) =>
    ({ session: { id: "s", implicit: false }, resumable, head: {} }) as unknown as TurnJob;
  const isRead = /^(get|list)$/;

  it("write nothing while a turn runs, and forget an earlier one when it has ended", async () => {
    const stub = env.SESSION_LOG.get(env.SESSION_LOG.newUniqueId());
    await runInDurableObject(stub, (_, state) => {
      const touched: string[] = [];
      const kv = new Proxy(state.storage.kv, {
        get: (target, name: "get" | "put" | "delete" | "list") => {
          touched.push(name);
          return target[name].bind(target);
        },
      });
      const open = () => new Replays({ kv } as unknown as DurableObjectStorage, () => 0);
      const replays = open();
      const first = new TurnStream({ resumable: true });
      replays.begin(first, job(true), "n");
      replays.end(first);
      void first.close();
      expect(open().resume({ from: 0, form: "frames" })?.streamId).toBe(first.id);
      const second = new TurnStream({ resumable: false });
      touched.length = 0;
      replays.begin(second, job(false), "n");
      expect(touched).toEqual([]);
      // It is the second that runs, whatever lies there.
      expect(replays.resume({ from: 0, form: "frames" })).toBeUndefined();
      replays.end(second);
      expect(touched.some((name) => !isRead.test(name))).toBe(true);
      void second.close();
      expect(open().resume({ from: 0, form: "frames" })).toBeUndefined();
      const third = new TurnStream({ resumable: false });
      touched.length = 0;
      replays.begin(third, job(false), "n");
      replays.end(third);
      void third.close();
      expect(touched).toEqual([]);
    });
  });
});

describe("ReplayBuffer", () => {
  const event = (length: number): TurnEvent => ({ type: "text", choice: 0, text: "x".repeat(length), offset: 0 });

  it("numbers events from its first, drops the oldest, and never what is to be kept", () => {
    const buffer = new ReplayBuffer(5);
    for (let length = 1; length <= 10; length++) buffer.push(event(length));
    const bytes = (from: number, to: number) => {
      let sum = 0;
      for (let length = from; length <= to; length++) sum += eventBytes(event(length));
      return sum;
    };
    expect([buffer.first, buffer.end, buffer.bytes, buffer.count]).toEqual([5, 15, bytes(1, 10), 10]);
    expect(buffer.bytesSince(12)).toBe(bytes(8, 10));
    buffer.trim(bytes(8, 10), 100, 15);
    expect([buffer.first, buffer.bytes]).toEqual([12, bytes(8, 10)]);
    buffer.trim(0, 2, 13);
    expect([buffer.first, buffer.bytes, buffer.saidBytes]).toEqual([13, bytes(9, 10), bytes(1, 10)]);
    expect(buffer.since(14).map(({ number }) => number)).toEqual([14]);
    buffer.dropBefore(99);
    expect([buffer.first, buffer.end, buffer.bytes]).toEqual([15, 15, 0]);
  });

  it("keeps the numbers that it is given, and makes them ascend", () => {
    const buffer = new ReplayBuffer();
    for (const number of [undefined, 4, 3, undefined, 9]) buffer.push(event(1), number);
    expect(buffer.since(0).map(({ number }) => number)).toEqual([0, 4, 5, 6, 9]);
    expect(buffer.since(5).map(({ number }) => number)).toEqual([5, 6, 9]);
    expect(buffer.since(7).map(({ number }) => number)).toEqual([9]);
    expect(buffer.end).toBe(10);
    buffer.dropBefore(6);
    expect([buffer.first, buffer.count]).toEqual([6, 2]);
  });
});

describe("Idempotency-Key", () => {
  const options = (key: string) => ({ headers: { "idempotency-key": key } });

  it("asks for the same turn again, running or ended, and never runs it twice", async () => {
    const world = await makeWorld();
    const quire = { session_id: newId(), resumable: true };
    await world.engine.script(...whole);
    const first = await world.chat("hi", { stream: true, quire }, options("turn-1"));
    const second = await world.chat("hi", { stream: true, quire }, options("turn-1"));
    const [a, b] = [new Received(), new Received()];
    await Promise.all([first, second].map((response, index) => readSome(response, index === 0 ? a : b, 1e9)));
    expect(a.text()).toBe(TEXT);
    expect(b.events).toEqual(a.events);
    const late = new Received();
    await readSome(await world.chat("hi", { stream: true, quire }, options("turn-1")), late, 1e9);
    expect(late.events).toEqual(a.events);
    expect(await world.engine.calls()).toHaveLength(1);
    const other = await world.chat("ho", { stream: true, quire }, options("turn-2"));
    expect(other.status).toBe(200);
    await other.text();
    expect(await world.engine.calls()).toHaveLength(2);
  });

  it("with another body is refused by name, while its turn runs and behind it, and changes nothing", async () => {
    const world = await makeWorld();
    const quire = { session_id: newId(), resumable: true };
    await world.engine.script(...whole);
    const first = await world.chat("hi", { stream: true, quire }, options("turn-1"));
    const refusal = { error: { code: "invalid_request", param: "Idempotency-Key" } };
    const beside = await world.chat("ho", { stream: true, quire }, options("turn-1"));
    const received = new Received();
    await readSome(first, received, 1e9);
    const behind = await world.chat("hi", { stream: true, max_tokens: 3, quire }, options("turn-1"));
    for (const other of [beside, behind]) {
      expect(other.status).toBe(400);
      expect(await other.json()).toMatchObject(refusal);
    }
    const again = new Received();
    await readSome(await world.chat("hi", { stream: true, quire }, options("turn-1")), again, 1e9);
    expect(again.events).toEqual(received.events);
    expect(await world.engine.calls()).toHaveLength(1);
  });

  it("names the turn that is to end", async () => {
    const world = await makeWorld();
    const session = newId();
    await world.engine.script({ do: "admit" }, { do: "hang" });
    const quire = { session_id: session, resumable: true };
    const response = await world.chat("hi", { stream: true, quire }, options("turn-1"));
    const stop = (idempotencyKey: string) => streamOf(session, { method: "DELETE", idempotencyKey });
    expect((await stop("turn-2")).status).toBe(404);
    expect((await stop("turn-1")).status).toBe(200);
    await until(async () => (await world.engine.lastCall()).finished);
    await response.text();
  });

  it("that was ended before its turn came keeps that from running, and nothing else of the session", async () => {
    const world = await makeWorld();
    const session = newId();
    const quire = { session_id: session, resumable: true };
    expect((await streamOf(session, { method: "DELETE", idempotencyKey: "turn-1" })).status).toBe(404);
    const refused = await world.chat("hi", { stream: true, quire }, options("turn-1"));
    expect(refused.status).toBe(499);
    expect(await refused.json()).toMatchObject({ error: { code: "cancelled" } });
    expect(await world.engine.calls()).toHaveLength(0);
    await world.engine.script(...says("x"));
    const second = await world.chat("hi", { stream: true, quire }, options("turn-2"));
    expect(second.status).toBe(200);
    await second.text();
    // A turn that ran is there under its name, also when it was asked to end when it had ended.
    expect((await streamOf(session, { method: "DELETE", idempotencyKey: "turn-2" })).status).toBe(404);
    const again = await world.chat("hi", { stream: true, quire }, options("turn-2"));
    expect(again.status).toBe(200);
    await again.text();
    expect(await world.engine.calls()).toHaveLength(1);
  });

  it("that is malformed is 400", async () => {
    const world = await makeWorld();
    const quire = { session_id: newId(), resumable: true };
    const response = await world.chat("hi", { quire }, options("a b"));
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { param: "Idempotency-Key" } });
  });
});
