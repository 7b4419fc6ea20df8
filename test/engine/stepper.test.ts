/** One step, on a device that answers what the test says. */
import { describe, expect, it } from "vitest";
import { BlockCache } from "../../engine/kv/block-cache.ts";
import { FreeList } from "../../engine/kv/free-list.ts";
import { OpenBlocks } from "../../engine/kv/open-blocks.ts";
import { CostModel } from "../../engine/schedule/cost-model.ts";
import { Tenants } from "../../engine/schedule/tenants.ts";
import type { Suspension } from "../../engine/sequence/residency.ts";
import { Sequence } from "../../engine/sequence/sequence.ts";
import { ENGINE_DEFAULTS } from "../../engine/settings.ts";
import { Stepper, type StepperOptions } from "../../engine/stepper.ts";
import type { Sample } from "../../kernels/contract.ts";
import { DeviceLostError } from "../../kernels/device-lost.ts";
import type { Checkpoint, SequenceResult, SequenceStep } from "../../models/contract.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { randomIds, request } from "./harness.ts";

const LAYERS = 2;
const PROMPT_TOKENS = 130;
const CHECKPOINT = { layer: 1, rowCount: 0 } as Checkpoint;
const NOTHING = { pagesSelected: 0, pagesInContext: 0, pagesPassedOver: 0, kvBytes: 0, metadataBytes: 0 };

function world(maxTokens = 2) {
  const cache = new BlockCache({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(8 * LAYERS),
    summarySlots: new FreeList(8),
  });
  const opens = new OpenBlocks(new FreeList(4));
  const told: string[] = [];
  const answers: ((step: SequenceStep) => Partial<SequenceResult>)[] = [];
  const sequence = new Sequence({
    request: request({ tokens: idsToBytes(randomIds(1, PROMPT_TOKENS)), maxTokens }),
    selection: { policy: "dense", version: 1, groupTokens: 16, budgetTokens: 0, exact: true },
    sink: { token: (id) => void told.push(`token ${id}`), done() {}, failed() {} },
    layerCount: LAYERS,
    nowMs: 0,
  });
  cache.reservations.reserve(sequence.startBlocks);
  const cost = new CostModel();
  // So quick that a prompt is one step.
  for (let step = 0; step < 10; step++) cost.observe({ rows: 200, sampledRows: 1, attendedTokens: 20_000 }, 1);
  Object.assign(sequence, { phase: "running", reservedCount: sequence.startBlocks });
  const spec = { layerCount: LAYERS, summaryKinds: [] };
  const options = {
    parts: {
      settings: { ...ENGINE_DEFAULTS, stepRowsMax: 256 },
      runner: { rowsMax: 256, sampledMax: 8, pool: { spec }, discard: () => void told.push("discard") },
      cache,
      opens,
      fetcher: { inFlightCount: 0 },
      persister: { sealed: (_: Sequence, sealed: number[]) => void told.push(`sealed ${sealed}`) },
      clock: { nowMs: () => 0 },
      log() {},
    },
    active: new Set([sequence]),
    cost,
    tenants: new Tenants(),
    residency: {
      suspend: (one: Sequence, planned: unknown, { checkpoint }: Suspension) =>
        Object.assign(one, { suspended: { planned, checkpoint, guessedLayer: 1 }, phase: "waiting" }),
      fillRest: () => void told.push("fill"),
      fetch() {},
    },
    lookAhead: {
      async step(steps: readonly SequenceStep[]) {
        return steps.map((step) => ({ misses: [], traffic: NOTHING, ...answers.shift()!(step) }));
      },
    },
    observer: { stepped() {}, token() {} },
    conclude: () => void told.push("conclude"),
    settle: () => void told.push("settle"),
    fail: (_: Sequence, error: unknown) => void told.push(`fail ${error}`),
  } as unknown as StepperOptions;
  return { stepper: new Stepper(options), sequence, cache, opens, told, answers };
}

const sample = (id: number) => () => ({ sample: { tokenId: id } satisfies Sample });

