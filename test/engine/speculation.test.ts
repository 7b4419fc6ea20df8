/** Guessing next tokens changes how fast they come, and nothing else. */
import { describe, expect, it } from "vitest";
import { Drafter, DraftHistory } from "../../engine/sequence/drafting.ts";
import type { GenerateRequest, SelectionRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { generate, openForTest, randomIds, request, type TestEngine, TestSession, untilIdle } from "./harness.ts";

async function open(): Promise<TestEngine> {
  return openForTest({ blockCount: 2 * 128, openSlotCount: 40 });
}
const SELECTIONS: SelectionRequest[] = [
  { policy: "dense", budgetTokens: 0, exact: true },
  { policy: "quest", budgetTokens: 128, exact: true },
  { policy: "tokenselect", budgetTokens: 160, exact: true },
  { policy: "quest+reuse(4)", budgetTokens: 128, exact: true },
];

/** Text that repeats itself, so that there is something to guess. */
function repetitive(seed: number): number[] {
  const phrase = randomIds(seed, 23);
  return Array.from({ length: 9 }, () => phrase)
    .flat()
    .concat(randomIds(seed + 1, 7));
}

/** Seconds on a quiet machine. */
const SLOW = { timeout: 120_000 };

/** The bias makes the model say a few tokens over and over. */
const bias: [number, number][] = [3, 5, 9].map((id) => [id, 4]);

describe("speculation", () => {
  it.each([0, 0.4, 1])(
    "gives the ids and logprobs of decoding one by one, at temperature %d",
    SLOW,
    async (temperature) => {
      let right = 0;
      let wrong = 0;
      for (const [index, selection] of SELECTIONS.entries()) {
        const plain = await open();
        const guessing = await open();
        const fields = (seed: number): GenerateRequest =>
          request({
            tokens: idsToBytes(repetitive(seed)),
            ...{ selection, maxTokens: 100, topLogprobs: 0 },
            sampling: {
              ...request({ tokens: idsToBytes([1]) }).sampling,
              temperature,
              topP: 0.95,
              seed,
              logitBias: bias,
            },
          });
        const seeds = [1, 2].map((seed) => seed + 10 * index);
        const expected = await Promise.all(seeds.map((seed) => generate(plain, fields(seed))));
        const found = await Promise.all(
          seeds.map((seed) => generate(guessing, { ...fields(seed), speculation: true })),
        );
        for (const [i, { ids, logprobs, spans, usage }] of found.entries()) {
          expect(ids).toEqual(expected[i]!.ids);
          expect(logprobs).toEqual(expected[i]!.logprobs);
          expect(spans).toEqual(expected[i]!.spans);
          expect(usage.completionTokens).toBe(100);
          right += usage.draftedTokensRight ?? 0;
          wrong += (usage.draftedTokens ?? 0) - (usage.draftedTokensRight ?? 0);
        }
        expect(expected.every(({ usage }) => usage.draftedTokens === undefined)).toBe(true);
        await untilIdle(guessing);
        guessing.evictIdle();
        expect(guessing.engine.status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0 });
      }
      // Both kinds of guesses were there.
      expect(right).toBeGreaterThan(3);
      expect(wrong).toBeGreaterThan(0);
    },
  );

  it("ends at stop tokens and leaves KV that the next turn goes on from", SLOW, async () => {
    for (const selection of SELECTIONS) {
      const [plain, guessing] = [await open(), await open()];
      const ended: string[] = [];
      const texts = await Promise.all(
        [plain, guessing].map(async (engine) => {
          const session = new TestSession("s", selection);
          const sampling = { ...request({ tokens: idsToBytes([1]) }).sampling, logitBias: bias };
          const speculation = engine === guessing;
          for (let turn = 0; turn < 3; turn++) {
            const stopTokens = turn === 1 ? [9] : [];
            const prompt = turn === 0 ? repetitive(40) : randomIds(50 + turn, 9);
            const { reason, usage } = await session.turn(engine, prompt, {
              ...{ sampling, speculation, stopTokens },
              maxTokens: 70,
            });
            ended.push(reason);
            if (turn > 0) expect(usage.recomputedTokens).toBe(0);
          }
          return session.ids;
        }),
      );
      expect(texts[1]).toEqual(texts[0]);
      expect(ended.filter((reason) => reason === "stop")).toHaveLength(2);
    }
  });

  it("does not guess where penalties depend on every token before", async () => {
    const engine = await open();
    const sampling = { ...request({ tokens: idsToBytes([1]) }).sampling, presencePenalty: 0.5 };
    const { usage } = await generate(
      engine,
      request({ tokens: idsToBytes(repetitive(3)), sampling, speculation: true }),
    );
    expect(usage.draftedTokens).toBeUndefined();
  });
});

describe("guesses", () => {
  it("are what followed the last tokens before, within the block, the reply and the rows there are", () => {
    const proposals = (tokens: number[], rowsMax = 8, maxTokens = 100, workingSet?: { groupsMax: number }) => {
      const free = { predictMs: () => 1, fixedMs: 1 } as never;
      const sequence = {
        ...{ ids: Uint32Array.from(tokens), tokenCount: tokens.length, generatedCount: 1, blocks: [] },
        ...{ request: { maxTokens }, workingSet },
        wayAt: () => undefined,
      };
      const drafter = new Drafter(sequence as never, new DraftHistory());
      for (let i = 0; i < 8; i++) drafter.judged(1, 1);
      return [...drafter.propose(free, 1, rowsMax)];
    };
    const text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3];
    expect(proposals(text)).toEqual([4, 5, 6, 7, 8, 9, 1, 2]);
    expect(proposals(text, 3)).toEqual([4, 5, 6]);
    expect(proposals(text, 8, 4)).toEqual([4, 5]);
    // Of a context larger than the pool, what each row may choose is set aside.
    for (const groupsMax of [1, 4]) expect(proposals(text, 8, 100, { groupsMax })).toHaveLength(groupsMax - 1);
    expect(proposals([1, 2, 3, 8, 1, 2, 3, 9, 7, 1, 2, 3])).toEqual([9, 7, 1, 2, 3, 9, 7, 1]);
    expect(proposals([5, 4, 4, 4, 4])).toEqual([4, 4, 4, 4, 4, 4, 4, 4]);
    expect(proposals([1, 2, 3, 4, 5, 6])).toEqual([]);
    // Row 61 of a block is the last that may be guessed: 62 would be followed by the one that seals it.
    const long = Array.from({ length: 59 }, (_, i) => i % 10);
    expect(proposals(long)).toHaveLength(4);
    expect(proposals([...long, 9, 0, 1, 2])).toHaveLength(0);
  });
});
