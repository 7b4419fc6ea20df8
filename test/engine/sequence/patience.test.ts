/** How long a prompt of default mode waits: in any case up to a moment; longer where it gets everything in time, or for nothing. */
import { expect, it } from "vitest";
import { Patience } from "../../../engine/sequence/patience.ts";
import type { PlannedSlice } from "../../../engine/sequence/planned-slice.ts";
import type { Sequence } from "../../../engine/sequence/sequence.ts";
import { policyNamed } from "../../../models/selection/registry.ts";

const LAYERS = 16;
const BLOCKS = 76;
const LATENCY_MS = 30;

interface Pace {
  policy: string;
  layerMs: number;
  blockMs: number;
}

/**
 * A prompt that is admitted at 0 and begins at 85 ms, on a device that takes so long for a layer and a link that brings so many blocks. Returns the layer at which it goes
 * on without what it misses (undefined: it never does) and when its last layer is computed.
 */
function lived({ policy, layerMs, blockMs }: Pace, changes: { tokenCount?: number; wholeWaitUntilMs?: number } = {}) {
  let [nowMs, linkFreeMs] = [85, 0];
  const plan = policyNamed(policy).plan(2048);
  const slice = { plan, blockCapacity: 4, blockIds: new Int32Array(4 * LAYERS) };
  const planned = { slice, from: 0, to: 64 } as unknown as PlannedSlice;
  const sequence = { started: false, missWaitUntilMs: 300, wholeWaitUntilMs: 750, tokenCount: 64, ...changes };
  const share = Number(/share\((\d+)\)/.exec(policy)?.[1] ?? 1);
  /** When the blocks of each layer are there. */
  const thereMs: number[] = [];
  const patience = new Patience({
    clock: { nowMs: () => nowMs },
    latencyMs: () => LATENCY_MS,
    comingCount: () => BLOCKS * thereMs.filter((ms) => ms > nowMs).length,
  });
  let isPatient = patience.waits(sequence as Sequence, planned);
  let [ms, passedAt] = [0, undefined as number | undefined];
  for (let layer = 0; layer < LAYERS; layer++) {
    nowMs += layerMs / 2;
    ms += layerMs / 2;
    if (isPatient && layer % share === 0) {
      linkFreeMs = Math.max(linkFreeMs, nowMs + LATENCY_MS);
      for (let of = layer; of < Math.min(layer + share, LAYERS); of++) thereMs[of] = linkFreeMs += BLOCKS * blockMs;
    }
    if (isPatient && thereMs[layer]! > nowMs) {
      patience.stopped(planned, { layer, blockCount: BLOCKS, ms });
      nowMs = thereMs[layer]!;
      isPatient = patience.waits(sequence as Sequence, planned);
      ms = 0;
      if (!isPatient) passedAt = layer;
    }
    nowMs += layerMs / 2;
    ms += layerMs / 2;
  }
  return { passedAt, endMs: nowMs };
}

const QUICK = { layerMs: 25, blockMs: 0.35 };

it("waits for all that two choices bring, and not for sixteen", () => {
  const shared = lived({ ...QUICK, policy: "quest+share(8)" });
  expect(shared.passedAt).toBeUndefined();
  expect(shared.endMs).toBeLessThan(750);
  const single = lived({ ...QUICK, policy: "quest" });
  expect(single.passedAt).toBe(2);
  expect(single.endMs).toBeLessThan(750);
});

it("waits no longer than it must where device or store are too slow for that", () => {
  expect(lived({ policy: "quest+share(4)", layerMs: 60, blockMs: 0.35 }).passedAt).toBe(4);
  const slowLink = lived({ policy: "quest+share(8)", layerMs: 25, blockMs: 1.5 });
  expect(slowLink.passedAt).toBeLessThan(3);
  expect(slowLink.endMs).toBeLessThan(750);
  expect(lived({ ...QUICK, policy: "quest+share(8)" }, { wholeWaitUntilMs: 0 }).passedAt).toBeLessThan(8);
});

it("goes on waiting for what costs little: blocks that come nearly as soon as it computes with them", () => {
  const late = lived({ policy: "quest+share(16)", layerMs: 60, blockMs: 0.35 });
  expect([late.passedAt, late.endMs > 750]).toEqual([undefined, true]);
});

