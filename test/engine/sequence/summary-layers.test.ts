/** Steps of several batches: what the first does to the second, and what is left when one fails. */
import { describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import type { LayeredSummaries } from "../../../engine/kv/layered-summaries.ts";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import { OpenBlocks } from "../../../engine/kv/open-blocks.ts";
import type { PlannedPart } from "../../../engine/schedule/step-planner.ts";
import { Sequence } from "../../../engine/sequence/sequence.ts";
import { discardSlice, nextRows, planSlice } from "../../../engine/sequence/slice-planner.ts";
import { runInBatches } from "../../../engine/sequence/summary-layers.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds, request } from "../harness.ts";

const LAYERS = 2;

/** A part whose blocks are all there, and one whose first block's summaries have come as far as the first layer. */
function plannedParts() {
  const cache = new BlockCache({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(20 * LAYERS),
    summarySlots: new FreeList(20),
  });
  const memory = {
    cache,
    opens: new OpenBlocks(new FreeList(20)),
    layerCount: LAYERS,
    summaryKinds: ["min-max"] as const,
  };
  const whole = (sequence: Sequence, index: number): LogicalBlock => {
    const block = cache.create(index);
    block.summaries.add("min-max");
    return cache.publish(block, sequence.blockKey(index));
  };
  const [first, second] = [1, 2].map((seed): PlannedPart => {
    const sequence = new Sequence({
      request: request({
        tokens: idsToBytes(randomIds(seed, 200)),
        turnStart: 192,
        spans: [{ end: 192, how: "dense" }],
      }),
      selection: { policy: "quest", version: 1, groupTokens: 16, budgetTokens: 128, exact: true },
      sink: { token() {}, done() {}, failed() {} },
      layerCount: LAYERS,
      nowMs: 0,
    });
    for (let index = 0; index < 3; index++) sequence.hold(cache, whole(sequence, index));
    const slice = planSlice(sequence, nextRows(sequence, 64)!, memory);
    return { sequence, slice, load: { rows: 8, sampledRows: 1, attendedTokens: 0 } };
  });
  const block = second!.sequence.blocks[0]!;
  block.summaries.delete("min-max");
  block.incoming = { kind: "min-max", firstLacking: () => 1 } as unknown as LayeredSummaries;
  const better = () => whole(second!.sequence, 0);
  return { parts: [second!, first!], block, better, memory, takenCount: () => memory.opens.takenCount };
}

describe("a step of two batches", () => {
  it("runs what must be alone last, with its tables as they are by then", async () => {
    const { parts, block, better, memory } = plannedParts();
    const [alone, other] = parts as [PlannedPart, PlannedPart];
    const before = block.summarySlot;
    const ran: unknown[] = [];
    const run = async (batch: readonly PlannedPart[]) => {
      ran.push(batch);
      // What the first batch computes may hold all that the second waits for.
      if (ran.length === 1) better();
      else expect(batch[0]!.slice.slice.summarySlots[0]).toBe(block.summarySlot);
    };
    await runInBatches(parts, memory, run);
    expect(ran).toEqual([[other], [alone]]);
    expect([block.incoming, block.summarySlot === before]).toEqual([undefined, false]);
  });

  it("gives back what does not run any more: blocks that lost what was on its way, or a batch that failed", async () => {
    const lost = plannedParts();
    let runs = 0;
    const run = async () => {
      runs += 1;
      lost.block.incoming = undefined;
    };
    expect(lost.takenCount()).toBe(2);
    await runInBatches(lost.parts, lost.memory, run);
    expect([runs, lost.takenCount()]).toEqual([1, 1]);
    const failed = plannedParts();
    const fail = async ([part]: readonly PlannedPart[]) => {
      discardSlice(part!.slice, failed.memory);
      throw new Error("the device had a bad moment");
    };
    await expect(runInBatches(failed.parts, failed.memory, fail)).rejects.toThrow("bad moment");
    expect(failed.takenCount()).toBe(0);
  });
});
