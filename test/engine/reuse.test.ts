/** Choices that rows of a run share: decoding, computing again and resuming have the bits of a twin that keeps no choice at all. */
import { describe, expect, it } from "vitest";
import { SpanList } from "../../engine/kv/provenance.ts";
import type { PlannedSlice } from "../../engine/sequence/planned-slice.ts";
import { collectChoice, keepChoice } from "../../engine/sequence/runs.ts";
import type { Sequence } from "../../engine/sequence/sequence.ts";
import { emptyTraffic } from "../../kernels/traffic.ts";
import type { Checkpoint, SequenceResult } from "../../models/contract.ts";
import type { GenerateRequest, SelectionRequest, Span } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { TranscriptTwin, type TwinReply } from "../sim/transcript-twin.ts";
import {
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  type TurnResult,
  untilIdle,
} from "./harness.ts";

const PROMPTS = [randomIds(1, 301), randomIds(2, 41), randomIds(3, 23)];
const REPLY_TOKENS = 30;
const FIELDS = { maxTokens: REPLY_TOKENS, topLogprobs: 0 } as const;
const SELECTIONS: SelectionRequest[] = ["quest+reuse(4)", "mean-deviation+scope(layer)+reuse(16)"].map((policy) => ({
  ...{ policy: policy as SelectionRequest["policy"], budgetTokens: 128, exact: true },
}));

/** What every turn must give, by the twin. */
async function expectedReplies({ policy, budgetTokens }: SelectionRequest): Promise<TwinReply[]> {
  const { runner } = await openForTest();
  const twin = new TranscriptTwin(runner, { index: 0, contextTokensMax: 640 });
  const how = (groupTokens: number): string => `${policy}.1:${budgetTokens}@${groupTokens}`;
  const replies: TwinReply[] = [];
  let ids: number[] = [];
  let spans: Span[] = [];
  for (const [turn, prompt] of PROMPTS.entries()) {
    ids = [...ids, ...prompt];
    spans = [...spans, { end: ids.length, how: turn === 0 ? "dense" : how(16) }];
    const { sampling } = request({ tokens: idsToBytes([1]) });
    const reply = await twin.reply({ ids, spans, replyHow: how(1), tokensMax: REPLY_TOKENS, sampling });
    replies.push(reply);
    ids = [...ids, ...reply.ids];
    spans = [...spans, { end: ids.length, how: how(1) }];
  }
  return replies;
}

function expectSame({ ids, logprobs }: Pick<TurnResult, "ids" | "logprobs">, expected: TwinReply, what: string): void {
  expect(ids, what).toEqual(expected.ids);
  expect(logprobs, what).toEqual(expected.logprobs);
}

/** The first two turns on an engine, written down. */
async function twoTurns(engine: TestEngine, selection: SelectionRequest, expected: TwinReply[]): Promise<TestSession> {
  const session = new TestSession("s", selection);
  for (const turn of [0, 1]) expectSame(await session.turn(engine, PROMPTS[turn]!, FIELDS), expected[turn]!, "decoded");
  await untilIdle(engine);
  await engine.persister.flush();
  return session;
}

const SLOW = { timeout: 120_000 };

describe.each(SELECTIONS)("a choice for several tokens, $policy", SLOW, (selection) => {
  it("is made and followed as the twin does, on one engine, resumed, and computed again in small steps", async () => {
    const expected = await expectedReplies(selection);
    const store = new MemoryStore();
    const first = await openForTest({ store });
    const session = await twoTurns(first, selection, expected);
    const [other, third] = [session.fork("other"), session.fork("third")];
    expectSame(await session.turn(first, PROMPTS[2]!, FIELDS), expected[2]!, "on one engine");

    const resumed = await other.turn(await openForTest({ store }), PROMPTS[2]!, { ...FIELDS, session: { id: "s" } });
    expectSame(resumed, expected[2]!, "resumed");
    expect(resumed.usage.recomputedTokens).toBe(0);
    expect(resumed.usage.source.store).toBeGreaterThan(300);

    const again = await third.turn(await openForTest({ settings: { stepRowsMax: 21 } }), PROMPTS[2]!, FIELDS);
    expectSame(again, expected[2]!, "computed again");
    expect(again.usage.recomputedTokens).toBe(301 + 41 + 2 * REPLY_TOKENS);
  });

  it("is the same in company and with guesses", async () => {
    const expected = await expectedReplies(selection);
    const engine = await openForTest({ blockCount: 4 * 64, openSlotCount: 40 });
    const turns = ["a", "b", "c"].map((id, index) =>
      new TestSession(id, selection).turn(engine, PROMPTS[0]!, { ...FIELDS, speculation: index === 1 }),
    );
    for (const turn of await Promise.all(turns)) expectSame(turn, expected[0]!, "in company");
    await untilIdle(engine);
    engine.evictIdle();
    expect(engine.engine.status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0 });
  });

  it("goes on in the middle of a run on an engine that has nothing, or only what was written before", async () => {
    const expected = await expectedReplies(selection);
    const ids = expected[0]!.ids;
    const [whole] = expected;
    for (const known of [1, 6, 15]) {
      const store = new MemoryStore();
      const fields: GenerateRequest = request({
        tokens: idsToBytes([...PROMPTS[0]!, ...ids.slice(0, known)]),
        ...{ session: { id: "s" }, selection, topLogprobs: 0, replyStart: 301, maxTokens: 3 },
      });
      const engine = await openForTest({ store });
      const part = await generate(engine, fields);
      expectSame(part, cut(whole!, known, known + 3), `from ${known} on`);
      await untilIdle(engine);
      await engine.persister.flush();
      // The next engine finds the tail, which ends in the middle of a run.
      const next = { ...fields, tokens: idsToBytes([...PROMPTS[0]!, ...ids.slice(0, known + 3)]) };
      for (const each of [engine, await openForTest({ store })]) {
        expectSame(
          await generate(each, { ...next, session: { id: "s" } }),
          cut(whole!, known + 3, known + 6),
          "further",
        );
      }
    }
  });
});

