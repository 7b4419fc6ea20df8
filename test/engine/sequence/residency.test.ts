import { expect, it } from "vitest";
import type { BlockLayer, FetchTotals } from "../../../engine/kv/block-fetcher.ts";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import type { PlannedSlice } from "../../../engine/sequence/planned-slice.ts";
import { Residency, type ResidencyOptions } from "../../../engine/sequence/residency.ts";
import type { Sequence } from "../../../engine/sequence/sequence.ts";
import { NOT_RESIDENT } from "../../../kernels/contract.ts";
import type { Checkpoint } from "../../../models/contract.ts";
import { policyNamed } from "../../../models/selection/registry.ts";

const SEGMENTS = 20;

/** A running sequence of two blocks a segment, none of which is on the device. */
function started(): Sequence {
  const blocks = Array.from(
    { length: 2 * SEGMENTS },
    (_, index) => ({ index, resident: false, stored: { chain: `${index >> 1}` } }) as unknown as LogicalBlock,
  );
  const usage = { bytesFetched: 0, pagesFetched: 0 };
  return { phase: "running", started: true, blocks, usage } as unknown as Sequence;
}

function world() {
  const asked: number[][] = [];
  const answers: (() => void)[] = [];
  const summariesBehind: string[] = [];
  let filled = 0;
  const residency = new Residency({
    fetcher: {
      async fill(blocks: readonly LogicalBlock[], told: (read: FetchTotals) => void) {
        asked.push(blocks.map(({ index }) => index));
        await new Promise<void>((resolve) => answers.push(resolve));
        told({ bytes: 10, blocks: 2 });
      },
    },
    clock: { nowMs: () => 0 },
    supply: {
      async bringAll(_sequence: Sequence, kind: string) {
        summariesBehind.push(`${asked.length} ${kind}`);
      },
    },
    observer: {
      filled() {
        filled += 1;
      },
    },
  } as unknown as ResidencyOptions);
  const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
  return { residency, asked, answers, settled, summariesBehind, filledCount: () => filled };
}

it("what streams in behind a turn is asked for eight segments at a time, the latest first, each once", async () => {
  const { residency, asked, answers, settled, summariesBehind, filledCount } = world();
  const sequence = started();
  const done = residency.fillRest(sequence);
  expect(asked.length).toBe(8);
  expect(asked[0]).toEqual([2 * SEGMENTS - 1, 2 * SEGMENTS - 2]);
  answers.shift()!();
  await settled();
  expect(asked.length).toBe(9);
  while (answers.length > 0) {
    answers.shift()!();
    await settled();
  }
  await done;
  expect(asked.flat().toSorted((a, b) => a - b)).toEqual(sequence.blocks.map((_, index) => index));
  expect([sequence.usage.bytesFetched, filledCount()]).toEqual([10 * SEGMENTS, 1]);
  expect(summariesBehind).toEqual([`${SEGMENTS} fill`]);
});

it("a step that missed as much as a long context has in all layers of a large model waits for the first layer's", () => {
  const asked: (readonly BlockLayer[])[] = [];
  const residency = new Residency({
    fetcher: { fetch: async (wanted: readonly BlockLayer[]) => void asked.push(wanted) },
    clock: { nowMs: () => 0 },
    supply: { readOn() {} },
    observer: { missed() {}, resumed() {} },
    wake() {},
  } as unknown as ResidencyOptions);
  const sequence = started();
  const missed = Array.from({ length: 200_000 }, (_, at) => ({ block: sequence.blocks[0]!, layer: 79 - (at % 80) }));
  const planned = { slice: { plan: { kind: "dense" } } } as PlannedSlice;
  residency.suspend(sequence, planned, { checkpoint: { layer: 0 } as Checkpoint, missed });
  expect(asked.map((wanted) => [wanted.length, wanted[0]?.layer])).toEqual([
    [2_500, 0],
    [197_500, 79],
  ]);
  expect(sequence.suspended?.guessedLayer).toBe(79);
});

it("ends with its sequence", async () => {
  const { residency, asked, answers } = world();
  const sequence = started();
  const done = residency.fillRest(sequence);
  sequence.phase = "settling";
  for (const answer of answers.splice(0)) answer();
  await done;
  expect(asked.length).toBe(8);
});

