/** A conversation is deleted while one of its two engines is not there: nothing of it is found by either, nor stored again. Real processes, one store. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { demoPassage } from "../../cli/demo-passage.ts";
import { Stage, type StageEngine } from "../../cli/demo-stage.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Session } from "../../sdk/index.ts";

const life = new AbortController();
let stage: Stage;
beforeAll(async () => {
  stage = await Stage.open(life.signal);
});
afterAll(async () => {
  life.abort();
  await stage?.close();
});

async function ask(session: Session, text: string) {
  const reply = session.send(text, { maxTokens: 4 });
  await reply.text();
  const { cachedTokens, promptTokens, completionTokens, quire } = await reply.usage;
  return { cachedTokens, tokenCount: promptTokens + completionTokens, engines: quire.engines };
}

/** A stopped engine goes on when the test is over, whatever became of it: what is stopped is not killed by those who wait for its end. */
async function stopped<T>(engine: StageEngine, act: () => Promise<T>): Promise<T> {
  process.kill(engine.pid, "SIGSTOP");
  try {
    await sleep(LIMITS.engineExpiryMs + 1_000);
    return await act();
  } finally {
    process.kill(engine.pid, "SIGCONT");
  }
}

it("is gone everywhere once it is deleted", async () => {
  const first = await stage.addEngine();
  const session = stage.client.session({ id: "deleted", temperature: 0 });
  const begun = await ask(session, demoPassage);
  await stage.untilPersisted(session.id, begun.tokenCount);
  const second = await stage.addEngine();
  await stopped(first, async () => {
    const { engines, cachedTokens, tokenCount } = await ask(session, "And then?");
    expect(engines).toEqual([second.id]);
    expect(cachedTokens).toBeGreaterThan(begun.tokenCount - 64);
    await stage.untilPersisted(session.id, tokenCount);
    await session.delete();
  });
  // The first one is back with its next beat, and has heard of it before it gets a turn.
  await second.kill();
  await sleep(LIMITS.engineExpiryMs + LIMITS.engineHeartbeatMs);
  const again = await ask(session, demoPassage);
  expect(again).toMatchObject({ engines: [first.id], cachedTokens: 0 });
  // The same name is a conversation of its own, and is stored as one.
  await stage.untilPersisted(session.id, again.tokenCount);
  const more = await ask(session, "And then?");
  expect(more.cachedTokens).toBeGreaterThan(again.tokenCount - 64);
});
