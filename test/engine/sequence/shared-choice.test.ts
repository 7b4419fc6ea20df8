/** A choice that serves several layers is read for all of them at once: a resumed turn waits once a choice, not once a layer. */
import { expect, it } from "vitest";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import type { PlannedSlice } from "../../../engine/sequence/planned-slice.ts";
import { missedByFollowers } from "../../../engine/sequence/shared-choice.ts";
import { NOT_RESIDENT } from "../../../kernels/contract.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { expectNothingHeld, openForTest, randomIds, TestSession, untilIdle } from "../harness.ts";

const LAYERS = 7;
const BLOCKS = 40;
const ONE = { maxTokens: 1 } as const;

/** Blocks of which every third is on the device in every second layer, block 34 a gap; layer `l` has chosen those that 5 divides, `l` more. */
function world(policy: string) {
  const blocks = Array.from({ length: BLOCKS }, (_, index) => {
    const deviceBlocks = Array.from({ length: LAYERS }, (_, layer) =>
      index % 3 === 0 && layer % 2 === 0 ? 1 : NOT_RESIDENT,
    );
    return index === 34 ? undefined : ({ index, deviceBlocks } as unknown as LogicalBlock);
  });
  const chosen = (layer: number, index: number) => (index + layer) % 5 === 0;
  const words = new Uint32Array(LAYERS * 2);
  for (let layer = 0; layer < LAYERS; layer++)
    for (let index = 0; index < BLOCKS; index++)
      if (chosen(layer, index)) words[2 * layer + (index >> 5)]! |= 1 << (index & 31);
  const slice = {
    plan: policyNamed(policy).plan(128),
    blockIds: new Int32Array(LAYERS * BLOCKS),
    blockCapacity: BLOCKS,
  } as unknown as PlannedSlice["slice"];
  const missed = (layer: number) =>
    missedByFollowers({ blocks }, { slice }, layer, words).map(({ block, layer: of }) => [of, block.index]);
  const naive = (layer: number, followers: readonly number[]) =>
    followers.flatMap((of) =>
      blocks.flatMap((block) =>
        block && chosen(layer, block.index) && block.deviceBlocks[of] === NOT_RESIDENT ? [[of, block.index]] : [],
      ),
    );
  return { missed, naive };
}

it("names what the layers behind a choice lack of it, and of no other choice", () => {
  const { missed, naive } = world("quest+share(3)");
  expect(missed(0)).toEqual(naive(0, [1, 2]));
  expect(missed(0).length).toBeGreaterThan(8);
  expect(missed(4), "a layer that took the choice over").toEqual(naive(4, [5]));
  expect(missed(5)).toEqual([]);
  expect(missed(6), "the last layer").toEqual([]);
  expect(world("quest").missed(0), "a choice for every layer").toEqual([]);
  const dense = world("quest+share(3)+dense-layers(2)");
  expect(dense.missed(1), "a layer that attends to everything").toEqual([]);
  expect(dense.missed(2)).toEqual(dense.naive(2, [3, 4]));
});

it("a resumed turn asks for nothing at layers that take a choice over, and answers as one that has everything", async () => {
  const store = new MemoryStore();
  const session = new TestSession("s", { policy: "quest+share(3)", budgetTokens: 128, exact: true });
  const writer = await openForTest({ store, layerCount: LAYERS }, expectNothingHeld);
  await session.turn(writer, randomIds(1, 1500));
  await untilIdle(writer);
  await writer.persister.flush();
  const prompt = randomIds(2, 40);
  const expected = await session.fork("resident").turn(writer, prompt, { ...ONE, topLogprobs: 0 });

  const fresh = await openForTest({ store, layerCount: LAYERS }, expectNothingHeld);
  const askedAt: unknown[] = [];
  const get = store.get.bind(store);
  store.get = async (key, options) => {
    const last = fresh.engine.traces.find("resumed")?.events.at(-1);
    if (key.includes("/seg/") && last?.name === "miss") askedAt.push(last.fields.layer);
    await new Promise<void>((resolve) => setTimeout(resolve, 1));
    return await get(key, options);
  };
  const turn = await session.turn(fresh, prompt, { ...ONE, topLogprobs: 0, requestId: "resumed" });
  expect(turn.logprobs).toEqual(expected.logprobs);
  expect([turn.usage.recomputedTokens, turn.usage.pagesMissed]).toEqual([0, 0]);
  expect([...new Set(askedAt)]).toEqual([0, 3, 6]);
});
