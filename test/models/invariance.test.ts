/** Where a prompt is cut and what runs beside it must not change one bit. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BLOCK_TOKENS, type Device, type SelectionPlan } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelRunner, SequenceStep } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { Conversation, DENSE } from "./conversation.ts";
import { type HouseCase, houseCases, openHouse, promptIds } from "./house.ts";

const CONTEXT_TOKENS = 384;
const PROMPT_TOKENS = 330;

let prompt: number[];
beforeAll(async () => {
  const cases: HouseCase[] = await houseCases();
  prompt = promptIds(cases[0]!, 0).slice(0, PROMPT_TOKENS);
});

describe("on the wasm device", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  /** Everything that a conversation leaves: logprobs of its last step, sealed blocks, summaries and the open block. */
  async function traces(runner: ModelRunner, conversation: Conversation, index: number): Promise<unknown> {
    const next: SequenceStep = conversation.step([65], { sample: true, topLogprobs: 20 });
    const [result] = await runner.step([next]);
    conversation.accept([65], result!);
    const { pool } = runner;
    const count = conversation.tokens.length;
    const sealed = Math.floor(count / BLOCK_TOKENS);
    const blocks: Uint8Array[] = [];
    for (let layer = 0; layer < 4; layer++) {
      for (let block = 0; block < sealed; block++) {
        blocks.push(await pool.readBlock(conversation.blockIds[layer * conversation.blockCapacity + block]!));
      }
    }
    const summaries: Uint8Array[] = [];
    for (let block = 0; block < sealed; block++) {
      for (const kind of pool.spec.summaryKinds)
        summaries.push(await pool.readSummary(index * conversation.blockCapacity + block, kind));
    }
    const open = await pool.readOpen(next.slice.openSlots.at(-1)!, count % BLOCK_TOKENS);
    return { sample: result!.sample, blocks, summaries, open };
  }

  async function run(
    plan: SelectionPlan,
    encoding: "f32" | "int8",
    cuts: number[],
    chunkTokens: number,
  ): Promise<unknown> {
    const runner = await openHouse({
      device,
      contextTokens: CONTEXT_TOKENS,
      rowsMax: 336,
      encoding,
      kvEncoding: encoding,
    });
    const conversation = new Conversation(runner, { contextTokens: CONTEXT_TOKENS, plan, chunkTokens });
    await conversation.prefill(prompt, cuts);
    return traces(runner, conversation, 0);
  }

  it.each(["f32", "int8"] as const)("a prompt in pieces equals the whole, dense, %s", async (encoding) => {
    const whole = await run(DENSE, encoding, [], PROMPT_TOKENS);
    expect(await run(DENSE, encoding, [1, 7, 64, 100, 63], 16)).toEqual(whole);
  });

  it.each(["quest", "mean-deviation", "tokenselect"] as const)(
    "a prompt in pieces equals the whole, %s at budget 128",
    async (name) => {
      const plan = policyNamed(name).plan(128);
      const whole = await run(plan, "int8", [], PROMPT_TOKENS);
      expect(await run(plan, "int8", [16, 48, 112, 32], 64)).toEqual(whole);
      expect(await run(DENSE, "int8", [], PROMPT_TOKENS)).not.toEqual(whole);
    },
  );

  it("sequences in one batch equal each alone, prefill beside decode, policies mixed", async () => {
    const plans: SelectionPlan[] = [DENSE, policyNamed("quest").plan(128), policyNamed("tokenselect").plan(128)];
    const options = { device, contextTokens: CONTEXT_TOKENS, rowsMax: 512, sequences: plans.length } as const;
    const lengths = [200, 240, 176];
    const sequence = (runner: ModelRunner, index: number) =>
      new Conversation(runner, { contextTokens: CONTEXT_TOKENS, plan: plans[index]!, index });
    const alone: unknown[] = [];
    const aloneRunner = await openHouse(options);
    for (const [index, length] of lengths.entries()) {
      const conversation = sequence(aloneRunner, index);
      await conversation.prefill(prompt.slice(0, length));
      alone.push(await traces(aloneRunner, conversation, index));
    }

    const runner = await openHouse(options);
    const conversations = plans.map((_, index) => sequence(runner, index));
    await conversations[0]!.prefill(prompt.slice(0, lengths[0]! - 1));
    // One decode row of the first sequence beside a whole prompt of each other.
    const parts = [prompt.slice(lengths[0]! - 1, lengths[0]), prompt.slice(0, lengths[1]), prompt.slice(0, lengths[2])];
    const steps = conversations.map((conversation, i) => conversation.step(parts[i]!, { sample: i !== 1 }));
    const results = await runner.step(steps);
    expect(results.map(({ sample }) => sample !== undefined)).toEqual([true, false, true]);
    conversations.forEach((conversation, i) => {
      conversation.accept(parts[i]!, results[i]!);
    });
    for (const [index, conversation] of conversations.entries()) {
      expect(await traces(runner, conversation, index)).toEqual(alone[index]);
    }
  });
});
