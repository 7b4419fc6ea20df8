import { describe, expect, it, vi } from "vitest";
import { Arena, WasmHeap } from "../../kernels/wasm/heap.ts";
import { openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { Random, SEED } from "./support/random.ts";

const MIB = 1024 * 1024;

describe("wasm heap", () => {
  it(`hands out aligned memory that never overlaps, and gets all of it back (seed ${SEED})`, () => {
    const heap = new WasmHeap(16 * MIB);
    const random = new Random(SEED);
    const held: { at: number; bytes: number; mark: number }[] = [];
    for (let step = 0; step < 4_000; step++) {
      if (held.length > 0 && (random.next() < 0.48 || held.length > 60)) {
        const [span] = held.splice(random.integer(held.length), 1);
        const bytes = heap.bytes.subarray(span!.at, span!.at + span!.bytes);
        if (!bytes.every((byte) => byte === span!.mark))
          expect.fail(`step ${step}: memory at ${span!.at} was overwritten`);
        heap.release(span!.at);
        continue;
      }
      const bytes = random.integer(random.next() < 0.1 ? 100_000 : 2_000);
      const isZeroed = random.next() < 0.5;
      const at = isZeroed ? heap.allocateZeroed(bytes) : heap.allocate(bytes);
      const mark = 1 + random.integer(255);
      expect(at % 64).toBe(0);
      const view = heap.bytes.subarray(at, at + bytes);
      if (isZeroed && !view.every((byte) => byte === 0)) expect.fail(`step ${step}: memory at ${at} is not zero`);
      view.fill(mark);
      held.push({ at, bytes, mark });
    }
    for (const span of held) heap.release(span.at);
    // In one piece again: nearly everything can be had at once.
    expect(heap.allocate(16 * MIB - 8192)).toBe(4096);
  });

  it("refuses what is beyond its limit and goes on", () => {
    const heap = new WasmHeap(2 * MIB);
    const at = heap.allocate(MIB);
    expect(() => heap.allocate(MIB)).toThrow(expect.objectContaining({ code: "engine_failed" }));
    heap.release(at);
    expect(heap.allocate(MIB)).toBe(at);
    expect(() => heap.release(at + 64)).toThrow("not allocated");
  });

  it("an arena's pieces are apart, survive growth, and are one piece after it was cleared", () => {
    const heap = new WasmHeap(16 * MIB);
    const arena = new Arena(heap);
    for (let round = 0; round < 3; round++) {
      arena.clear();
      const at = Array.from({ length: 40 }, (_, index) => arena.take(index * 1000));
      at.forEach((each, index) => {
        heap.bytes.fill(index + 1, each, each + index * 1000);
      });
      at.forEach((each, index) => {
        const piece = heap.bytes.subarray(each, each + index * 1000);
        if (!piece.every((byte) => byte === index + 1)) expect.fail(`round ${round}: piece ${index} was overwritten`);
      });
      if (round < 1) continue;
      for (let index = 1; index < 40; index++)
        expect(at[index]! - at[index - 1]!).toBe(Math.ceil(((index - 1) * 1000) / 16) * 16);
    }
  });

  it("an arena that finds no room in one piece goes on in pieces", () => {
    const heap = new WasmHeap(4 * MIB);
    const arena = new Arena(heap);
    arena.take(MIB);
    const between = heap.allocate(64);
    arena.take(MIB);
    const rest = heap.allocate(1.5 * MIB);
    arena.clear();
    heap.bytes.fill(7, rest, rest + 1.5 * MIB);
    for (const at of [arena.take(MIB), arena.take(MIB)]) heap.bytes.fill(1, at, at + MIB);
    expect(heap.bytes.subarray(rest, rest + 1.5 * MIB).every((byte) => byte === 7)).toBe(true);
    heap.release(between);
  });

  it("an arena goes on in pieces where the host gives no more memory", () => {
    const heap = new WasmHeap(64 * MIB);
    const arena = new Arena(heap);
    arena.take(MIB);
    const between = heap.allocate(64);
    arena.take(MIB);
    const grow = vi.spyOn(heap.memory, "grow").mockImplementation(() => {
      throw new RangeError("WebAssembly.Memory.grow(): Unable to grow instance memory");
    });
    arena.clear();
    const pieces = [arena.take(MIB), arena.take(MIB)];
    expect(pieces.every((at) => at > between || at + MIB <= between)).toBe(true);
    expect(() => arena.take(MIB)).toThrow(expect.objectContaining({ code: "engine_failed" }));
    grow.mockRestore();
    expect(arena.take(MIB)).toBeGreaterThan(0);
  });

  it("a device says when its memory is full, and can use what was released", async () => {
    const device = await openWasmDevice({ threads: 1, memoryBytesMax: 4 * MIB });
    expect(device.report.memoryBytesMax).toBe(4 * MIB);
    const buffer = device.buffer("most", 3 * MIB);
    expect(() => device.buffer("more", 2 * MIB)).toThrow(expect.objectContaining({ code: "engine_failed" }));
    device.release(buffer);
    const again = device.buffer("again", 3 * MIB);
    expect((await device.read(again, 3 * MIB - 4, 4)).every((byte) => byte === 0)).toBe(true);
    await device.close();
  });
});
