import { expect, it } from "vitest";
import { sessionCalls } from "../../../engine/http/session-calls.ts";
import { ENGINE_DEFAULTS, systemClock } from "../../../engine/settings.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { loadManifest } from "../../../storage/manifest.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { generate, NAMESPACE, openForTest, randomIds, request, untilIdle } from "../harness.ts";

/** A turn of a session of this name. */
const turnOf = (id: string, maxTokens: number) =>
  request({ session: { id }, tokens: idsToBytes(randomIds(1, 100)), maxTokens });

it("leaves nothing of a session that is deleted at once behind a turn, be it said to the end or broken off", async () => {
  const store = new MemoryStore();
  const engine = await openForTest({ store });
  const calls = sessionCalls(engine, store, { settings: ENGINE_DEFAULTS, clock: systemClock });
  const deletions: Promise<void>[] = [];
  const remove = (id: string) => void deletions.push(calls.delete(NAMESPACE, id));
  await generate(engine, turnOf("whole", 8)).then(() => remove("whole"));
  await generate(engine, turnOf("broken", 200), (ticket, ids) => {
    const leave = setInterval(() => {
      if (ids.length < 3) return;
      clearInterval(leave);
      ticket.cancel();
      remove("broken");
    }, 1);
  });
  await Promise.all(deletions);
  await untilIdle(engine);
  await engine.persister.flush();
  const { keys } = await store.list("kv/");
  expect(keys.map(({ key }) => key).filter((key) => key.includes("/tail/"))).toEqual([]);
  const left = keys.map(({ key }) => key).filter((key) => key.includes("/session/"));
  expect(left).toHaveLength(2);
  for (const key of left) expect(await loadManifest(store, key)).toBeUndefined();
  expect(await calls.status(NAMESPACE, "whole")).toEqual({ persistedTokens: 0, generation: 0, pending: false });
});

it("does not wait for a turn that another client has begun under the name, and leaves that alone", async () => {
  const store = new MemoryStore();
  const engine = await openForTest({ store });
  const calls = sessionCalls(engine, store, { settings: ENGINE_DEFAULTS, clock: systemClock });
  let deleting: Promise<void> | undefined;
  await generate(engine, turnOf("again", 200), (_ticket, ids) => {
    const watch = setInterval(() => {
      if (ids.length < 3) return;
      clearInterval(watch);
      deleting = calls.delete(NAMESPACE, "again").then(() => expect(ids.length).toBeLessThan(200));
    }, 1);
  });
  await deleting;
  await untilIdle(engine);
  await engine.persister.flush();
  expect(await calls.status(NAMESPACE, "again")).toMatchObject({ persistedTokens: 300 });
});
