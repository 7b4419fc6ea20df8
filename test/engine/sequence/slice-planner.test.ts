/** Slices never cross what they must not, and every token is computed exactly once. */
import { describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { OpenBlocks } from "../../../engine/kv/open-blocks.ts";
import { parseHow } from "../../../engine/kv/provenance.ts";
import { Sequence } from "../../../engine/sequence/sequence.ts";
import { commitSlice, discardSlice, nextRows, planSlice } from "../../../engine/sequence/slice-planner.ts";
import type { Span } from "../../../protocol/generate.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds, request } from "../harness.ts";
import { uniform } from "../tiny-model.ts";

const LAYERS = 2;
const HOWS = ["dense", "quest.1:128@16", "quest.1:128@1", "quest.1:256@16", "streaming.1:128@16"];

function world(slotCount: number) {
  const cache = new BlockCache({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(40 * LAYERS),
    summarySlots: new FreeList(40),
  });
  const summaryKinds = ["min-max"] as const;
  return { cache, opens: new OpenBlocks(new FreeList(slotCount)), layerCount: LAYERS, summaryKinds };
}

function randomSequence(next: () => number): Sequence {
  const turnStart = Math.floor(next() * 600);
  const spans: Span[] = [];
  for (let end = 0; end < turnStart; ) {
    end = Math.min(turnStart, end + 1 + Math.floor(next() * 150));
    spans.push({ end, how: HOWS[Math.floor(next() * HOWS.length)]! });
  }
  const tokens = idsToBytes(randomIds(Math.floor(next() * 1e6), turnStart + 1 + Math.floor(next() * 200)));
  return new Sequence({
    request: request({ tokens, turnStart, spans, maxTokens: 8 }),
    selection: { policy: "quest", version: 1, groupTokens: 16, budgetTokens: 128, exact: true },
    sink: { token() {}, done() {}, failed() {} },
    layerCount: LAYERS,
    nowMs: 0,
  });
}

/** Sealed blocks here and there, as an attached sequence with losses has them. */
function withBlocks(sequence: Sequence, memory: ReturnType<typeof world>, next: () => number): Set<number> {
  const present = new Set<number>();
  for (let index = 0; (index + 1) * 64 < sequence.promptEnd; index++) {
    if (next() < 0.5) continue;
    const block = memory.cache.create(index);
    memory.cache.allocateAll(block);
    sequence.blocks[index] = memory.cache.publish(block, sequence.blockKey(index));
    present.add(index);
  }
  return present;
}

describe("planned slices", () => {
  it("cover every token without KV once, in order, and cross no span, gap, budget or query group", () => {
    for (let seed = 0; seed < 120; seed++) {
      const next = uniform(seed);
      const memory = world(12);
      const sequence = randomSequence(next);
      const present = withBlocks(sequence, memory, next);
      const computed = new Uint8Array(sequence.tokenCount);
      const at = (what: string) => `seed ${seed}: ${what}`;
      let last = -1;
      for (let guard = 0; sequence.nextPosition !== undefined; guard++) {
        expect(guard, at("it ends")).toBeLessThan(2000);
        const rowsMax = 1 + Math.floor(next() * 100);
        const slotsMax = 1 + Math.floor(next() * 3);
        const rows = nextRows(sequence, rowsMax, slotsMax);
        if (!rows) {
          expect(rowsMax, at("16 rows are always enough")).toBeLessThan(16);
          continue;
        }
        const { from, to } = rows;
        expect(to - from, at("rows")).toBeLessThanOrEqual(rowsMax);
        expect(from, at("ascending")).toBeGreaterThan(last);
        last = to - 1;
        const span = sequence.spans.at(from);
        expect(to, at("span")).toBeLessThanOrEqual(span.end);
        const how = parseHow(span.how);
        const selected = how !== undefined && from >= how.budgetTokens;
        if (how && !selected) expect(to, at("budget")).toBeLessThanOrEqual(how.budgetTokens);
        expect(rows.plan.kind === "dense", at("dense below the budget")).toBe(!selected);
        if (selected && how.groupTokens === 16 && to < span.end) expect(to % 16, at("group")).toBe(0);
        if (selected && how.groupTokens === 16 && from > span.start) expect(from % 16, at("group")).toBe(0);
        for (let token = from; token < to; token++) expect(present.has(Math.floor(token / 64)), at("gap")).toBe(false);

        const before = memory.opens.availableCount;
        const planned = planSlice(sequence, rows, memory);
        expect(before - memory.opens.availableCount, at("slots")).toBeLessThanOrEqual(slotsMax);
        expect([...planned.tokens], at("tokens")).toEqual([...sequence.ids.slice(from, to)]);
        const starts = [...planned.slice.groupStarts, to - from];
        if (selected)
          for (const [index, start] of starts.slice(0, -1).entries()) {
            const [first, end] = [from + start, from + starts[index + 1]!];
            if (how.groupTokens === 1) expect(end - first, at("groups of one")).toBe(1);
            else expect(Math.floor(first / 16), at("a group is in one page")).toBe(Math.floor((end - 1) / 16));
          }
        if (next() < 0.15) {
          discardSlice(planned, memory);
          expect(memory.opens.availableCount, at("discarded")).toBe(before);
          last = from - 1;
          continue;
        }
        for (let token = from; token < to; token++) computed[token]! += 1;
        commitSlice(sequence, planned, memory);
      }
      const expected = Array.from(computed, (_, token) => (present.has(Math.floor(token / 64)) ? 0 : 1));
      expect([...computed], at("each token once")).toEqual(expected);
      sequence.releaseAll(memory.cache, memory.opens);
      memory.cache.evictIdle();
      expect([memory.opens.takenCount, memory.cache.freeDeviceBlockCount], at("leak")).toEqual([0, 40 * LAYERS]);
    }
  });

  it("takes nothing where it cannot take everything", () => {
    const memory = world(2);
    const sequence = randomSequence(uniform(3));
    const rows = { from: 0, to: 192, plan: { kind: "dense" as const }, groupTokens: 64, inRuns: false, replay: false };
    expect(() => planSlice(sequence, rows, memory)).toThrow();
    expect([memory.opens.takenCount, memory.cache.freeDeviceBlockCount]).toEqual([0, 40 * LAYERS]);
    expect(nextRows(sequence, 500, 0)).toBeUndefined();
  });
});