function cut({ ids, logprobs }: TwinReply, from: number, to: number): TwinReply {
  return { ids: ids.slice(from, to), logprobs: logprobs.slice(from, to) };
}

describe("what reuse costs and saves", () => {
  it("reads summaries once for every run, and the same pages", async () => {
    const usageOf = async (policy: SelectionRequest["policy"]) => {
      const session = new TestSession("s", { policy, budgetTokens: 128, exact: true });
      return (await session.turn(await openForTest(), PROMPTS[0]!.slice(0, 288), { maxTokens: 33 })).usage;
    };
    const [each, fourth] = [await usageOf("quest"), await usageOf("quest+reuse(4)")];
    // 33 tokens: 32 rows of the reply are run, from position 288 on, so eight runs.
    expect(fourth.metadataBytesRead / each.metadataBytesRead).toBeCloseTo(1 / 4, 2);
    expect(fourth.pagesSelected).toBe(each.pagesSelected);
  });
});

describe("choices as they come in", () => {
  const planned = (): PlannedSlice =>
    ({
      to: 322,
      slice: { blockIds: new Int32Array(3 * 6), blockCapacity: 6 },
      pending: { position: 320, bytes: undefined, layer: 0, isWhole: false },
    }) as unknown as PlannedSlice;
  const result = (bytes: number[], rest: Partial<SequenceResult>): SequenceResult => ({
    ...{
      misses: [],
      traffic: emptyTraffic(),
    },
    ...{ choice: Uint8Array.from(bytes), ...rest },
  });

  it("are put together from the calls of a step that was void twice", () => {
    const slice = planned();
    const sequence = { choice: undefined } as unknown as Sequence;
    collectChoice(slice, result([1, 1, 9, 9, 9, 9], { checkpoint: { layer: 1 } as Checkpoint }));
    collectChoice(slice, result([0, 0, 2, 2, 9, 9], { checkpoint: { layer: 2 } as Checkpoint }));
    keepChoice(sequence, slice);
    expect(sequence.choice, "not whole yet").toBeUndefined();
    collectChoice(slice, result([0, 0, 0, 0, 3, 3], { sample: { tokenId: 1 } }));
    keepChoice(sequence, slice);
    expect(sequence.choice).toEqual({ position: 320, bytes: Uint8Array.of(1, 1, 2, 2, 3, 3) });
  });

  it("are not kept where nothing was sampled, nor of a row that was a wrong guess", () => {
    const sequence = { choice: undefined } as unknown as Sequence;
    const unsampled = planned();
    collectChoice(unsampled, result([1, 1, 1, 1, 0, 0], {}));
    keepChoice(sequence, unsampled);
    const wrong = planned();
    collectChoice(wrong, result([1, 1, 1, 1, 1, 1], { sample: { tokenId: 1 } }));
    wrong.to = 320;
    keepChoice(sequence, wrong);
    expect(sequence.choice).toBeUndefined();
  });
});

describe("the tokens that are computed alike", () => {
  it("reach over borders of spans that say the same", () => {
    const spans = new SpanList([
      { end: 10, how: "dense" },
      { end: 20, how: "quest.1:128@1" },
    ]);
    spans.append(25, "quest.1:128@1");
    spans.append(30, "quest.1:128@1~ab");
    expect([0, 9].map((position) => spans.stretch(position).end)).toEqual([10, 10]);
    for (const position of [10, 19, 20, 24]) expect(spans.stretch(position)).toMatchObject({ start: 10, end: 25 });
    expect(spans.stretch(29)).toEqual({ start: 25, end: 30, how: "quest.1:128@1~ab" });
    expect(() => spans.stretch(30)).toThrow(RangeError);
  });
});
