import { describe, expect, it } from "vitest";
import { Tenants } from "../../../engine/schedule/tenants.ts";
import { WaitingQueue } from "../../../engine/schedule/waiting-queue.ts";
import { Sequence } from "../../../engine/sequence/sequence.ts";
import type { GenerateRequest } from "../../../protocol/generate.ts";
import { idsToBytes } from "../../../protocol/ids.ts";
import { randomIds, request } from "../harness.ts";

const A = "aaaaaaaa";
const B = "bbbbbbbb";

function world(resident: ReadonlySet<string> = new Set(), runningMax = 8) {
  const tenants = new Tenants();
  const queue = new WaitingQueue({
    ...{ tenants, queueMax: 8, runningMax, blocksMax: 100 },
    isResident: (key) => resident.has(key),
  });
  const add = (namespace: string, nowMs: number, fields: Partial<GenerateRequest> = {}) => {
    const sequence = new Sequence({
      request: request({ tokens: idsToBytes(randomIds(nowMs + 1, 200)), namespace, ...fields }),
      selection: { policy: "dense", version: 1, groupTokens: 64, budgetTokens: 0, exact: true },
      sink: { token() {}, done() {}, failed() {} },
      layerCount: 2,
      nowMs,
    });
    tenants.enter(namespace, nowMs);
    queue.add(sequence);
    return sequence;
  };
  const take = (nowMs: number, reserve: (sequence: Sequence) => boolean = () => true) => {
    const sequence = queue.next(nowMs, () => true, reserve);
    if (sequence) tenants.start(sequence.namespace, sequence.blocksMax, nowMs);
    return sequence;
  };
  return { tenants, queue, add, take };
}

describe("the order of waiting requests", () => {
  it("is that of arrival where nothing else tells them apart", () => {
    const { add, take } = world();
    const sequences = [0, 1, 2].map((ms) => add(A, ms));
    expect([take(3), take(3), take(3), take(3)]).toEqual([...sequences, undefined]);
  });

  it("puts the least served tenant first, and the nearest to the cache among equals", () => {
    const probe = world().add(B, 1);
    const { tenants, add, take } = world(new Set([0, 1].map((index) => probe.blockKey(index))));
    const a = add(A, 0);
    const b = add(B, 1);
    // B's prompt has two blocks on the device; A came first.
    tenants.charge(B, 100);
    expect(take(2)).toBe(b);
    const again = add(B, 1);
    // Beyond a quantum, what was had counts more.
    tenants.charge(B, 200);
    expect(take(2)).toBe(a);
    expect(take(2)).toBe(again);
  });

  it("looks at priority, then at the time left, then at the cache, within a tenant; age beats the cache", () => {
    const probe = world().add(A, 3);
    const resident = new Set([0, 1].map((index) => probe.blockKey(index)));
    const first = world(resident);
    const plain = first.add(A, 0);
    const found = first.add(A, 3);
    const urgent = first.add(A, 4, { firstTokenMsMax: 500 });
    const high = first.add(A, 5, { priority: 1 });
    expect([1, 2, 3, 4].map(() => first.take(6))).toEqual([high, urgent, found, plain]);
    const later = world(resident);
    const old = later.add(A, 0);
    const near = later.add(A, 3);
    expect([later.take(60_000), later.take(60_000)]).toEqual([old, near]);
  });

  it("lets a bounded number pass one that waits for blocks", () => {
    const { add, take } = world(new Set(), 32);
    const large = add(A, 0, { maxTokens: 4000 });
    for (let ms = 1; ms <= 12; ms++) add(A, ms);
    const fits = (sequence: Sequence) => sequence !== large;
    let passed = 0;
    while (passed < 12 && take(20, fits)) passed += 1;
    // One tenant's requests keep their order, so none of its own may pass.
    expect(passed).toBe(0);
    for (let ms = 21; ms <= 32; ms++) add(B, ms);
    while (passed < 12 && take(40, fits)) passed += 1;
    expect(passed).toBe(8);
    expect(take(40)).toBe(large);
  });

  it("leaves a quarter of places and sequences to others once there are others", () => {
    const { queue, add, take } = world();
    for (let ms = 0; ms < 8; ms++) add(A, ms);
    expect(queue.hasRoom(A, 8)).toBe(false);
    for (let i = 0; i < 8; i++) expect(take(8)?.namespace).toBe(A);
    const { queue: shared, add: addShared, take: takeShared } = world();
    addShared(B, 0);
    takeShared(0);
    for (let ms = 1; ms <= 6; ms++) addShared(A, ms);
    expect([shared.hasRoom(A, 8), shared.hasRoom(B, 8)]).toEqual([false, true]);
    for (let i = 0; i < 6; i++) expect(takeShared(8)?.namespace).toBe(A);
    addShared(A, 9);
    expect(takeShared(9)).toBeUndefined();
  });
});

describe("what tenants have had", () => {
  it("starts for a newcomer at what the least served has had, less a credit, and is forgotten when nobody has work", () => {
    const tenants = new Tenants();
    tenants.enter(A, 0);
    tenants.charge(A, 10_000);
    tenants.enter(B, 1);
    expect(tenants.servedMs(B)).toBe(8_000);
    tenants.leave(B, 2);
    tenants.enter(B, 3);
    expect(tenants.servedMs(B)).toBe(8_000);
    tenants.leave(A, 4);
    tenants.leave(B, 4);
    tenants.enter(B, 5);
    expect([tenants.servedMs(A), tenants.servedMs(B)]).toEqual([0, 0]);
  });
});
