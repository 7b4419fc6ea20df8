/** The engine over an encrypted store: what it stores is resumed, by ranges, and is of no use without the key. */
import { expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import { EncryptedStore } from "../../storage/encrypted-store.ts";
import { parseKeyRing } from "../../storage/key-ring.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openTestEngine, randomIds, TestSession, untilIdle } from "./harness.ts";

const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
const [ONE, OTHER] = ["11", "22"].map((byte) => parseKeyRing(byte.repeat(32)));
const LOGPROBS = { topLogprobs: 0 } as const;

async function turn(store: PageStore, session: TestSession, prompt: readonly number[]) {
  const engine = await openTestEngine({ store });
  const result = await session.turn(engine, prompt, LOGPROBS);
  await untilIdle(engine);
  await engine.persister.flush();
  await engine.kill();
  return { ...result, events: engine.logged.map(({ event }) => event) };
}

const PROMPTS = [randomIds(1, 700), randomIds(2, 60)] as const;

/** What the second turn gives where nothing is encrypted, and a store that holds the first one under the key ONE. */
async function world() {
  const undisturbed = new MemoryStore();
  const plain = new TestSession("s", QUEST);
  await turn(undisturbed, plain, PROMPTS[0]);
  const expected = await turn(undisturbed, plain, PROMPTS[1]);
  const inner = new MemoryStore();
  const session = new TestSession("s", QUEST);
  await turn(new EncryptedStore(inner, ONE!), session, PROMPTS[0]);
  return { expected, inner, session };
}

it("is resumed bit for bit by range reads, also while the key is being changed", async () => {
  const { expected, inner, session } = await world();
  const before = session.ids.length;
  const both = parseKeyRing(`${"22".repeat(32)},${"11".repeat(32)}`);
  const found = await turn(new EncryptedStore(inner, both), session, PROMPTS[1]);
  expect(found.logprobs).toEqual(expected.logprobs);
  expect(found.usage.cachedTokens).toBe(before);
  expect(found.usage.recomputedTokens).toBe(0);
  expect(found.usage.pagesFetched).toBeGreaterThan(0);
  expect(found.events).toEqual([]);
});

it("is computed anew with another key or none, and what is there stays as it is", async () => {
  const { expected, inner, session } = await world();
  const { keys } = await inner.list("kv/");
  expect(keys.length).toBeGreaterThan(10);
  const { key } = keys.find((item) => item.key.includes("/session/"))!;
  const { etag } = (await inner.get(key))!;
  for (const strange of [inner, new EncryptedStore(inner, OTHER!)]) {
    const found = await turn(strange, session.fork("s"), PROMPTS[1]);
    expect(found.logprobs).toEqual(expected.logprobs);
    expect(found.usage.cachedTokens).toBe(0);
    expect(found.events).toContain("attach.miss");
    // Its own commit is refused: the manifest is somebody's.
    expect(found.events).toContain("persist.commit-failed");
    expect((await inner.get(key))!.etag).toBe(etag);
  }
});