it("a wait that fails, which no wait is to do, ends its request and nothing else", async () => {
  const failed: unknown[] = [];
  let wakes = 0;
  const residency = new Residency({
    supply: { supply: async () => Promise.reject(new Error("a programmer's error")) },
    clock: { nowMs: () => 0 },
    observer: { missed() {}, resumed() {} },
    wake: () => (wakes += 1),
    fail: (...what: unknown[]) => failed.push(what),
  } as unknown as ResidencyOptions);
  const sequence = { ...started(), drop: () => 0 } as unknown as Sequence;
  const plan = { kind: "pages", scorer: { summary: "min-max" } };
  residency.bring(sequence, { plan } as never, []);
  expect(sequence.phase).toBe("waiting");
  await new Promise<void>((resolve) => setImmediate(resolve));
  expect(failed).toEqual([[sequence, new Error("a programmer's error")]]);
  expect([sequence.phase, wakes]).toEqual(["running", 1]);
});

it("a wait ends at its end; what comes behind it does not end a later one", async () => {
  const blocks: (() => void)[] = [];
  const sleeps: { ms: number; over(): void }[] = [];
  const told: string[] = [];
  const residency = new Residency({
    fetcher: {
      async fetch() {
        await new Promise<void>((resolve) => blocks.push(resolve));
        return { bytes: 0, blocks: 0 };
      },
    },
    supply: { readOn() {} },
    clock: { nowMs: () => 40, sleep: (ms: number) => new Promise<void>((over) => sleeps.push({ ms, over })) },
    observer: { missed() {}, resumed: () => told.push("resumed") },
    wake: () => told.push("wake"),
  } as unknown as ResidencyOptions);
  const sequence = started();
  const missed = [{ block: sequence.blocks[0] as LogicalBlock, layer: 0 }];
  const planned = { slice: { plan: {} } } as never;
  const wait = () => {
    const end = { atMs: 100.5, giveUp: () => told.push("gave up") };
    residency.suspend(sequence, planned, { checkpoint: { layer: 0 } as never, missed, end: end as never });
  };
  const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
  wait();
  expect([sequence.phase, sleeps[0]?.ms]).toEqual(["waiting", 61]);
  sleeps[0]?.over();
  await settled();
  expect([sequence.phase, told.splice(0)]).toEqual(["running", ["gave up", "resumed", "wake"]]);
  wait();
  blocks[0]?.();
  await settled();
  expect([sequence.phase, told]).toEqual(["waiting", []]);
  blocks[1]?.();
  await settled();
  sleeps[1]?.over();
  await settled();
  expect([sequence.phase, told]).toEqual(["running", ["resumed", "wake"]]);
});

it("what layers take over of a choice is asked for once", async () => {
  const asked: string[] = [];
  const residency = new Residency({
    fetcher: {
      async fetch(wanted: readonly BlockLayer[], kind: string) {
        asked.push(`${kind} ${wanted.map(({ block, layer }) => `${layer}:${block.index}`).join(" ")}`);
      },
    },
    supply: { readOn() {} },
    clock: { nowMs: () => 0 },
    observer: { missed() {}, resumed() {} },
    wake() {},
  } as unknown as ResidencyOptions);
  const sequence = started();
  for (const block of sequence.blocks) Object.assign(block!, { deviceBlocks: new Array(5).fill(NOT_RESIDENT) });
  const [first, second] = sequence.blocks as [LogicalBlock, LogicalBlock];
  // Layers 0 and 1 choose for themselves, layer 2 for those behind it, too; all choose the first two blocks.
  const { plan } = policyNamed("quest+own-layers(2)+share(3)");
  const slice = { plan: plan(128), blockIds: new Int32Array(5 * 32), blockCapacity: 32 };
  const chosenBlocks = Uint32Array.from({ length: 5 }, () => 0b11);
  const suspendAt = (planned: object, layer: number, missed: readonly LogicalBlock[]) => {
    residency.suspend(sequence, planned as PlannedSlice, {
      ...{ checkpoint: { layer } as Checkpoint, chosenBlocks },
      missed: missed.map((block) => ({ block, layer })),
    });
    return asked.splice(0);
  };
  const planned = { slice };
  expect(suspendAt(planned, 1, [first])).toEqual(["demand 1:0"]);
  expect(suspendAt(planned, 2, [first])).toEqual(["demand 2:0", "demand 3:0 3:1 4:0 4:1"]);
  expect(suspendAt(planned, 3, [second]), "all of it is on its way").toEqual(["demand 3:1"]);
  expect(suspendAt({ slice }, 3, [second]), "another slice's choice").toEqual(["demand 3:1", "demand 4:0 4:1"]);
});
