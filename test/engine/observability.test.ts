/** What an engine shows of itself: a scrape, a trace, a log, and how it goes when it is told to. */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { timeline } from "../../cli/trace.ts";
import { startEngineServer } from "../../engine/server.ts";
import { encodeFrame, FrameDecoder } from "../../protocol/frames.ts";
import {
  ENGINE_PATHS,
  type EngineEvent,
  type EngineHeartbeat,
  type GenerateRequest,
  type RequestTrace,
} from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { engineAudience, signRequest } from "../../protocol/signature.ts";
import { runQuire } from "../cli/run-quire.ts";
import { request } from "./harness.ts";
import { parseExposition } from "./metrics/parse-exposition.ts";

const KEY = "engine-key-for-tests";
const PROMPT = [256, 257, ...Buffer.from("A short passage about nothing much. ".repeat(8)), 258];
const logged: { event: string; fields: Record<string, unknown> }[] = [];
let folder: string;

function start(edgeUrl?: string) {
  return startEngineServer({
    edgeUrl,
    ...{ host: "127.0.0.1", port: 0, modelFolder: "weights/house-0", storeUrl: `fs:${folder}`, env: {} },
    ...{ device: "wasm", weightEncoding: "int8", kvEncoding: "int8", summaryKinds: ["min-max"] },
    ...{ poolBytes: 64 * 1024 * 1024, contextTokensMax: 8192, engineKey: KEY },
    settings: { manifestCommitMs: 0, segmentTokens: 64 },
    log: (event, fields) => void logged.push({ event, fields }),
  });
}

let server: Awaited<ReturnType<typeof start>>;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quire-engine-"));
  server = await start();
});
afterAll(async () => {
  await server.stop(1000);
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
});

async function post(path: string, value: unknown, { url, engineId } = server): Promise<Response> {
  const body = encodeFrame(value);
  const target = { audience: engineAudience(engineId), method: "POST", path };
  return fetch(url + path, {
    ...{ method: "POST", body },
    headers: { authorization: await signRequest(KEY, target, body, Date.now()) },
  });
}

async function generate(fields: Partial<GenerateRequest>, at = server): Promise<EngineEvent[]> {
  const asked = request({ model: "house-0", tokens: idsToBytes(PROMPT), ...fields });
  const decoder = new FrameDecoder();
  const events: EngineEvent[] = [];
  for await (const chunk of (await post(ENGINE_PATHS.generate, asked, at)).body!)
    events.push(...(decoder.push(chunk) as EngineEvent[]));
  return events;
}

const scrape = async ({ url } = server) => parseExposition(await (await fetch(`${url}/metrics`)).text());

