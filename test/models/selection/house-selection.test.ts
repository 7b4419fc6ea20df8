/** Selection on a trained model: nothing changes below the budget, and above it the right pages are found. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { Device, SliceTraffic } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import { POLICY_NAMES, policyNamed } from "../../../models/selection/registry.ts";
import type { SelectionPolicyName } from "../../../protocol/generate.ts";
import { Conversation } from "../conversation.ts";
import { HOUSE_END, type HouseCase, houseCases, openHouse, promptIds, textOf } from "../house.ts";

// Passages of thousands of tokens, which a busy machine reads many times slower than a quiet one.
vi.setConfig({ testTimeout: 240_000, hookTimeout: 240_000 });

const SELECTIVE = POLICY_NAMES.filter((name) => name !== "dense");
const FINDING: readonly SelectionPolicyName[] = ["quest", "mean-deviation", "tokenselect"];

let cases: HouseCase[];
let device: Device;
beforeAll(async () => {
  cases = await houseCases();
  device = await openDevice({ kind: "wasm" });
});
afterAll(() => device?.close());

async function open(house: HouseCase): Promise<Conversation> {
  const contextTokens = house.turns.at(-1)!.prompt_tokens + 64;
  const runner = await openHouse({ device, contextTokens, encoding: "int8", kvEncoding: "int8" });
  return new Conversation(runner, { contextTokens, chunkTokens: 256 });
}

interface Run {
  texts: string[];
  /** Summed over every step of the turns that ran. */
  traffic: SliceTraffic;
}

/** Turns `[firstTurn, ...)` of a case, prompts and answers under one policy. */
async function run(
  conversation: Conversation,
  house: HouseCase,
  options: { policy: SelectionPolicyName; budgetTokens: number; firstTurn: number; endTurn?: number },
): Promise<Run> {
  const { firstTurn, endTurn = house.turns.length } = options;
  conversation.plan = policyNamed(options.policy).plan(options.budgetTokens);
  const first = conversation.results.length;
  const texts: string[] = [];
  for (let turn = firstTurn; turn < endTurn; turn++) {
    const sample = await conversation.prefill([...(turn === 0 ? [] : [HOUSE_END]), ...promptIds(house, turn)]);
    texts.push(textOf(await conversation.generate(sample, { tokensMax: 40, endId: HOUSE_END })));
  }
  const steps = conversation.results.slice(first).map(({ traffic }) => traffic);
  const sum = (key: keyof SliceTraffic) => steps.reduce((total, step) => total + step[key], 0);
  return {
    texts,
    traffic: {
      pagesSelected: sum("pagesSelected"),
      pagesInContext: sum("pagesInContext"),
      kvBytes: sum("kvBytes"),
      metadataBytes: sum("metadataBytes"),
      pagesPassedOver: sum("pagesPassedOver"),
    },
  };
}

const answers = (house: HouseCase) => house.turns.map(({ text }) => text);

describe("while the context fits the budget", () => {
  it.each(SELECTIVE)("%s is dense, bit for bit, and scores nothing", async (policy) => {
    const house = cases[0]!;
    const budgetTokens = 640;
    expect(house.turns.at(-1)!.prompt_tokens + 40).toBeLessThanOrEqual(budgetTokens);
    const [denseConversation, conversation] = [await open(house), await open(house)];
    const dense = await run(denseConversation, house, { policy: "dense", budgetTokens, firstTurn: 0 });
    const selected = await run(conversation, house, { policy, budgetTokens, firstTurn: 0 });
    expect(conversation.tokens).toEqual(denseConversation.tokens);
    expect(selected.traffic).toEqual({ ...dense.traffic, pagesSelected: 0, pagesInContext: 0, metadataBytes: 0 });
    expect(selected.traffic.kvBytes).toBeGreaterThan(0);
    // Logprobs of one more step are a function of every bit of the cache that it reads.
    const expected = await denseConversation.probe([HOUSE_END]);
    expect(expected?.top?.length).toBe(20);
    expect(await conversation.probe([HOUSE_END])).toEqual(expected);
  });
});

describe.each([
  { index: 1, about: 1_700, budgetTokens: 256 },
  { index: 2, about: 6_200, budgetTokens: 512 },
])("with a budget of $budgetTokens tokens at $about", ({ index, budgetTokens }) => {
  let house: HouseCase;
  let conversation: Conversation;
  let start: number;
  let dense: Run;
  /** The passage and its first question are read densely once; each test then asks the next two questions from there. */
  beforeAll(async () => {
    house = cases[index]!;
    conversation = await open(house);
    await run(conversation, house, { policy: "dense", budgetTokens, firstTurn: 0, endTurn: 1 });
    start = conversation.tokens.length;
    dense = await ask("dense");
  });

  async function ask(policy: SelectionPolicyName): Promise<Run> {
    conversation.rewind(start);
    return run(conversation, house, { policy, budgetTokens, firstTurn: 1 });
  }

  it.each(FINDING)("%s answers two further questions rightly from a fraction of the pages", async (policy) => {
    const { texts, traffic } = await ask(policy);
    expect(texts).toEqual(answers(house).slice(1));
    expect(traffic.pagesInContext).toBeGreaterThan(0);
    expect(traffic.metadataBytes).toBeGreaterThan(0);
    // Single tokens may come from many pages: for tokenselect only the bytes are bounded by the budget.
    const share = traffic.pagesSelected / traffic.pagesInContext;
    expect(share).toBeLessThan(policy === "tokenselect" ? 0.6 : 0.2);
    expect(traffic.kvBytes).toBeLessThan(dense.traffic.kvBytes / 3);
  });

  it("streaming, which cannot look back, does not", async () => {
    const { texts, traffic } = await ask("streaming");
    expect(texts[0]).not.toBe(answers(house)[1]);
    expect(texts[1]).not.toBe(answers(house)[2]);
    expect(traffic.metadataBytes).toBe(0);
    expect(traffic.pagesSelected).toBeLessThan(traffic.pagesInContext / 5);
  });

  it("dense answers, and counts no selection", () => {
    expect(dense.texts).toEqual(answers(house).slice(1));
    expect(dense.traffic).toMatchObject({ pagesSelected: 0, pagesInContext: 0, metadataBytes: 0 });
  });
});

describe("when the passage itself is read with a budget of 256 tokens at 1,700", () => {
  it.each(FINDING)("%s answers all three questions", async (policy) => {
    const house = cases[1]!;
    const { texts } = await run(await open(house), house, { policy, budgetTokens: 256, firstTurn: 0 });
    expect(texts).toEqual(answers(house));
  });
});
