/** Blocks taken away on purpose: an exact step is void, says what it needs, and goes on to the bits it would have had. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type Device, NOT_RESIDENT, type SelectionPlan } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { emptyTraffic, subtractTraffic } from "../../kernels/traffic.ts";
import type { Checkpoint, ModelRunner, SequenceResult, SequenceStep } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { QuireError } from "../../protocol/errors.ts";
import { Conversation, DENSE, type EvictedBlock } from "./conversation.ts";
import { houseCases, openHouse, promptIds } from "./house.ts";
import { type WatchedDevice, watchDevice } from "./recording.ts";

const LAYERS = 4;
const CONTEXT_TOKENS = 448;
const PROMPT_TOKENS = 400;
/** The rows of the step that misses: a decode row, or a chunk that seals a block. */
const NEXT = { decode: [84], chunk: [...new TextEncoder().encode(" And then he went home. What is it?")] };

const orAll = (words: readonly number[]) => words.reduce((a, b) => (a | b) >>> 0, 0);

let prompt: number[];
beforeAll(async () => {
  prompt = promptIds((await houseCases())[0]!, 0).slice(0, PROMPT_TOKENS);
});

describe.each([false, true])("on the wasm device, misses deferred to the readback: %s", (deferred) => {
  let inner: Device;
  let watched: WatchedDevice;
  beforeAll(async () => {
    inner = await openDevice({ kind: "wasm" });
    watched = watchDevice(inner, { deferred });
  });
  afterAll(() => inner?.close());

  async function open(
    plan: SelectionPlan,
    sequences = 1,
  ): Promise<{ runner: ModelRunner; conversations: Conversation[] }> {
    const { device } = watched;
    const runner = await openHouse({
      device,
      contextTokens: CONTEXT_TOKENS,
      kvEncoding: "int8",
      rowsMax: 448,
      sequences,
    });
    const conversations: Conversation[] = [];
    for (let index = 0; index < sequences; index++) {
      const conversation = new Conversation(runner, { contextTokens: CONTEXT_TOKENS, index, exact: true });
      await conversation.prefill(prompt);
      conversation.plan = plan;
      conversations.push(conversation);
    }
    return { runner, conversations };
  }

  const next = (conversation: Conversation, ids: number[]) => conversation.step(ids, { sample: true, topLogprobs: 20 });

  /** Steps until nothing is missing; each round brings back only what the first layer that missed asked for. */
  async function settle(
    runner: ModelRunner,
    step: SequenceStep,
    evicted: EvictedBlock[],
    conversation: Conversation,
  ): Promise<{ result: SequenceResult; layers: number[]; checkpoints: number[]; fetched: number }> {
    const layers: number[] = [];
    const checkpoints: number[] = [];
    let fetched = 0;
    let [result] = await runner.step([step]);
    for (let checkpoint = result!.checkpoint; checkpoint !== undefined; checkpoint = result!.checkpoint) {
      const missedLayer = Math.min(...result!.misses.map(({ layer }) => layer));
      expect(result!.sample).toBeUndefined();
      layers.push(missedLayer);
      checkpoints.push(checkpoint.layer);
      const wanted = new Set(
        result!.misses
          .filter(({ layer }) => layer === missedLayer)
          .map(({ layer, block }) => layer * conversation.blockCapacity + block),
      );
      const found = evicted.filter(({ at }) => wanted.has(at) && conversation.blockIds[at] === NOT_RESIDENT);
      expect(found.length).toBe(wanted.size);
      conversation.restore(found);
      fetched += found.length;
      [result] = await runner.step([{ ...step, resumeFrom: checkpoint }]);
    }
    return { result: result!, layers, checkpoints, fetched };
  }

  describe.each(["dense", "quest", "tokenselect"] as const)("%s", (name) => {
    const plan = policyNamed(name).plan(128);

    it.each(["decode", "chunk"] as const)(
      "a %s step that misses ends with the bits of one that does not",
      async (rows) => {
        const { runner, conversations } = await open(plan, 2);
        const [whole, holed] = conversations as [Conversation, Conversation];
        const [expected] = await runner.step([next(whole, NEXT[rows])]);
        expect(expected!.misses).toEqual([]);
        const liveBefore = watched.live.size;
        // Layers 1 and 3 lose every sealed block, layer 2 none.
        const all = [0, 1, 2, 3, 4, 5];
        const evicted = [...(await holed.evict(1, all)), ...(await holed.evict(3, all))];
        const { result, layers, fetched } = await settle(runner, next(holed, NEXT[rows]), evicted, holed);
        expect(layers).toEqual([1, 3]);
        expect(result.sample).toEqual(expected!.sample);
        expect(result.misses).toEqual([]);
        // Dense needs every block, and so does the first stage of tokenselect: 32 candidate pages are more than there are.
        if (name === "quest") expect(fetched).toBeLessThan(12);
        else expect(fetched).toBe(12);
        expect(watched.live.size).toBe(liveBefore);
        // What follows reads the KV that the resumed step wrote.
        whole.accept(NEXT[rows], expected!);
        holed.accept(NEXT[rows], result);
        holed.restore(evicted);
        const [after, afterHoled] = await runner.step([next(whole, [32]), next(holed, [32])]);
        expect(afterHoled!.sample).toEqual(after!.sample);
      },
    );
  });

  it.each([
    { name: "quest+share(2)", missing: [1, 3], from: [0, 2] },
    { name: "quest+share(2)", missing: [2, 3], from: [2, 2] },
    { name: "tokenselect+share(4)", missing: [2], from: [0] },
    { name: "quest+dense-layers(1)+share(3)", missing: [0, 3], from: [0, 1] },
    { name: "quest+own-layers(1)+share(3)", missing: [0, 3], from: [0, 1] },
    { name: "quest+share(3)", missing: [0, 2, 3], from: [0, 0, 3] },
  ])("$name goes on from the layer that chose, after misses in $missing", async ({ name, missing, from }) => {
    const { runner, conversations } = await open(policyNamed(name).plan(128), 2);
    const [whole, holed] = conversations as [Conversation, Conversation];
    for (const rows of ["chunk", "decode"] as const) {
      const [expected] = await runner.step([next(whole, NEXT[rows])]);
      whole.accept(NEXT[rows], expected!);
      const liveBefore = watched.live.size;
      const evicted: EvictedBlock[] = [];
      for (const layer of missing) evicted.push(...(await holed.evict(layer, [0, 1, 2, 3, 4])));
      const { result, layers, checkpoints } = await settle(runner, next(holed, NEXT[rows]), evicted, holed);
      expect(layers).toEqual(missing);
      expect(checkpoints).toEqual(from);
      expect(result.sample).toEqual(expected!.sample);
      expect(watched.live.size).toBe(liveBefore);
      holed.accept(NEXT[rows], result);
      holed.restore(evicted);
    }
  });

  it.each(["quest", "mean-deviation+scope(layer)"])(
    "with %s a guess says what a later layer misses, and leaves the step to end as it would have",
    async (name) => {
      const { runner, conversations } = await open(policyNamed(name).plan(128), 2);
      const [whole, holed] = conversations as [Conversation, Conversation];
      for (const rows of ["chunk", "decode"] as const) {
        const [expected] = await runner.step([next(whole, NEXT[rows])]);
        whole.accept(NEXT[rows], expected!);
        const evicted = (await Promise.all([0, 2, 3].map((layer) => holed.evict(layer, [1, 2, 3, 4])))).flat();
        const { sample: _, ...step } = next(holed, NEXT[rows]);
        const [missed] = await runner.step([{ ...next(holed, NEXT[rows]), exact: true }]);
        const resumeFrom = missed!.checkpoint!;
        expect(resumeFrom.layer).toBe(0);
        const liveBefore = watched.live.size;
        const guess = async (guessLayer: number) => {
          const [result] = await runner.step([{ ...step, exact: false, resumeFrom, guessLayer }]);
          expect(result).not.toHaveProperty("sample");
          expect(watched.ops.includes(`attend:${guessLayer}`)).toBe(false);
          return result!.misses.filter(({ layer }) => layer === guessLayer);
        };
        // Around what is missing: something is guessed, of the last layer too.
        expect((await guess(2)).length).toBeGreaterThan(0);
        expect((await guess(3)).length).toBeGreaterThan(0);
        const bring = (layer: number) =>
          holed.restore(evicted.filter(({ at }) => Math.floor(at / holed.blockCapacity) === layer));
        bring(0);
        // Nothing is missing before layer 2: what is guessed is what the real step misses.
        const guessed = await guess(2);
        expect(watched.live.size).toBe(liveBefore);
        const real = next(holed, NEXT[rows]);
        const [second] = await runner.step([{ ...real, resumeFrom }]);
        expect(second!.misses.filter(({ layer }) => layer === 2)).toEqual(guessed);
        bring(2);
        bring(3);
        const [last] = await runner.step([{ ...real, resumeFrom: second!.checkpoint! }]);
        expect(last!.sample).toEqual(expected!.sample);
        holed.accept(NEXT[rows], last!);
      }
    },
  );

  it("pauses before a layer that may miss, and goes on there with what has come meanwhile", async () => {
    const { runner, conversations } = await open(policyNamed("quest").plan(128), 2);
    const [whole, holed] = conversations as [Conversation, Conversation];
    const [expected] = await runner.step([next(whole, NEXT.chunk)]);
    const evicted = [...(await holed.evict(1, [1, 2, 3, 4])), ...(await holed.evict(3, [1, 2, 3, 4]))];
    const liveBefore = watched.live.size;
    const bring = (layer: number) =>
      holed.restore(evicted.filter(({ at }) => Math.floor(at / holed.blockCapacity) === layer));
    const step = { ...next(holed, NEXT.chunk), pauses: true };
    const [first] = await runner.step([step]);
    // Before layer 1, and with nothing missed; a device that cannot look ahead of the readback runs on.
    expect(first!.checkpoint).toMatchObject({ layer: 1, rowCount: NEXT.chunk.length });
    expect(first!.misses.length === 0).toBe(!deferred);
    expect(first!.sample).toBeUndefined();
    bring(1);
    const [second] = await runner.step([{ ...step, resumeFrom: first!.checkpoint! }]);
    expect(second!.checkpoint).toMatchObject({ layer: 3 });
    expect(second!.misses.length === 0).toBe(!deferred);
    bring(3);
    const [last] = await runner.step([{ ...step, resumeFrom: second!.checkpoint! }]);
    expect(last!.misses).toEqual([]);
    expect(last!.sample).toEqual(expected!.sample);
    expect(watched.live.size).toBe(liveBefore);
  });

  it.each(["quest", "quest+share(2)"])(
    "%s: ends before the layers whose summaries are not there, and goes on",
    async (name) => {
      const { runner, conversations } = await open(policyNamed(name).plan(128), 2);
      const [whole, held] = conversations as [Conversation, Conversation];
      const [expected] = await runner.step([next(whole, NEXT.chunk)]);
      const step = next(held, NEXT.chunk);
      const liveBefore = watched.live.size;
      const [first] = await runner.step([{ ...step, layerEnd: 1 }]);
      // A layer that takes over a choice needs no summaries of its own.
      const stop = name === "quest" ? 1 : 2;
      expect(first).toMatchObject({ misses: [], checkpoint: { layer: stop, rowCount: NEXT.chunk.length } });
      expect(first!.sample).toBeUndefined();
      const [second] = await runner.step([{ ...step, layerEnd: stop + 1, resumeFrom: first!.checkpoint! }]);
      const [last] =
        second!.checkpoint === undefined ? [second] : await runner.step([{ ...step, resumeFrom: second!.checkpoint }]);
      expect(second!.checkpoint?.layer).toBe(name === "quest" ? 2 : undefined);
      expect(last!.sample).toEqual(expected!.sample);
      expect(watched.live.size).toBe(liveBefore);
    },
  );

  it("attends around what is missing before the layer where it ends, where it is not exact", async () => {
    const { runner, conversations } = await open(policyNamed("quest").plan(128), 2);
    const [whole, holed] = conversations as [Conversation, Conversation];
    for (const conversation of [whole, holed])
      for (const layer of [1, 3]) await conversation.evict(layer, [1, 2, 3, 4]);
    const [expected] = await runner.step([{ ...next(whole, NEXT.chunk), exact: false }]);
    expect(new Set(expected!.misses.map(({ layer }) => layer))).toEqual(new Set([1, 3]));
    const liveBefore = watched.live.size;
    const step = { ...next(holed, NEXT.chunk), exact: false };
    const [first] = await runner.step([{ ...step, layerEnd: 2 }]);
    expect(first!.checkpoint?.layer).toBe(2);
    const [last] = await runner.step([{ ...step, resumeFrom: first!.checkpoint! }]);
    expect(last!.checkpoint).toBeUndefined();
    expect([...first!.misses, ...last!.misses]).toEqual(expected!.misses);
    expect(last!.sample).toEqual(expected!.sample);
    expect(watched.live.size).toBe(liveBefore);
  });

  it("refuses to end before the layer that a step goes on with, and in a batch", async () => {
    const { runner, conversations } = await open(policyNamed("quest").plan(128), 2);
    const [one, other] = conversations as [Conversation, Conversation];
    const step = next(one, NEXT.chunk);
    await expect(runner.step([{ ...step, layerEnd: 0 }])).rejects.toThrow("behind the layer");
    await expect(runner.step([{ ...step, layerEnd: 1 }, next(other, NEXT.chunk)])).rejects.toThrow("alone");
  });

  describe.each(["quest", "mean-deviation+scope(layer)", "quest+share(2)", "dense"])("%s", (name) => {
    const plan = name === "dense" ? DENSE : policyNamed(name).plan(128);
    const sum = (results: SequenceResult[]) =>
      results.map(({ traffic }) => traffic).reduce((a, b) => subtractTraffic(a, subtractTraffic(emptyTraffic(), b)));
    const reporting = (step: SequenceStep) => ({ ...step, slice: { ...step.slice, reportBlocks: true } });
    const all = [0, 1, 2, 3, 4, 5];

    it("goes on in place: nothing is chosen, read or reported twice", async () => {
      const { runner, conversations } = await open(plan, 2);
      const [whole, holed] = conversations as [Conversation, Conversation];
      const [expected] = await runner.step([reporting(next(whole, NEXT.chunk))]);
      const evicted = [...(await holed.evict(1, all)), ...(await holed.evict(2, all))];
      const liveBefore = watched.live.size;
      const step = reporting(next(holed, NEXT.chunk));
      const results: SequenceResult[] = [];
      const bitmaps: Uint32Array[] = [];
      for (let resumeFrom: Checkpoint | undefined; results.length < 4; ) {
        const [result] = await runner.step([resumeFrom === undefined ? step : { ...step, resumeFrom }]);
        results.push(result!);
        const layers = result!.chosenBlocks?.slice();
        const words = (layers?.length ?? 0) / LAYERS;
        // As the engine counts them: of a step that ended early, those before the layer that it goes on from.
        if (result!.checkpoint) layers?.fill(0, result!.checkpoint.layer * words);
        if (layers) bitmaps.push(layers);
        resumeFrom = result!.checkpoint;
        if (resumeFrom === undefined) break;
        const missing = new Set(result!.misses.map(({ layer, block }) => layer * holed.blockCapacity + block));
        holed.restore(evicted.filter(({ at }) => missing.has(at) && holed.blockIds[at] === NOT_RESIDENT));
      }
      expect(results.at(-1)!.sample).toEqual(expected!.sample);
      expect(results).toHaveLength(deferred ? 2 : 3);
      expect(watched.live.size).toBe(liveBefore);
      const total =
        bitmaps.length === 0 ? undefined : bitmaps[0]!.map((_, at) => orAll(bitmaps.map((one) => one[at]!)));
      expect(total).toEqual(expected!.chosenBlocks);
      for (const at of total?.keys() ?? []) expect(bitmaps.filter((one) => one[at] !== 0).length).toBeLessThan(2);
      if (deferred) return;
      expect(sum(results)).toEqual(expected!.traffic);
      const select = (layer: number) => watched.ops.filter((op) => op === `select:${layer}`).length;
      expect([0, 1, 2, 3].map(select)).toEqual([1, 1, 1, 1]);
    });

    it("goes on in place by the summaries where they are by then", async () => {
      const { runner, conversations } = await open(plan, 3);
      const [whole, holed] = conversations as [Conversation, Conversation, Conversation];
      const [expected] = await runner.step([next(whole, NEXT.chunk)]);
      const evicted = await holed.evict(1, all);
      const step = next(holed, NEXT.chunk);
      const [first] = await runner.step([step]);
      const { pool } = runner;
      const { blockCapacity, summarySlots } = step.slice;
      for (const block of all) {
        const [from, to] = [summarySlots[block]!, 2 * blockCapacity + block];
        for (const kind of pool.spec.summaryKinds) {
          pool.writeSummary(to, kind, await pool.readSummary(from, kind));
          // Its slot is another's now.
          pool.writeSummary(from, kind, await pool.readSummary(blockCapacity + ((block + 3) % 6), kind));
        }
        summarySlots[block] = to;
      }
      holed.restore(evicted);
      const [last] = await runner.step([{ ...step, resumeFrom: first!.checkpoint! }]);
      expect(last!.sample).toEqual(expected!.sample);
    });

    it("goes on from its checkpoint when another step came in between", async () => {
      const { runner, conversations } = await open(plan, 3);
      const [whole, holed, other] = conversations as [Conversation, Conversation, Conversation];
      const [expected] = await runner.step([next(whole, NEXT.chunk)]);
      const evicted = await holed.evict(1, all);
      const liveBefore = watched.live.size;
      const step = next(holed, NEXT.chunk);
      const [first] = await runner.step([step]);
      await runner.step([next(other, NEXT.decode)]);
      holed.restore(evicted);
      const [second] = await runner.step([{ ...step, resumeFrom: first!.checkpoint! }]);
      expect(second!.sample).toEqual(expected!.sample);
      expect(watched.ops.includes("select:1"), "chosen again").toBe(true);
      expect(watched.live.size).toBe(liveBefore);
    });
  });

  it("stops early where it can, and runs on where it must", async () => {
    const { runner, conversations } = await open(DENSE);
    const [conversation] = conversations as [Conversation];
    await conversation.evict(1, [2]);
    const [result] = await runner.step([next(conversation, NEXT.decode)]);
    expect(result!.misses).toEqual([{ sliceIndex: 0, layer: 1, block: 2 }]);
    expect(watched.ops.includes("append:2")).toBe(deferred);
    expect(watched.ops.includes("sample")).toBe(deferred);
    runner.discard(result!.checkpoint!);
  });

  it("a discarded checkpoint leaves nothing behind", async () => {
    const { runner, conversations } = await open(DENSE);
    const [conversation] = conversations as [Conversation];
    const liveBefore = watched.live.size;
    await conversation.evict(0, [1, 3]);
    const [result] = await runner.step([next(conversation, NEXT.decode)]);
    expect(result!.checkpoint).toMatchObject({ layer: 0, rowCount: 1 });
    expect(watched.live.size).toBe(liveBefore + 1);
    runner.discard(result!.checkpoint!);
    expect(watched.live.size).toBe(liveBefore);
  });

  it("a step that fails for want of memory leaves the device to the next one, and nothing behind", async () => {
    const { runner, conversations } = await open(DENSE);
    const [conversation] = conversations as [Conversation];
    const expected = await conversation.probe(NEXT.chunk);
    const liveBefore = watched.live.size;
    const evicted = await conversation.evict(2, [1, 3]);
    const allocate = vi.spyOn(inner, "buffer").mockImplementationOnce(() => {
      throw new QuireError("engine_failed", "The CPU device has no memory left.");
    });
    await expect(runner.step([next(conversation, NEXT.chunk)])).rejects.toThrow("no memory left");
    allocate.mockRestore();
    conversation.restore(evicted);
    expect(await conversation.probe(NEXT.chunk)).toEqual(expected);
    expect(watched.live.size).toBe(liveBefore);
  });

  it("a sequence that misses leaves the others of its batch whole", async () => {
    const { runner, conversations } = await open(DENSE, 3);
    const [whole, missing, lax] = conversations as [Conversation, Conversation, Conversation];
    // Different rows, so that another sequence's rows in a checkpoint would show.
    const expectedWhole = await whole.probe(NEXT.decode);
    const expected = await missing.probe(NEXT.chunk);
    const evicted = await missing.evict(2, [0, 4]);
    await lax.evict(3, [2]);
    lax.exact = false;
    const step = next(missing, NEXT.chunk);
    const [second, first, third] = await runner.step([next(whole, NEXT.decode), step, next(lax, NEXT.chunk)]);
    expect(first!.sample).toBeUndefined();
    expect(first!.checkpoint).toMatchObject({ layer: 2, rowCount: NEXT.chunk.length });
    expect(second!.misses).toEqual([]);
    expect(second!.sample).toEqual(expectedWhole);
    // Not exact: attended to what was there, said what was not, and so came out near but not the same.
    expect(third!.misses).toEqual([{ sliceIndex: 2, layer: 3, block: 2 }]);
    expect(third!.checkpoint).toBeUndefined();
    expect(third!.sample).toBeDefined();
    expect(third!.sample).not.toEqual(expected);
    missing.restore(evicted);
    const [resumed] = await runner.step([{ ...step, resumeFrom: first!.checkpoint! }]);
    expect(resumed!.sample).toEqual(expected);
  });

  it("rows that are not sampled do not wait for the last layer's blocks", async () => {
    const { runner, conversations } = await open(DENSE);
    const [conversation] = conversations as [Conversation];
    await conversation.evict(3, [0, 1, 2]);
    const [result] = await runner.step([conversation.step(NEXT.chunk, { sample: false })]);
    expect(result!.misses).toEqual([]);
    expect(result!.checkpoint).toBeUndefined();
    expect(watched.ops.includes("append:3")).toBe(true);
    expect(watched.ops.includes("attend:3")).toBe(false);
  });
});
