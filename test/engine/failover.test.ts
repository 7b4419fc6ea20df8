/** A reply that one engine began and another one, with an empty memory, goes on with: the same tokens, spans and logprobs. */
import { describe, expect, it } from "vitest";
import type { GenerateRequest, SamplingParams, SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { generate, openForTest, randomIds, request, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const CONTEXT = randomIds(1, 300);
const PROMPT = randomIds(2, 45);
const maxTokens = 30;
const GREEDY: SamplingParams = request({ tokens: idsToBytes([1]) }).sampling;
const SAMPLED = { ...GREEDY, temperature: 1, seed: 77 };
const PENALIZED = { ...SAMPLED, frequencyPenalty: 1.5, presencePenalty: 1, repetitionPenalty: 1.3 };
const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };
const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };

async function open(store = new MemoryStore()): Promise<TestEngine> {
  return openForTest({ store, rowsMax: 64 });
}
describe.each([
  ["greedy, dense", GREEDY, DENSE],
  ["sampled, dense", SAMPLED, DENSE],
  ["with penalties, dense", PENALIZED, DENSE],
  ["greedy, quest", GREEDY, QUEST],
  ["with penalties, quest", PENALIZED, QUEST],
] as const)("%s", (_, sampling, selection) => {
  it("goes on as the first engine would have, wherever that one was lost", async () => {
    const store = new MemoryStore();
    const first = await open(store);
    const session = new TestSession("s", selection);
    await session.turn(first, CONTEXT);
    const turnStart = session.ids.length;
    const { spans } = session;
    const common: Partial<GenerateRequest> = { session: { id: "s" }, turnStart, spans, selection, sampling };
    const prompt = [...session.ids, ...PROMPT];
    const whole = await generate(
      first,
      request({ ...common, tokens: idsToBytes(prompt), maxTokens, topLogprobs: 0, session: undefined }),
    );
    expect(whole.ids).toHaveLength(maxTokens);
    await untilIdle(first);
    await first.persister.flush();
    for (const done of [0, 1, 7, 19, 29]) {
      const other = await open(store);
      const tokens = idsToBytes([...prompt, ...whole.ids.slice(0, done)]);
      const rest = await generate(
        other,
        request({ ...common, tokens, maxTokens: maxTokens - done, replyStart: prompt.length, topLogprobs: 0 }),
      );
      expect([...whole.ids.slice(0, done), ...rest.ids], `lost after ${done}`).toEqual(whole.ids);
      expect(rest.logprobs, `lost after ${done}`).toEqual(whole.logprobs.slice(done));
      expect(rest.spans).toEqual(whole.spans);
      await untilIdle(other);
    }
  });
});
