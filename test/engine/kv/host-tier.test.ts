/** The residency map with its host tier against the bytes that were written when each block was sealed. */
import { describe, expect, it } from "vitest";
import { BlockCache } from "../../../engine/kv/block-cache.ts";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { HostPool } from "../../../engine/kv/host-pool.ts";
import type { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../../kernels/contract.ts";
import { uniform } from "../tiny-model.ts";

const LAYERS = 2;
const BLOCK_BYTES = 8;
const SUMMARY_BYTES = 4;
const KIND: SummaryKind = "min-max";
/** One whole block in host memory. */
const COPY_BYTES = LAYERS * BLOCK_BYTES + SUMMARY_BYTES;

/** Device memory as plain arrays; reads arrive later, as a GPU's do, with the bytes of their call. */
class FakePool {
  readonly blockBytes = BLOCK_BYTES;
  readonly summaryBytes = SUMMARY_BYTES;
  readonly blocks = new Map<number, Uint8Array>();
  readonly summaries = new Map<number, Uint8Array>();
  isBroken = false;

  writeBlock(id: number, bytes: Uint8Array): void {
    this.blocks.set(id, bytes.slice());
  }
  writeSummary(slot: number, _kind: SummaryKind, bytes: Uint8Array): void {
    this.summaries.set(slot, bytes.slice());
  }
  readBlock(id: number): Promise<Uint8Array> {
    return this.#later((this.blocks.get(id) as Uint8Array).slice());
  }
  readSummary(slot: number): Promise<Uint8Array> {
    return this.#later((this.summaries.get(slot) as Uint8Array).slice());
  }
  async #later(bytes: Uint8Array): Promise<Uint8Array> {
    for (let turn = 0; turn < 3; turn++) await Promise.resolve();
    if (this.isBroken) throw new Error("the device is gone");
    return bytes;
  }
}

interface World {
  device: FakePool;
  host: HostPool;
  cache: BlockCache;
  deviceBlocks: FreeList;
  summarySlots: FreeList;
}

function world(capacity: number, hostBlocks: number, slotCount = capacity): World {
  const device = new FakePool();
  const pool = device as unknown as KvPool;
  const host = new HostPool({ pool, bytesMax: hostBlocks * COPY_BYTES });
  const deviceBlocks = new FreeList(capacity * LAYERS);
  const summarySlots = new FreeList(slotCount);
  const cache = new BlockCache({ layerCount: LAYERS, deviceBlocks, summarySlots, host: { copies: host, pool } });
  return { device, host, cache, deviceBlocks, summarySlots };
}

/** What block `number` holds; layer -1: its summaries. */
function bytesOf(number: number, layer: number): Uint8Array {
  return new Uint8Array(layer < 0 ? SUMMARY_BYTES : BLOCK_BYTES).fill(1 + ((number * 7 + layer * 3) % 250));
}

function sealed({ cache, device }: World, number: number): LogicalBlock {
  const block = cache.create(number);
  cache.allocateAll(block);
  for (const [layer, id] of block.deviceBlocks.entries()) device.writeBlock(id, bytesOf(number, layer));
  device.writeSummary(block.summarySlot, KIND, bytesOf(number, -1));
  block.summaries.add(KIND);
  return cache.publish(block, `ns:${number}`);
}

/** Brings what is in host memory, as the fetcher does. */
function promote({ cache, device }: World, block: LogicalBlock): void {
  for (const [layer, id] of block.deviceBlocks.entries()) {
    const bytes = block.host?.layers[layer];
    if (id === NOT_RESIDENT && bytes) device.writeBlock(cache.allocateLayer(block, layer), bytes);
  }
}

function expectIntact({ device }: World, block: LogicalBlock, number: number): void {
  for (const [layer, id] of block.deviceBlocks.entries())
    expect(device.blocks.get(id), `block ${number}, layer ${layer}`).toEqual(bytesOf(number, layer));
  expect([...block.summaries]).toEqual([KIND]);
  expect(device.summaries.get(block.summarySlot), `summaries of ${number}`).toEqual(bytesOf(number, -1));
}

