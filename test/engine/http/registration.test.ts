/** How an engine speaks to its edge: what it does that had no answer for long (sessions may have been deleted, of which nobody told it), and what it says. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, it, onTestFinished } from "vitest";
import { startRegistration } from "../../../engine/http/registration.ts";
import type { EngineHeartbeat } from "../../../protocol/generate.ts";
import { LIMITS } from "../../../protocol/limits.ts";

it("is told before it beats that it was away, and not while it is answered", async () => {
  let status = 200;
  let beats = 0;
  const edge = createServer((_request, response) => {
    beats += 1;
    response.writeHead(status, { "content-type": "application/json" }).end("{}");
  });
  await new Promise<void>((resolve) => edge.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void edge.close());
  const now = Date.now;
  let passedMs = 0;
  Date.now = () => now() + passedMs;
  onTestFinished(() => {
    Date.now = now;
  });
  const away: number[] = [];
  const registration = startRegistration({
    edgeUrl: `http://127.0.0.1:${(edge.address() as AddressInfo).port}`,
    key: "a-key-of-sixteen",
    beat: () => ({}) as EngineHeartbeat,
    onAway: () => void away.push(beats),
    log: () => undefined,
  });
  onTestFinished(() => registration.stop());
  const nextBeat = async () => {
    const before = beats;
    await expect.poll(() => beats, { timeout: 5_000, interval: 10 }).toBeGreaterThan(before);
    await new Promise((resolve) => setTimeout(resolve, 50));
  };
  await expect.poll(() => beats).toBe(1);
  status = 503;
  await nextBeat();
  passedMs = LIMITS.engineAwayMsMax - 60_000;
  await nextBeat();
  expect(away).toEqual([]);
  passedMs = LIMITS.engineAwayMsMax + 1;
  status = 200;
  await nextBeat();
  expect(away).toEqual([beats - 1]);
  await nextBeat();
  expect(away).toHaveLength(1);
});

describe("a beat that fails", () => {
  const failureOf = async (edgeUrl: string): Promise<unknown> => {
    const logged: { event: string; fields: Record<string, unknown> }[] = [];
    const registration = startRegistration({
      ...{ edgeUrl, key: "a-key-of-sixteen", beat: () => ({}) as EngineHeartbeat, onAway: () => undefined },
      log: (event, fields) => void logged.push({ event, fields }),
    });
    await expect.poll(() => logged.length).toBe(1);
    registration.stop();
    return logged[0];
  };
  const edgeThat = async (status: number, body: string): Promise<string> => {
    const edge = createServer((_request, response) => response.writeHead(status).end(body));
    await new Promise<void>((resolve) => edge.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void edge.close());
    return `http://127.0.0.1:${(edge.address() as AddressInfo).port}`;
  };

  it("says what there is to look at", async () => {
    const refused = await edgeThat(401, "{}");
    expect(await failureOf(refused)).toMatchObject({
      event: "heartbeat.failed",
      fields: { edgeUrl: refused, error: expect.stringMatching(/401: its QUIRE_ENGINE_KEY .* clocks .* 30 s/) },
    });
    expect(await failureOf(await edgeThat(503, "{}"))).toMatchObject({ fields: { error: "the edge answered 503" } });
    const nobody = { fields: { error: "the edge cannot be asked (ENOTFOUND)" } };
    expect(await failureOf("http://edge.invalid")).toMatchObject(nobody);
    const page = { fields: { error: "the edge cannot be asked (SyntaxError)" } };
    expect(await failureOf(await edgeThat(200, "<html>"))).toMatchObject(page);
  });
});

it("waits for no edge that hangs: what is to be said now is said beside it, and the end is the end", async () => {
  const beats: boolean[] = [];
  let isAnswering = false;
  const edge = createServer(async (request, response) => {
    beats.push((JSON.parse(await text(request)) as EngineHeartbeat).draining);
    if (isAnswering) response.end("{}");
  });
  await new Promise<void>((resolve) => edge.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void edge.close());
  onTestFinished(() => edge.closeAllConnections());
  const logged: unknown[] = [];
  let draining = false;
  const registration = startRegistration({
    edgeUrl: `http://127.0.0.1:${(edge.address() as AddressInfo).port}`,
    key: "a-key-of-sixteen",
    beat: () => ({ draining }) as EngineHeartbeat,
    onAway: () => undefined,
    log: (event) => void logged.push(event),
  });
  await expect.poll(() => beats).toEqual([false]);
  isAnswering = true;
  draining = true;
  const begunMs = performance.now();
  await registration.beatNow();
  registration.stop();
  expect(performance.now() - begunMs).toBeLessThan(2_500);
  expect(beats).toContain(true);
  const { length } = beats;
  await new Promise((resolve) => setTimeout(resolve, 1_200));
  expect([beats.length, logged]).toEqual([length, []]);
});
