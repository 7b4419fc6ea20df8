/** The block cache against a naive twin that counts with plain lists. */
import { expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import { NOT_RESIDENT, type SummaryKind } from "../../../kernels/contract.ts";
import { uniform } from "../tiny-model.ts";

const LAYERS = 2;

interface TwinBlock {
  block: LogicalBlock;
  key: string | undefined;
  refs: number;
  layers: Set<number>;
}

/** What must be true, kept the slow way. */
class Twin {
  readonly blocks = new Set<TwinBlock>();
  readonly idleOrder: TwinBlock[] = [];
  byKey(key: string): TwinBlock | undefined {
    return [...this.blocks].find((twin) => twin.key === key && !twin.block.lost);
  }
  get held(): number {
    return [...this.blocks].filter((twin) => twin.refs > 0).length;
  }
}

it("finds, shares, evicts and frees as a plain list of blocks does", () => {
  for (let seed = 0; seed < 60; seed++) run(seed, 400);
});

function run(seed: number, steps: number): void {
  const next = uniform(seed);
  const pick = <T>(items: readonly T[]): T | undefined => items[Math.floor(next() * items.length)];
  const capacity = 6;
  const deviceBlocks = new FreeList(capacity * LAYERS);
  const summarySlots = new FreeList(capacity);
  const cache = new BlockCache({ layerCount: LAYERS, deviceBlocks, summarySlots });
  const twin = new Twin();
  const fail = (what: string) => `seed ${seed}: ${what}`;
  const forget = (gone: TwinBlock) => {
    twin.blocks.delete(gone);
    const at = twin.idleOrder.indexOf(gone);
    if (at !== -1) twin.idleOrder.splice(at, 1);
  };
  const sweep = () => {
    for (const candidate of [...twin.idleOrder]) if (candidate.block.summarySlot === -1) forget(candidate);
  };
  for (let step = 0; step < steps; step++) {
    const held = [...twin.blocks].filter((candidate) => candidate.refs > 0);
    const action = next();
    if (action < 0.3 && twin.held < capacity) {
      const evictable = twin.idleOrder[0];
      const full = summarySlots.freeCount === 0;
      const block = cache.create(step);
      if (full) expect(evictable?.block.summarySlot, fail("the oldest idle block went")).toBe(-1);
      sweep();
      twin.blocks.add({ block, key: undefined, refs: 1, layers: new Set() });
    } else if (action < 0.45) {
      const target = pick(held.filter((candidate) => candidate.layers.size < LAYERS));
      if (!target) continue;
      const layer = target.layers.has(0) ? 1 : 0;
      cache.allocateLayer(target.block, layer);
      sweep();
      target.layers.add(layer);
    } else if (action < 0.6) {
      const target = pick(held.filter((candidate) => candidate.key === undefined && candidate.refs === 1));
      if (!target) continue;
      const key = `key-${Math.floor(next() * 8)}`;
      const known = twin.byKey(key);
      const result = cache.publish(target.block, key);
      expect(result, fail("publish")).toBe(known?.block ?? target.block);
      if (known) {
        if (known.refs === 0) twin.idleOrder.splice(twin.idleOrder.indexOf(known), 1);
        known.refs += 1;
        for (const layer of target.layers) known.layers.add(layer);
        forget(target);
      } else target.key = key;
    } else if (action < 0.75) {
      const key = `key-${Math.floor(next() * 8)}`;
      const known = twin.byKey(key);
      const wouldPin = known?.refs === 0;
      if (wouldPin && twin.held >= capacity) continue;
      expect(cache.acquire(key), fail("acquire")).toBe(known?.block);
      if (!known) continue;
      if (known.refs === 0) twin.idleOrder.splice(twin.idleOrder.indexOf(known), 1);
      known.refs += 1;
    } else if (action < 0.8) {
      const target = pick(held.filter((candidate) => candidate.key !== undefined && !candidate.block.lost));
      if (target) cache.markLost(target.block);
    } else {
      const target = pick(held);
      if (!target) continue;
      cache.release(target.block);
      target.refs -= 1;
      if (target.refs > 0) continue;
      if (target.key !== undefined && !target.block.lost) twin.idleOrder.push(target);
      else forget(target);
    }
    const layers = [...twin.blocks].reduce((sum, candidate) => sum + candidate.layers.size, 0);
    expect(deviceBlocks.count - deviceBlocks.freeCount, fail(`device blocks at step ${step}`)).toBe(layers);
    expect(summarySlots.count - summarySlots.freeCount, fail(`summary slots at step ${step}`)).toBe(twin.blocks.size);
    expect(cache.idleCount, fail("idle")).toBe(twin.idleOrder.length);
    const ids = [...twin.blocks].flatMap((candidate) => [...candidate.block.deviceBlocks].filter((id) => id !== -1));
    expect(new Set(ids).size, fail("no device block has two owners")).toBe(ids.length);
  }
}

it("gives a known block the summaries that it lacks, slot and all, and never takes any away", () => {
  const summarySlots = new FreeList(4);
  const cache = new BlockCache({ layerCount: LAYERS, deviceBlocks: new FreeList(10), summarySlots });
  const withKinds = (...kinds: SummaryKind[]) => {
    const block = cache.create(0);
    for (const kind of kinds) block.summaries.add(kind);
    return block;
  };
  const known = cache.publish(withKinds("min-max"), "ns:0");
  const poorSlot = known.summarySlot;
  const computed = withKinds("min-max", "mean-deviation");
  const richSlot = computed.summarySlot;
  expect(cache.publish(computed, "ns:0")).toBe(known);
  expect([known.summarySlot, [...known.summaries]]).toEqual([richSlot, ["min-max", "mean-deviation"]]);
  expect(computed.summarySlot).toBe(NOT_RESIDENT);
  expect(summarySlots.freeCount).toBe(3);
  // Its old slot can be had again, and one with other or fewer kinds changes nothing.
  expect(cache.create(7).summarySlot).toBe(poorSlot);
  for (const kinds of [["mean-deviation"], []] as SummaryKind[][]) {
    expect(cache.publish(withKinds(...kinds), "ns:0")).toBe(known);
    expect(known.summarySlot).toBe(richSlot);
  }
  const other = cache.publish(withKinds("min-max"), "ns:1");
  const slot = other.summarySlot;
  cache.publish(withKinds("mean-deviation"), "ns:1");
  expect([other.summarySlot, [...other.summaries]]).toEqual([slot, ["min-max"]]);
  for (let references = known.refCount; references > 0; references--) cache.release(known);
  for (let references = other.refCount; references > 0; references--) cache.release(other);
  cache.evictIdle();
  expect([known.summaries.size, known.summarySlot]).toEqual([0, NOT_RESIDENT]);
});

it("moves no summaries while a step runs, which reads where they were when it began", async () => {
  const cache = new BlockCache({ layerCount: 1, deviceBlocks: new FreeList(4), summarySlots: new FreeList(4) });
  const slotsOf = (kinds: SummaryKind[]) => {
    const block = cache.create(0);
    for (const kind of kinds) block.summaries.add(kind);
    return block;
  };
  const known = cache.publish(slotsOf(["min-max"]), "key");
  const slot = known.summarySlot;
  const both: SummaryKind[] = ["min-max", "mean-deviation"];
  await cache.during(async () => {
    expect(cache.publish(slotsOf(both), "key")).toBe(known);
    expect([known.summarySlot, [...known.summaries]]).toEqual([slot, ["min-max"]]);
  });
  cache.publish(slotsOf(both), "key");
  expect([...known.summaries]).toEqual(both);
  expect(known.summarySlot).not.toBe(slot);
});
