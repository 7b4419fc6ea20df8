/** Reservations against what a plain sum of all that was set aside allows. */
import { expect, it } from "vitest";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { HostPool } from "../../../engine/kv/host-pool.ts";
import { type Reservation, Reservations } from "../../../engine/kv/reservations.ts";
import type { KvPool } from "../../../kernels/contract.ts";
import { uniform } from "../tiny-model.ts";

const LAYERS = 2;

it("counts logical blocks by whatever there are fewest of", () => {
  const room = new Reservations({ layerCount: LAYERS, deviceBlocks: new FreeList(10), summarySlots: new FreeList(9) });
  expect(room.capacity).toBe(5);
  expect(room.reserve(3)).toBe(true);
  expect(room.reserve(3)).toBe(false);
  expect(room.unreservedCount).toBe(2);
  room.unreserve(3);
  expect(room.reserve(5)).toBe(true);
  expect(() => room.unreserve(6)).toThrow(/more than was reserved/);
  const fewSlots = { layerCount: LAYERS, deviceBlocks: new FreeList(10), summarySlots: new FreeList(3) };
  expect([new Reservations(fewSlots).capacity, new Reservations(fewSlots).unreservedCount]).toEqual([3, 3]);
});

it("sets aside exactly what fits in every part, and nothing where one part does not", () => {
  const pool = { blockBytes: 7 } as KvPool;
  const limits = { deviceBlocks: 12, summarySlots: 9, hostBytes: 100 };
  const room = new Reservations({
    layerCount: LAYERS,
    deviceBlocks: new FreeList(limits.deviceBlocks),
    summarySlots: new FreeList(limits.summarySlots),
    host: { copies: new HostPool({ pool, bytesMax: limits.hostBytes }), pool },
  });
  expect(room.capacityParts).toEqual({ ...limits, hostBlockBytes: 7 });
  const next = uniform(5);
  const held: Reservation[] = [];
  const sum = (part: keyof Reservation) => held.reduce((total, each) => total + each[part], 0);
  const parts = ["deviceBlocks", "summarySlots", "hostBytes"] as const;
  let refused = 0;
  for (let step = 0; step < 2000; step++) {
    const one = {
      deviceBlocks: Math.floor(next() * 5),
      summarySlots: Math.floor(next() * 4),
      hostBytes: Math.floor(next() * 50),
    };
    const fits = parts.every((part) => sum(part) + one[part] <= limits[part]);
    expect(room.hasRoomFor(one), `step ${step}`).toBe(fits);
    if (next() < 0.6) {
      expect(room.reserveParts(one), `step ${step}`).toBe(fits);
      if (fits) held.push(one);
      else refused += 1;
    } else if (held.length > 0) {
      room.unreserveParts(held.splice(Math.floor(next() * held.length), 1)[0]!);
    }
    const left = Math.floor((limits.deviceBlocks - sum("deviceBlocks")) / LAYERS);
    expect(room.unreservedCount).toBe(Math.min(left, limits.summarySlots - sum("summarySlots")));
  }
  expect(refused).toBeGreaterThan(100);
});

it("promises no host memory where there is none", () => {
  const room = new Reservations({ layerCount: LAYERS, deviceBlocks: new FreeList(4), summarySlots: new FreeList(4) });
  expect(room.reserveParts({ deviceBlocks: 1, summarySlots: 1, hostBytes: 1 })).toBe(false);
  expect(room.capacityParts).toMatchObject({ hostBytes: 0, hostBlockBytes: 0 });
  expect(room.unreservedCount).toBe(2);
});
