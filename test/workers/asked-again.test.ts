/** A turn that its client asks for again under the name that it gave it. */
import { describe, expect, it, onTestFinished } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { openTurn } from "../../workers/session-log/turn-wire.ts";
import { sessionOf } from "../../workers/stubs.ts";
import type { TurnJob } from "../../workers/turn-job.ts";
import type { Step } from "./fake-engine/script.ts";
import { END, env, hurry, ids, makeWorld, until } from "./world.ts";

const options = { headers: { "idempotency-key": "turn-1" } };
const newQuire = () => ({ session_id: `again-${crypto.randomUUID()}`, resumable: true });

describe("a turn that is asked for again", () => {
  it("is not run twice where its beginning is not held any more", { timeout: 60_000 }, async () => {
    const { chat, engine } = await makeWorld();
    const top = Array.from({ length: 20 }, (_, id): [number, number] => [id + 65, -1]);
    // An event of a hundred tokens with all their alternatives takes 140 KB.
    const many: Step = { do: "tokens", ids: ids("a".repeat(100)), logprobs: Array(100).fill({ logprob: -1, top }) };
    const count = Math.ceil((1.5 * LIMITS.replayBytesMax) / 140_000);
    const steps = Array.from({ length: count }, (): Step[] => [many, { do: "wait", ms: 20 }]).flat();
    await engine.script({ do: "admit" }, ...steps, { do: "tokens", ids: [END] }, { do: "done", reason: "stop" });
    const body = { stream: true, max_tokens: 16_000, logprobs: true, top_logprobs: 20, quire: newQuire() };
    const first = await chat("hi", body, options);
    expect((await first.text()).endsWith("data: [DONE]\n\n")).toBe(true);
    const again = await chat("hi", body, options);
    expect(await engine.calls()).toHaveLength(1);
    expect(again.status).toBe(404);
    expect(await again.json()).toMatchObject({ error: { code: "stream_not_found", param: "Idempotency-Key" } });
    expect((await chat("ho", { quire: body.quire })).status).toBe(200);
  });

  it("and is refused by its tenant's limits then is nobody's who listens", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script({ do: "admit" }, { do: "tokens", ids: ids("a") }, { do: "hang" });
    const quire = newQuire();
    const response = await chat("hi", { stream: true, quire }, options);
    const { namespace } = (await engine.lastCall()).request;
    const job: TurnJob = {
      ...{ requestId: "r", model: "m", namespace, form: "sse", resumable: true, idempotencyKey: "turn-1" },
      ...{ head: { kind: "chat", id: "c", createdS: 0, model: "m", includeUsage: false }, choiceCount: 1 },
      ...{ input: { kind: "chat", messages: [], chain: [] }, maxTokensDefault: 1, maxTokensParam: "max_tokens" },
      ...{ sampling: { seed: 0, logitBias: [] }, stopStrings: [] },
      selection: { policy: "dense", budgetTokens: 0, exact: true },
      session: { id: quire.session_id, implicit: false },
      place: {
        leaseId: crypto.randomUUID(),
        tokensEstimated: 0,
        limits: { requestsPerMinute: 0.5, tokensPerMinute: 1e6, turnsConcurrent: 1_000 },
      },
    };
    const answer = await openTurn(sessionOf(env, namespace, quire.session_id), job);
    expect(answer.status).toBe("limited");
    const absence = hurry(LIMITS.resumableMsMax, 50);
    onTestFinished(() => absence.mockRestore());
    await response.body?.cancel();
    await until(async () => (await engine.lastCall()).finished);
  });
});