async function arrived(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

describe("a block that leaves the device", () => {
  it("is found in host memory with the bytes that it had, and not before they have arrived", async () => {
    const here = world(2, 4);
    for (let number = 0; number < 3; number++) here.cache.release(sealed(here, number));
    expect(here.cache.has("ns:0")).toBe(false);
    expect(here.cache.acquire("ns:0")).toBeUndefined();
    await arrived();
    expect(here.cache.has("ns:0")).toBe(true);
    const block = here.cache.acquire("ns:0") as LogicalBlock;
    expect([block.resident, block.isHere]).toEqual([false, true]);
    promote(here, block);
    expectIntact(here, block, 0);
    expect(here.host.counts).toMatchObject({ hits: 1, evictions: 0 });
    here.cache.release(block);
  });

  it("is the oldest of those with the least priority, then the least heat", () => {
    const here = world(3, 8);
    const blocks = [0, 1, 2].map((number) => sealed(here, number));
    for (const [number, block] of blocks.entries()) {
      block.priority = number === 0 ? 1 : 0;
      block.heat = number === 1 ? 5 : 2;
      here.cache.release(block);
    }
    const leaves: number[] = [];
    for (let number = 3; number < 6; number++) {
      const fresh = sealed(here, number);
      const gone = blocks.findIndex(({ summarySlot }, at) => summarySlot === NOT_RESIDENT && !leaves.includes(at));
      leaves.push(gone);
      fresh.priority = 9;
      here.cache.release(fresh);
    }
    expect(leaves).toEqual([2, 1, 0]);
  });

  it("makes the one that left longest ago give way, which is not found any more", async () => {
    const here = world(1, 2);
    for (let number = 0; number < 4; number++) {
      here.cache.release(sealed(here, number));
      await arrived();
    }
    expect([0, 1, 2, 3].map((number) => here.cache.has(`ns:${number}`))).toEqual([false, true, true, true]);
    expect(here.host.bytes).toBe(2 * COPY_BYTES);
    expect(here.host.counts.evictions).toBe(1);
  });

  it("is gone where there is no host tier, and where the device cannot be read", async () => {
    const none = world(1, 0);
    none.cache.release(sealed(none, 0));
    none.cache.release(sealed(none, 1));
    await arrived();
    expect([none.cache.has("ns:0"), none.host.bytes]).toEqual([false, 0]);
    const broken = world(1, 4);
    broken.device.isBroken = true;
    broken.cache.release(sealed(broken, 0));
    broken.cache.release(sealed(broken, 1));
    await arrived();
    expect([broken.cache.acquire("ns:0"), broken.host.bytes]).toEqual([undefined, 0]);
  });
});

describe("a block that is in the store only", () => {
  it("is not found any more once its slot is another's, if nothing of it can be kept", async () => {
    for (const hostBlocks of [0, 4]) {
      const here = world(2, hostBlocks, 1);
      for (let number = 0; number < 5; number++)
        here.cache.release(here.cache.publish(here.cache.create(number), `ns:${number}`));
      expect([...here.cache.published()].map(({ key }) => key)).toEqual(["ns:4"]);
      expect([...here.host.blocks()]).toEqual([]);
    }
  });

  it("stays known to a suspended sequence, which has it read again", () => {
    const here = world(2, 0, 1);
    const parked = here.cache.publish(here.cache.create(0), "ns:0");
    here.cache.park(parked);
    here.cache.release(here.cache.create(1));
    expect([parked.lost, here.cache.unpark(parked)]).toEqual([false, true]);
    here.cache.release(parked);
  });
});

describe("a block of a suspended sequence", () => {
  it("leaves the device and comes back, and its copy gives way to nobody's", async () => {
    const here = world(2, 2);
    const parked = sealed(here, 0);
    here.cache.park(parked);
    for (let number = 1; number < 6; number++) {
      here.cache.release(sealed(here, number));
      await arrived();
    }
    expect(parked.summarySlot).toBe(NOT_RESIDENT);
    expect(here.cache.unpark(parked)).toBe(true);
    promote(here, parked);
    expectIntact(here, parked, 0);
    here.cache.release(parked);
  });

  it("is lost where host memory has no room, and says so", () => {
    const here = world(1, 0);
    const parked = sealed(here, 0);
    here.cache.park(parked);
    const other = sealed(here, 1);
    expect(parked.lost).toBe(true);
    expect(here.cache.unpark(parked)).toBe(false);
    here.cache.release(other);
    here.cache.evictIdle();
    expect([here.deviceBlocks.freeCount, here.summarySlots.freeCount]).toEqual([LAYERS, 1]);
  });
});

it("never shows a byte that was not written for the key, and loses no memory, in any order of events", async () => {
  for (let seed = 1; seed <= 40; seed++) await live(seed);
});

describe("a block that is held loosely", () => {
  /** The layers of each that are on the device. */
  const resident = (blocks: readonly LogicalBlock[]) =>
    blocks.map(({ deviceBlocks }) => Array.from(deviceBlocks, (id) => id !== NOT_RESIDENT));

  function loose(here: World, number: number): LogicalBlock {
    const block = sealed(here, number);
    here.cache.loosen(block);
    return block;
  }

  function letGo({ cache }: World, blocks: readonly LogicalBlock[]): void {
    for (const block of blocks) {
      cache.tighten(block);
      cache.release(block);
    }
  }

  it("leaves a layer at a time, used longest ago first, and comes back with its bytes; pinned and shared ones stay", async () => {
    const here = world(2, 4, 4);
    const [first, second] = [loose(here, 0), loose(here, 1)];
    here.cache.use(first, 0);
    here.cache.pin(first, 1);
    const third = loose(here, 2);
    // Oldest were (0, 1), which is pinned, (1, 0) and (1, 1).
    expect(resident([first, second, third])).toEqual([
      [true, true],
      [false, false],
      [true, true],
    ]);
    here.cache.unpin(first, 1);
    here.cache.retain(first);
    await arrived();
    promote(here, second);
    // Somebody holds the first whose context the pool holds: only the third may make room.
    expect(resident([first, second, third])).toEqual([
      [true, true],
      [true, true],
      [false, false],
    ]);
    for (const [number, block] of [first, second].entries()) expectIntact(here, block, number);
    expect([here.cache.leftLayerCount, here.cache.takeLossNotice()]).toEqual([4, false]);
    here.cache.release(first);
    letGo(here, [first, second, third]);
    here.cache.evictIdle();
    expect([here.deviceBlocks.freeCount, here.summarySlots.freeCount, here.host.bytes]).toEqual([4, 4, 0]);
  });

  it("goes nowhere if the store has it, and is lost if nothing has room for it", () => {
    const here = world(2, 0, 4);
    const [kept, other] = [loose(here, 0), loose(here, 1)];
    kept.stored = { isWritten: true } as LogicalBlock["stored"];
    here.cache.use(kept, 0);
    here.cache.use(kept, 1);
    const third = loose(here, 2);
    expect(resident([kept, other, third])[0]).toEqual([false, false]);
    expect([kept.lost, other.lost, here.cache.takeLossNotice()]).toEqual([false, false, false]);
    const fourth = loose(here, 3);
    expect([other.lost, third.lost, fourth.lost, here.cache.takeLossNotice()]).toEqual([true, false, false, true]);
    letGo(here, [kept, other, third, fourth]);
    here.cache.evictIdle();
    expect(here.deviceBlocks.freeCount).toBe(4);
  });

  it("does not leave while a step runs: who wants memory then waits for its end", async () => {
    const here = world(1, 4, 4);
    const held = loose(here, 0);
    expect(here.cache.roomFor(1)).toBeUndefined();
    let end = () => {};
    const step = here.cache.during(() => new Promise<void>((resolve) => (end = resolve)));
    let came = false;
    void here.cache.roomFor(1)?.then(() => {
      expect(here.cache.roomFor(1)).toBeUndefined();
      came = true;
    });
    await arrived();
    expect(came).toBe(false);
    end();
    await step;
    expect(came, "before whoever runs the steps goes on").toBe(true);
    letGo(here, [held]);
    const again = here.cache.during(async () => expect(here.cache.roomFor(2), "what idles may leave").toBeUndefined());
    await again;
  });

  it("has blocks of layers, summaries and host memory set aside, all of them or none", () => {
    const here = world(4, 4, 6);
    const parts = { deviceBlocks: 5, summarySlots: 4, hostBytes: 3 * COPY_BYTES };
    expect(here.cache.reservations.reserveParts(parts)).toBe(true);
    expect(here.cache.reservations.unreservedCount).toBe(1);
    for (const more of [
      { deviceBlocks: 4, summarySlots: 1, hostBytes: 0 },
      { deviceBlocks: 1, summarySlots: 3, hostBytes: 0 },
      { deviceBlocks: 1, summarySlots: 1, hostBytes: 2 * COPY_BYTES },
    ])
      expect(here.cache.reservations.reserveParts(more)).toBe(false);
    expect(here.cache.chargeHost(2 * COPY_BYTES), "of suspended sequences").toBe(false);
    expect(here.cache.reservations.reserveParts({ deviceBlocks: 3, summarySlots: 2, hostBytes: COPY_BYTES })).toBe(
      true,
    );
    here.cache.reservations.unreserveParts({ deviceBlocks: 8, summarySlots: 6, hostBytes: 4 * COPY_BYTES });
    expect(here.cache.reservations.unreservedCount).toBe(4);
    expect(() => here.cache.reservations.unreserveParts(parts)).toThrow(/more than was reserved/);
  });
});

/** One seeded life: blocks are sealed, found, held, parked and released while everything is short. */
async function live(seed: number): Promise<void> {
  const next = uniform(seed);
  const capacity = 4;
  const here = world(capacity, 1 + Math.floor(next() * 6));
  const held: { block: LogicalBlock; number: number }[] = [];
  const parked: { block: LogicalBlock; number: number }[] = [];
  const take = <T>(items: T[]): T | undefined => items.splice(Math.floor(next() * items.length), 1)[0];
  for (let step = 0; step < 250; step++) {
    const action = next();
    const number = Math.floor(next() * 10);
    const hasRoom = new Set(held.map(({ block }) => block)).size < capacity;
    if (action < 0.25 && hasRoom) held.push({ block: sealed(here, number), number });
    else if (action < 0.5 && hasRoom) {
      const block = here.cache.acquire(`ns:${number}`);
      if (block) promote(here, block);
      if (block) held.push({ block, number });
    } else if (action < 0.65) {
      const one = take(held);
      if (one) here.cache.park(one.block);
      if (one) parked.push(one);
    } else if (action < 0.75 && hasRoom) {
      const ready = parked.filter(
        ({ block }) => block.lost || block.summarySlot !== NOT_RESIDENT || block.host?.isReady,
      );
      const one = take(ready);
      if (!one) continue;
      parked.splice(parked.indexOf(one), 1);
      if (!here.cache.unpark(one.block)) continue;
      promote(here, one.block);
      held.push(one);
    } else if (action < 0.8) {
      const one = take(parked);
      if (one) here.cache.dropParked(one.block);
    } else if (action < 0.83) here.cache.evictIdle();
    else if (action < 0.9) await arrived();
    else {
      const one = take(held);
      if (one) here.cache.release(one.block);
    }
    for (const one of held) expectIntact(here, one.block, one.number);
    expect(here.host.bytes, `seed ${seed}: host memory is bounded`).toBeLessThanOrEqual(here.host.bytesMax);
  }
  await arrived();
  for (const { block } of held) here.cache.release(block);
  for (const { block } of parked) here.cache.dropParked(block);
  here.cache.evictIdle();
  const free = [here.deviceBlocks.freeCount, here.summarySlots.freeCount, here.host.bytes];
  expect(free, `seed ${seed}: nothing leaked`).toEqual([capacity * LAYERS, capacity, 0]);
}
