/** Selections under which heads and layers take unevenly: named before anything is computed, and computed again by the name alone. */
import { expect, it } from "vitest";
import type { HeadProfile } from "../../models/selection/head-profile.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { TranscriptTwin } from "../sim/transcript-twin.ts";
import { generate, openForTest, randomIds, request, type TestEngine, TestSession, untilIdle } from "./harness.ts";

const HEADS: HeadProfile = {
  format: 1,
  fingerprint: "not looked at here",
  scores: [
    [0.7, 0.1],
    [0.2, 0.9],
  ],
};
/** The best two of the heads of {@link HEADS}: the first and the last. */
const NAMED = "quest+layer-budgets(2,0.5)+heads(x9)";
const PROMPTS = [randomIds(1, 301), randomIds(2, 41)] as const;
const FIELDS = { maxTokens: 12, topLogprobs: 0 } as const;

async function open(store: MemoryStore, heads?: HeadProfile): Promise<TestEngine> {
  return openForTest({ store, settings: heads === undefined ? {} : { heads } });
}
const selectionOf = (policy: string) => ({ policy: policy as SelectionConfiguration, budgetTokens: 128, exact: true });

/** What two turns under a selection of named heads must give, by the twin. */
async function expectedReplies(named: string) {
  const { runner } = await open(new MemoryStore());
  const twin = new TranscriptTwin(runner, { index: 0, contextTokensMax: 640 });
  const { sampling } = request({ tokens: idsToBytes([1]) });
  const how = (groupTokens: number) => `${named}.1:128@${groupTokens}`;
  const ask = { replyHow: how(1), tokensMax: FIELDS.maxTokens, sampling };
  let ids = [...PROMPTS[0]];
  let spans = [{ end: ids.length, how: "dense" }];
  const first = await twin.reply({ ...ask, ids, spans });
  ids = [...ids, ...first.ids, ...PROMPTS[1]];
  const end = PROMPTS[0].length + first.ids.length;
  spans = [...spans, { end, how: how(1) }, { end: ids.length, how: how(16) }];
  return [first, await twin.reply({ ...ask, ids, spans })] as const;
}

it.each([
  ["a share is named by the profile", "quest+layer-budgets(2,0.5)+heads(0.5)", NAMED],
  ["budgets of heads name them", "quest+head-budgets(2,0,0.5)", "quest+head-budgets(2,0,0.5)"],
])(
  "%s, and an engine without one resumes and computes again by the name",
  { timeout: 120_000 },
  async (_, asked, named) => {
    const [first, second] = await expectedReplies(named);
    const store = new MemoryStore();
    const profiled = await open(store, HEADS);
    const session = new TestSession("s", selectionOf(asked));
    const opened = await session.turn(profiled, PROMPTS[0], FIELDS);
    expect([opened.ids, opened.logprobs]).toEqual([first.ids, first.logprobs]);
    expect(opened.usage.policy).toBe(named);
    expect(opened.spans.at(-1)?.how).toBe(`${named}.1:128@1`);
    await untilIdle(profiled);
    await profiled.persister.flush();

    const [resumed, replayed] = [session.fork("s"), session.fork("s")];
    const fromStore = await resumed.turn(await open(store), PROMPTS[1], { ...FIELDS, selection: selectionOf(named) });
    expect([fromStore.ids, fromStore.logprobs]).toEqual([second.ids, second.logprobs]);
    expect(fromStore.usage.source.store).toBeGreaterThan(300 - 64);
    const fromLog = await replayed.turn(await open(new MemoryStore()), PROMPTS[1], {
      ...FIELDS,
      selection: selectionOf(named),
    });
    expect([fromLog.ids, fromLog.logprobs]).toEqual([second.ids, second.logprobs]);
    expect(fromLog.usage.recomputedTokens).toBeGreaterThan(300);
  },
);

it("a share of nobody knows what is refused in a line, and so are heads of another model", async () => {
  const engine = await open(new MemoryStore());
  const ask = (policy: string) =>
    generate(engine, request({ tokens: idsToBytes(PROMPTS[0]), selection: selectionOf(policy) }));
  await expect(ask("quest+heads(0.5)")).rejects.toThrow(
    /heads\(0\.5\) needs a profile of this model, and there is none/,
  );
  await expect(ask("quest+heads(x97)")).rejects.toThrow(/heads\(x97\) is not of a model of 2 layers of 2 KV heads/);
});

it("a span by heads of another model is never passed off as one of this one: it is computed densely", async () => {
  const engine = await open(new MemoryStore());
  const spans = [{ end: PROMPTS[0].length, how: "streaming+heads(x97).1:128@16" }];
  const tokens = idsToBytes([...PROMPTS[0], ...PROMPTS[1]]);
  const fields = {
    tokens,
    turnStart: PROMPTS[0].length,
    maxTokens: 4,
    selection: { policy: "dense", budgetTokens: 0, exact: true },
  } as const;
  const foreign = await generate(engine, request({ ...fields, spans, requestId: "foreign" }));
  const dense = await generate(
    engine,
    request({ ...fields, spans: [{ end: PROMPTS[0].length, how: "dense" }], requestId: "dense" }),
  );
  expect(foreign.ids).toEqual(dense.ids);
});
