/** What an engine does that had no answer of its edge for long: sessions may have been deleted meanwhile, of which nobody told it. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it, onTestFinished } from "vitest";
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
