/** What a waiting sequence guesses of its next layers: the reads are asked for early, and the answer is as if nobody had guessed. */
import { describe, expect, it } from "vitest";
import type { BlockLayer } from "../../engine/kv/block-fetcher.ts";
import { LookAhead } from "../../engine/sequence/look-ahead.ts";
import type { Sequence } from "../../engine/sequence/sequence.ts";
import { systemClock } from "../../engine/settings.ts";
import { type Miss, NOT_RESIDENT } from "../../kernels/contract.ts";
import { emptyTraffic } from "../../kernels/traffic.ts";
import type { Checkpoint, SequenceResult, SequenceStep } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { expectNothingHeld, openForTest, randomIds, TestSession, untilIdle } from "./harness.ts";

const LAYERS = 6;
const BLOCKS = 4;

/** A sequence that waits at a layer: block 0 is on the device, the others are not. */
function waiting({ policy = "quest", layer = 0, samples = true } = {}): Sequence {
  const block = () => ({
    deviceBlocks: [0, ...Array(LAYERS - 1).fill(NOT_RESIDENT)],
    summaries: new Set(["min-max"]),
    summarySlot: 0,
  });
  const slice = {
    plan: policyNamed(policy).plan(128),
    blockIds: new Int32Array(LAYERS * BLOCKS),
    blockCapacity: BLOCKS,
    summarySlots: new Int32Array(BLOCKS),
  };
  const checkpoint = { layer, rowCount: 64 } as Checkpoint;
  const planned = { slice, tokens: new Uint32Array(64), draft: new Uint32Array(0), to: 264, sealing: new Map() };
  return {
    phase: "waiting",
    tokenCount: samples ? 264 : 300,
    blocks: Array.from({ length: BLOCKS }, block),
    suspended: { planned, checkpoint, guessedLayer: layer },
  } as unknown as Sequence;
}

/** A device of which every layer takes `layerMs`, and guesses that every layer misses blocks 1 and 2. */
function world({ layerMs, latencyMs }: { layerMs: number | (() => number); latencyMs: number | undefined }) {
  let nowMs = 0;
  const asked: string[][] = [];
  const steps: SequenceStep[] = [];
  const msOf = (layers: number) => layers * (typeof layerMs === "number" ? layerMs : layerMs());
  const ahead = new LookAhead({
    cache: { during: (step) => step() },
    clock: { nowMs: () => nowMs },
    latencyMs: () => latencyMs,
    runner: {
      async step([step]: readonly SequenceStep[]): Promise<SequenceResult[]> {
        const { checkpoint, ms } = step as { checkpoint?: Checkpoint; ms?: number };
        nowMs += ms ?? 0;
        if (checkpoint !== undefined) return [{ misses: [], traffic: emptyTraffic(), checkpoint }];
        steps.push(step!);
        const layers = Array.from({ length: step!.guessLayer! - step!.resumeFrom!.layer + 1 }, (_, i) => i);
        nowMs += msOf(layers.length);
        const misses = layers.flatMap((i): Miss[] =>
          [1, 2].map((block) => ({ sliceIndex: 0, layer: step!.resumeFrom!.layer + i, block })),
        );
        return [{ misses, traffic: emptyTraffic() }];
      },
    },
    residency: {
      async fetch(sequence: Sequence, wanted: readonly BlockLayer[]) {
        asked.push(wanted.map(({ block, layer }) => `${layer}:${sequence.blocks.indexOf(block)}`));
      },
    },
    onGuess() {},
    fail() {},
  });
  /** A real step that ended at layer `to`; one from the start takes half a layer for the choice of its last. */
  const ran = async ({ from, to, sequences = 1 }: { from: number | undefined; to: number; sequences?: number }) => {
    const checkpoint = { layer: to } as Checkpoint;
    const ms = msOf(from === undefined ? to + 0.5 : Math.max(1, to - from));
    const step = { checkpoint, ms, ...(from === undefined ? {} : { resumeFrom: { layer: from } }) };
    await ahead.step(Array.from({ length: sequences }, () => step as unknown as SequenceStep));
  };
  return { ahead, asked, steps, ran };
}

