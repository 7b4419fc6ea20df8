/** An object that never answers: whoever asks for its session is told so in time. */
import { afterEach, expect, it, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { SessionLog } from "../../workers/session-log/session-log.ts";
import { TenantIndex } from "../../workers/tenant-index.ts";
import { edge, hurry, KEY_A, makeWorld, says, textOf } from "./world.ts";

afterEach(() => vi.restoreAllMocks());

const never = (): Promise<never> => new Promise(() => undefined);
const REMOVE_MS_MAX = LIMITS.sessionMsMax + LIMITS.storePutMsMax;

it.each([
  ["info", "GET", "", LIMITS.sessionMsMax],
  ["stored", "GET", "", LIMITS.sessionMsMax],
  ["remove", "DELETE", "", REMOVE_MS_MAX],
  ["adopt", "POST", "/fork", LIMITS.sessionMsMax],
  ["resume", "GET", "/stream", LIMITS.sessionMsMax],
  ["stopTurn", "DELETE", "/stream", LIMITS.sessionMsMax],
] as const)("%s: 504 (%s /v1/sessions/:id%s)", async (call, method, path, msMax) => {
  const { chat, engine } = await makeWorld();
  const id = `test-${crypto.randomUUID()}`;
  await engine.script(...says("one"));
  await textOf(await chat("hi", { quire: { session_id: id } }));
  vi.spyOn(SessionLog.prototype, call).mockImplementation(never);
  hurry(msMax);
  const headers = { authorization: `Bearer ${KEY_A}` };
  const response = await edge(`/v1/sessions/${id}${path}`, { method, headers });
  expect(response.status).toBe(504);
  expect(await response.json()).toMatchObject({ error: { code: "deadline_exceeded" } });
});

it("says so also where the session's object itself waited in vain: its error is still that error at the Worker", async () => {
  const { chat, engine } = await makeWorld();
  const id = `test-${crypto.randomUUID()}`;
  await engine.script(...says("one"));
  await textOf(await chat("hi", { quire: { session_id: id } }));
  vi.spyOn(TenantIndex.prototype, "forget").mockImplementation(never);
  hurry(LIMITS.indexMsMax);
  const headers = { authorization: `Bearer ${KEY_A}` };
  const response = await edge(`/v1/sessions/${id}`, { method: "DELETE", headers });
  expect({ status: response.status, body: await response.json() }).toMatchObject({
    status: 504,
    body: { error: { code: "deadline_exceeded", message: "A part of the server did not answer in time." } },
  });
});