describe("a step", () => {
  it("makes what was computed the sequence's: sealed blocks, the open one, the sampled token", async () => {
    const { stepper, sequence, told, answers, opens } = world();
    answers.push((step) => {
      expect([step.slice.position, step.slice.rowCount, step.sample !== undefined]).toEqual([0, PROMPT_TOKENS, true]);
      return sample(7)();
    });
    expect(await stepper.run()).toBe(true);
    expect(told).toEqual(["sealed 0,1", "token 7", "fill"]);
    expect([sequence.blocks.length, sequence.opens.get(2)?.tokenCount, opens.takenCount]).toEqual([2, 2, 1]);
    expect([...sequence.ids.subarray(PROMPT_TOKENS)]).toEqual([7]);
  });

  it("concludes a turn with its last token, and settles it at once where no session wants that token's KV", async () => {
    const { stepper, told, answers } = world(1);
    answers.push(sample(7));
    await stepper.run();
    expect(told).toEqual(["sealed 0,1", "token 7", "conclude", "settle"]);
  });

  it("that missed goes on from its checkpoint when its sequence runs again, and only then is taken", async () => {
    const { stepper, sequence, told, answers } = world();
    answers.push(() => ({ checkpoint: CHECKPOINT }));
    await stepper.run();
    expect([told, sequence.nextPosition]).toEqual([[], 0]);
    expect([await stepper.resume(), await stepper.run()]).toEqual([false, false]);
    sequence.phase = "running";
    expect(await stepper.run(), "a suspended step is not planned again").toBe(false);
    answers.push((step) => {
      expect([step.resumeFrom, step.slice.rowCount]).toEqual([CHECKPOINT, PROMPT_TOKENS]);
      return sample(7)();
    });
    expect(await stepper.resume()).toBe(true);
    expect([told, sequence.suspended]).toEqual([["sealed 0,1", "token 7", "fill"], undefined]);
  });

  it("takes as many misses as a long context has in all layers of a large model", async () => {
    const { stepper, sequence, told, answers } = world();
    answers.push(sample(7));
    await stepper.run();
    const misses = new Array(200_000).fill({ sliceIndex: 0, block: 0, layer: 1 });
    answers.push(() => ({ checkpoint: CHECKPOINT, misses }));
    await stepper.run();
    expect([sequence.suspended?.checkpoint, told.at(-1)]).toEqual([CHECKPOINT, "fill"]);
    sequence.phase = "running";
    // Attended around.
    answers.push(() => ({ ...sample(8)(), misses }));
    await stepper.resume();
    expect(told).toContain("token 8");
    expect(sequence.usage.pagesMissed).toBe(4 * 200_000);
  });

  it("that is dropped gives its memory back, and its rows are planned anew", async () => {
    const { stepper, sequence, told, answers, opens, cache } = world();
    const free = cache.freeDeviceBlockCount;
    answers.push(() => ({ checkpoint: CHECKPOINT }));
    await stepper.run();
    expect(cache.freeDeviceBlockCount).toBe(free - 2 * LAYERS);
    stepper.drop(sequence);
    stepper.drop(sequence);
    expect([told, cache.freeDeviceBlockCount, opens.takenCount]).toEqual([["discard"], free, 0]);
    sequence.phase = "running";
    answers.push(sample(7));
    expect(await stepper.run()).toBe(true);
  });

  it.each([
    [
      "fails gives its memory back, and ends who was alone in it",
      new Error("a kernel trapped"),
      ["fail Error: a kernel trapped"],
    ],
    ["is lost in gives its memory back, and throws", new DeviceLostError("the device is gone"), undefined],
  ])("that the device %s", async (_name, error, expected) => {
    const { stepper, sequence, told, answers, opens, cache } = world();
    const free = cache.freeDeviceBlockCount;
    answers.push(() => {
      throw error;
    });
    const ran = await stepper.run().catch((thrown: unknown) => thrown);
    expect([ran, told]).toEqual(expected === undefined ? [error, []] : [true, expected]);
    expect([cache.freeDeviceBlockCount, opens.takenCount, sequence.nextPosition]).toEqual([free, 0, 0]);
  });
});