describe("/metrics", () => {
  it("counts what requests did, in a form that scrapers read", async () => {
    const response = await fetch(`${server.url}/metrics`);
    expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
    const before = await scrape();
    await generate({ maxTokens: 12 });
    await generate({ maxTokens: 5 });
    expect((await generate({ model: "other" })).at(-1)).toMatchObject({ type: "failed" });
    expect((await generate({ tokens: idsToBytes(PROMPT), maxTokens: 8000 })).at(-1)).toMatchObject({ type: "failed" });
    const after = await scrape();
    const grown = (series: string) => (after.get(series) ?? 0) - (before.get(series) ?? 0);
    expect(grown('quire_requests_total{outcome="length"}')).toBe(2);
    expect(grown("quire_completion_tokens_total")).toBe(17);
    expect(grown("quire_prompt_tokens_total")).toBe(2 * PROMPT.length);
    // The second prompt was on the device but for its last token.
    expect(grown('quire_cached_tokens_total{source="device"}')).toBe(PROMPT.length - 1);
    expect(grown('quire_step_rows_total{kind="prefill"}')).toBe(PROMPT.length + 1);
    expect(grown('quire_step_rows_total{kind="decode"}')).toBe(11 + 4);
    expect(after.get('quire_store_calls_total{call="put",outcome="denied"}')).toBe(0);
    expect(after.get("process_cpu_seconds_total")).toBeGreaterThan(0);
    expect(Math.abs((after.get("process_start_time_seconds") ?? 0) - Date.now() / 1000)).toBeLessThan(600);
    expect(grown("quire_first_token_seconds_count")).toBe(2);
    expect(grown("quire_inter_token_seconds_count")).toBe(15);
    expect(grown("quire_turn_seconds_sum")).toBeGreaterThan(grown("quire_first_token_seconds_sum"));
    expect(after.get("quire_running_sequences")).toBe(0);
    expect(after.get("quire_pool_free_blocks")).toBe(after.get("quire_pool_blocks"));
    expect([after.get("quire_pool_held_blocks"), after.get("quire_pool_held_slots")]).toEqual([0, 0]);
    expect(after.get("process_resident_memory_bytes")).toBeGreaterThan(50e6);
    for (const part of ["nodejs_heap_size_used_bytes", "nodejs_external_memory_bytes"]) {
      expect(after.get(part)).toBeGreaterThan(1e6);
    }
    expect([...after.keys()].filter((series) => series.includes("0123456789abcdef"))).toEqual([]);
    await generate({ maxTokens: 2, session: { id: "stored" } });
    await expect
      .poll(async () => (await scrape()).get('quire_store_calls_total{call="put",outcome="ok"}'))
      .toBeGreaterThan(0);
  });
});

describe("the trace of a request", () => {
  it("tells its life in order, across engines, and is found by the id of the HTTP request", async () => {
    const session = { id: "traced" };
    const first = await generate({ session, maxTokens: 40, requestId: "req_one.abc.1" });
    const { spans } = first.at(-1) as Extract<EngineEvent, { type: "done" }>;
    const ids = first.flatMap((event) =>
      event.type === "tokens" ? [...new Uint32Array(event.ids.slice().buffer)] : [],
    );
    await server.opened.persister.flush();
    await server.stop(1000);
    server = await start();
    const log = [...PROMPT, ...ids];
    const tokens = idsToBytes([...log, 257, 65, 66, 258]);
    await generate({ session, tokens, turnStart: log.length, spans, maxTokens: 40, requestId: "req_two.abc.1" });
    await expect.poll(async () => names(await traceOf("req_two")), { timeout: 5_000 }).toContain("committed");
    const trace = await traceOf("req_two");
    expect(trace.requestId).toBe("req_two.abc.1");
    expect(trace.droppedCount).toBe(0);
    const told = names(trace);
    for (const name of [
      "queued",
      "admitted",
      "attached",
      "burst",
      "prefill chunk",
      "first token",
      "decode",
      "ended length",
    ])
      expect(told).toContain(name);
    expect(trace.events.map(({ atMs }) => atMs)).toEqual(trace.events.map(({ atMs }) => atMs).sort((a, b) => a - b));
    const decoded = trace.events
      .filter(({ name }) => name === "decode")
      .reduce((sum, { fields }) => sum + fields.tokens!, 0);
    expect(decoded).toBe(39);
    const { atMs: _, ...committed } = trace.events.at(-1)!;
    expect(committed).toEqual({ name: "committed", fields: { tokens: tokens.byteLength / 4 + 40, generation: 2 } });
    const attached = trace.events.find(({ name }) => name === "attached");
    expect(attached?.fields.store).toBeGreaterThanOrEqual(log.length - 64);
    expect((await post(ENGINE_PATHS.trace, { version: 1, requestId: "req_none" })).status).toBe(404);
    expect((await fetch(server.url + ENGINE_PATHS.trace, { method: "POST", body: "x" })).status).toBe(401);
  });

  it("is printed by `quire trace`", async () => {
    const args = ["trace", "req_two", `--engine=${server.url}`, `--engine-key=${KEY}`];
    const printed = await runQuire(args);
    expect(printed.code).toBe(0);
    expect(printed.stdout.split("\n")[0]).toBe("request req_two.abc.1");
    expect(printed.stdout).toMatch(/ms \|=+ +\| queued {9}promptTokens \d+/);
    const trace = await traceOf("req_two");
    expect(printed.stdout.trimEnd().split("\n")).toEqual(timeline(trace).map((line) => line.trimEnd()));
    const unknown = await runQuire(["trace", "req_none", ...args.slice(2)]);
    expect([unknown.code, unknown.stderr]).toEqual([1, expect.stringMatching(/does not remember request req_none\n$/)]);
    const stranger = await runQuire(["trace", "req_two", `--engine=${server.url}`, "--engine-key=0123456789abcdef0"]);
    expect([stranger.code, stranger.stderr]).toEqual([1, expect.stringMatching(/^quire: wrong engine key/)]);
  });

  const traceOf = async (id: string) =>
    (await (await post(ENGINE_PATHS.trace, { version: 1, requestId: id })).json()) as RequestTrace;
  const names = ({ events }: RequestTrace) => events.map(({ name }) => name);
});