describe("look-ahead", () => {
  it("guesses one layer of a device that it knows nothing of, then as many as fit into the latency, once for each wait", async () => {
    const { ahead, asked, steps, ran } = world({ layerMs: 8, latencyMs: 35 });
    const sequence = waiting();
    expect(await ahead.guess([sequence])).toBe(true);
    expect(asked).toEqual([["1:1", "1:2"]]);
    expect(steps[0]).toMatchObject({ exact: false, guessLayer: 1 });
    expect(steps[0]).not.toHaveProperty("sample");
    expect(await ahead.guess([sequence]), "nothing new is known").toBe(false);
    await ran({ from: 0, to: 1 });
    // Three of 8 ms are within three quarters of 35.
    expect(await ahead.guess([waiting({ layer: 1 })])).toBe(true);
    expect(asked[1]).toEqual(["2:1", "2:2", "3:1", "3:2", "4:1", "4:2"]);
    expect(await ahead.guess([waiting({ layer: 4 })])).toBe(true);
    expect(asked[2], "there are six layers").toEqual(["5:1", "5:2"]);
    expect(await ahead.guess([waiting({ layer: 5 })])).toBe(false);
  });

  it("knows what a layer takes before the first guess: of a step that missed at once, from its first choice", async () => {
    const { ahead, steps, ran } = world({ layerMs: 8, latencyMs: 35 });
    await ran({ from: undefined, to: 0 });
    expect(await ahead.guess([waiting()])).toBe(true);
    expect(steps[0]?.guessLayer).toBe(3);
  });

  it("leaves a device alone on which two layers take longer than the store", async () => {
    const { ahead, steps, ran } = world({ layerMs: 14, latencyMs: 35 });
    await ran({ from: 0, to: 2 });
    expect(await ahead.guess([waiting({ layer: 2 })])).toBe(false);
    expect(steps).toHaveLength(0);
  });

  it("forgets a slow step with the next one, and learns nothing from one of several sequences, or that went nowhere", async () => {
    let layerMs = 1000;
    const { ahead, steps, ran } = world({ layerMs: () => layerMs, latencyMs: 35 });
    await ran({ from: 0, to: 1 });
    expect(await ahead.guess([waiting({ layer: 1 })])).toBe(false);
    layerMs = 5;
    await ran({ from: 1, to: 2, sequences: 2 });
    await ran({ from: 2, to: 2 });
    expect(await ahead.guess([waiting({ layer: 2 })])).toBe(false);
    await ran({ from: 2, to: 3 });
    expect(await ahead.guess([waiting({ layer: 0 })])).toBe(true);
    expect(
      steps.map(({ guessLayer }) => guessLayer),
      "five of 5 ms",
    ).toEqual([5]);
  });

  it("guesses only layers that choose, and the last one only for rows of which one is sampled", async () => {
    const { ahead, asked } = world({ layerMs: 1, latencyMs: undefined });
    expect(await ahead.guess([waiting({ policy: "quest+share(2)" })]), "layer 1 takes over the choice of layer 0").toBe(
      false,
    );
    expect(await ahead.guess([waiting({ layer: LAYERS - 2, samples: false })])).toBe(false);
    expect(await ahead.guess([waiting({ layer: LAYERS - 2 })])).toBe(true);
    expect(asked).toEqual([["5:1", "5:2"]]);
  });

  it("does nothing for a sequence that waits for something else, or runs", async () => {
    const { ahead, steps } = world({ layerMs: 1, latencyMs: undefined });
    const running = { ...waiting(), phase: "running" } as Sequence;
    const attaching = { ...waiting(), suspended: undefined } as Sequence;
    expect(await ahead.guess([running, attaching])).toBe(false);
    expect(steps).toEqual([]);
  });
});

it("a resumed turn asks for the next layer's blocks before those that it waits for have come", async () => {
  const store = new MemoryStore();
  const session = new TestSession("s", { policy: "quest", budgetTokens: 128, exact: true });
  const writer = await openForTest({ store }, expectNothingHeld);
  // A store that takes 100 ms for each answer, and a device that takes no time.
  let nowMs = 0;
  const clock = { ...systemClock, nowMs: () => nowMs };
  const settings = { summaryFirstBytesMax: 1024 * 1024 };
  const fresh = await openForTest({ store, clock, settings }, expectNothingHeld);
  await session.turn(writer, randomIds(1, 1500));
  await untilIdle(writer);
  await writer.persister.flush();
  const prompt = randomIds(2, 40);
  const expected = await session.fork("resident").turn(writer, prompt, { topLogprobs: 0 });

  const requestId = "resumed";
  const eventsOf = () => fresh.engine.traces.find(requestId)?.events ?? [];
  const get = store.get.bind(store);
  store.get = async (key, options) => {
    nowMs += 100;
    // Blocks that a layer chose are held back until something has been guessed: without a guess the turn never ends.
    const waits = key.includes("/seg/") && eventsOf().at(-1)?.name === "miss";
    while (waits && !eventsOf().some(({ name }) => name === "guess"))
      await new Promise<void>((resolve) => setImmediate(resolve));
    return await get(key, options);
  };
  const turn = await session.turn(fresh, prompt, { topLogprobs: 0, requestId });
  expect(turn.logprobs).toEqual(expected.logprobs);
  expect([turn.usage.recomputedTokens, turn.usage.pagesMissed]).toEqual([0, 0]);
  const [first, second, third] = eventsOf().filter(({ name }) => ["miss", "guess", "blocks came"].includes(name));
  expect([first?.name, second?.name, third?.name]).toEqual(["miss", "guess", "blocks came"]);
  expect(second?.fields.layer).toBeGreaterThan(first?.fields.layer ?? 0);
  expect(second?.fields.blocks).toBeGreaterThan(0);
});