it("waits up to the moment only with a part of a prompt, and not once it went on without", () => {
  expect(lived({ ...QUICK, policy: "quest+share(8)" }, { tokenCount: 128 }).passedAt).toBeLessThan(8);
  const patience = new Patience({ clock: { nowMs: () => 400 }, latencyMs: () => undefined, comingCount: () => 0 });
  const slice = { plan: policyNamed("quest").plan(2048), blockCapacity: 1, blockIds: new Int32Array(2) };
  const planned = { slice, from: 0, to: 64 } as unknown as PlannedSlice;
  const sequence = { started: false, missWaitUntilMs: 300, wholeWaitUntilMs: 750, tokenCount: 64 } as Sequence;
  expect(patience.waits(sequence, planned)).toBe(false);
  patience.stopped(planned, { layer: 1, blockCount: 0, ms: 1 });
  expect(patience.waits(sequence, planned)).toBe(false);
});

/** A slice of 16 layers that has stopped at some of them: `ms` is what it computed before each, `until` when its blocks had come. */
function stoppedAt(policy: string, stops: { layer: number; atMs: number; ms: number; until?: number }[]) {
  let nowMs = 0;
  const patience = new Patience({ clock: { nowMs: () => nowMs }, latencyMs: () => LATENCY_MS, comingCount: () => 0 });
  const slice = {
    plan: policyNamed(policy).plan(2048),
    blockCapacity: 4,
    blockIds: new Int32Array(4 * LAYERS),
  };
  const planned = { slice, from: 0, to: 64 } as unknown as PlannedSlice;
  const sequence = { started: false, missWaitUntilMs: 300, wholeWaitUntilMs: 750, tokenCount: 64 } as Sequence;
  for (const { layer, atMs, ms, until } of stops) {
    nowMs = atMs;
    patience.stopped(planned, { layer, blockCount: BLOCKS, ms });
    if (until === undefined) continue;
    nowMs = until;
    patience.waits(sequence, planned);
  }
  return { patience, planned, sequence, end: () => patience.waitEnd(sequence, planned) };
}

it("ends its waits: the first ones at the moment, later ones when the first token could not be there in time", () => {
  const choice = { layer: 0, atMs: 100, ms: 10, until: 150 };
  expect(stoppedAt("quest", [{ layer: 0, atMs: 100, ms: 10 }]).end()?.atMs, "nothing was waited for as yet").toBe(300);
  // 20 ms a layer and a tenth for taking in: eight layers behind layer 7.
  const taken = stoppedAt("quest+share(16)", [choice, { layer: 7, atMs: 320, ms: 140 }]);
  expect(taken.end()?.atMs).toBeCloseTo(750 - 8 * 22);
  const chosen = stoppedAt("quest+share(8)", [choice, { layer: 8, atMs: 350, ms: 160 }]);
  expect(chosen.end()?.atMs, "of two choices the last").toBeCloseTo(750 - 7 * 22);
  const early = stoppedAt("quest+share(8)", [choice, { layer: 1, atMs: 160, ms: 20 }]);
  expect(early.end()?.atMs, "another choice is to be waited for").toBeCloseTo(750 - 14 * 22 - 50);
});

it("where blocks come while it computes, waits for one no longer than a read and a layer take", () => {
  const slow = stoppedAt("quest+share(16)", [
    { layer: 0, atMs: 100, ms: 30, until: 150 },
    { layer: 7, atMs: 600, ms: 420 },
  ]);
  // 60 ms a layer: the first token is late whatever comes.
  expect(slow.end()?.atMs).toBeCloseTo(600 + LATENCY_MS + 66);
});

it("waits for the last choices where they take little of what is left to compute, and no longer than half as long again", () => {
  // 60 ms a layer: 13 of them are left.
  const first = { layer: 0, atMs: 130, ms: 30, until: 180 };
  const slow = stoppedAt("quest+own-layers(1)+share(15)", [first, { layer: 1, atMs: 290, ms: 60 }]);
  expect(slow.end()?.atMs).toBeCloseTo(290 + 1.5 * 50);
  const many = stoppedAt("quest+share(2)", [first, { layer: 2, atMs: 350, ms: 120 }]);
  expect(many.end()?.atMs, "six more choices").toBe(350);
});

it("waits for nothing more once a wait has ended without its blocks", () => {
  const { patience, planned, sequence, end } = stoppedAt("quest", [{ layer: 0, atMs: 100, ms: 10 }]);
  expect(patience.waits(sequence, planned)).toBe(true);
  end()?.giveUp();
  expect(patience.waits(sequence, planned)).toBe(false);
});