describe("the log", () => {
  it("has one line for each request that ended or was refused, under its id", () => {
    const lines = logged.filter(({ fields }) => fields.requestId === "req_two.abc.1");
    expect(lines).toMatchObject([{ event: "request.ended", fields: { outcome: "length", completionTokens: 40 } }]);
    expect(JSON.stringify(logged)).not.toContain("nothing much");
  });
});

describe("an engine that drains", () => {
  it("lets running turns end, hands those that wait to others, and leaves nothing behind", async () => {
    const drained = await start();
    const { engine } = drained.opened;
    const turn = (maxTokens: number, session: string) =>
      new Promise<string>((resolve) => {
        const tokens = idsToBytes(PROMPT);
        engine.submit(request({ model: "house-0", tokens, maxTokens, session: { id: session } }), {
          ...{ token() {}, done: resolve },
          failed: (error) => resolve((error as { code: string }).code),
        });
      });
    const short = turn(30, "a");
    const waiting = turn(61, "a");
    const long = turn(7000, "b");
    await expect.poll(() => engine.status.runningCount).toBe(2);
    const startMs = performance.now();
    const stopped = drained.stop(3_000);
    await expect(turn(1, "c").catch((error) => error.code)).resolves.toBe("shutting_down");
    // On connections of their own: who comes now hears so, and whoever watches sees it.
    expect((await scrape(drained)).get("quire_draining")).toBe(1);
    expect(await generate({ maxTokens: 1 }, drained)).toMatchObject([{ type: "failed", code: "shutting_down" }]);
    expect(await Promise.all([short, waiting, long])).toEqual(["length", "shutting_down", "cancelled"]);
    await stopped;
    expect(performance.now() - startMs).toBeLessThan(9_000);
  });

  it("is heard of by its edge until it is gone", async () => {
    const beats: boolean[] = [];
    const edge = createServer(async (request, response) => {
      beats.push((JSON.parse(await text(request)) as EngineHeartbeat).draining);
      response.end("{}");
    });
    await new Promise<void>((resolve) => edge.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void edge.close());
    const drained = await start(`http://127.0.0.1:${(edge.address() as AddressInfo).port}`);
    const asked = request({ model: "house-0", tokens: idsToBytes(PROMPT), maxTokens: 7000 });
    drained.opened.engine.submit(asked, { token() {}, done() {}, failed() {} });
    await expect.poll(() => beats.length).toBeGreaterThan(0);
    const before = beats.length;
    await drained.stop(2_500);
    // One at once and one a second, none of which takes it for one that has fallen silent.
    expect(beats.slice(before).length).toBeGreaterThanOrEqual(3);
    expect(beats.slice(before)).not.toContain(false);
  });
});
