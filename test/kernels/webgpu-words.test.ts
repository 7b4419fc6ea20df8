/** The table of a step: what a GPU has behind each step is what was pushed, though little of it is sent again. */
import { describe, expect, it } from "vitest";
import { Words } from "../../kernels/webgpu/words.ts";
import { Random } from "./support/random.ts";

/** A buffer on a GPU, and how many words were written into it. */
class FakeBuffer {
  readonly memory = new Int32Array(1 << 15);
  written = 0;

  /** Sends a table, and expects its words. */
  expectSent(words: Words, expected: readonly number[]): void {
    const queue = {
      writeBuffer: (_: unknown, bytesAt: number, data: Int32Array, from: number, count: number): void => {
        this.memory.set(data.subarray(from, from + count), bytesAt / 4);
        this.written += count;
      },
    };
    words.sendTo(this as unknown as GPUBuffer, queue as unknown as GPUQueue);
    expect([...this.memory.subarray(0, words.length)]).toEqual(expected);
  }
}

const owner = {};
const SHAPE = { rows: 4, stride: 130, count: 100 };
const rowsOf = (values: Int32Array): number[] =>
  [0, 1, 2, 3].flatMap((row) => [...values.subarray(row * 130, row * 130 + 100)]);

/** One step: a few words, ids with their owner, and a few words behind them. */
function fill(words: Words, ids: Int32Array, { by = owner, isRight = true } = {}): boolean {
  words.clear();
  words.push([1, 2, 3]);
  const { at, isKept } = words.pushRows(ids, SHAPE, by);
  if (isRight) words.vouch(at, by);
  words.push([4, 5]);
  return isKept;
}

describe("words of a step", () => {
  const ids = Int32Array.from({ length: 520 }, (_, index) => index * 7);
  const expected = [1, 2, 3, ...rowsOf(ids), 4, 5];

  it("rows that lie there are not sent again, and what lies between them does not count", () => {
    const [words, buffer] = [new Words(), new FakeBuffer()];
    expect(fill(words, ids)).toBe(false);
    buffer.expectSent(words, expected);
    expect(buffer.written).toBe(405);
    const others = ids.slice();
    others[115] = -1;
    expect(fill(words, others)).toBe(true);
    buffer.expectSent(words, expected);
    expect(buffer.written).toBe(405 + 5);
    others[0] = -1;
    expect(fill(words, others)).toBe(false);
    buffer.expectSent(words, [1, 2, 3, ...rowsOf(others), 4, 5]);
  });

  it("all is sent to another buffer", () => {
    const [words, buffer, larger] = [new Words(), new FakeBuffer(), new FakeBuffer()];
    fill(words, ids);
    buffer.expectSent(words, expected);
    fill(words, ids);
    larger.expectSent(words, expected);
    fill(words, ids);
    buffer.expectSent(words, expected);
    expect([buffer.written, larger.written]).toEqual([810, 405]);
  });

  it("what a step that was given up has written over is sent again", () => {
    const [words, buffer] = [new Words(), new FakeBuffer()];
    fill(words, ids);
    buffer.expectSent(words, expected);
    fill(
      words,
      Int32Array.from(ids, (id) => id + 1),
    );
    expect(
      fill(
        words,
        Int32Array.from(ids, (id) => id + 1),
      ),
    ).toBe(false);
    buffer.expectSent(words, [1, 2, 3, ...rowsOf(ids).map((id) => id + 1), 4, 5]);
  });

  it("rows are known to who vouched for them only", () => {
    const [words, buffer, other] = [new Words(), new FakeBuffer(), {}];
    fill(words, ids, { isRight: false });
    buffer.expectSent(words, expected);
    expect(fill(words, ids)).toBe(false);
    buffer.expectSent(words, expected);
    expect(fill(words, ids, { by: other })).toBe(false);
    buffer.expectSent(words, expected);
    expect(fill(words, ids, { by: other })).toBe(true);
  });

  it("rows that an array does not have are not there", () => {
    const [words, buffer] = [new Words(), new FakeBuffer()];
    fill(words, ids);
    buffer.expectSent(words, expected);
    expect(fill(words, ids.subarray(0, 489))).toBe(false);
  });

  it("after any run of steps the buffer has what was pushed (1,000 steps)", () => {
    const random = new Random(7);
    const upTo = (end: number): number => random.integer(end);
    const [words, owners] = [new Words(), [{}, {}]];
    const arrays = [0, 1, 2].map(() => Int32Array.from({ length: 700 }, () => upTo(9) - 1));
    let buffer = new FakeBuffer();
    let [pushed, written] = [0, 0];
    for (let step = 0; step < 1000; step++) {
      words.clear();
      const all: number[] = [];
      for (let run = 0; run < 3; run++) {
        const few = Array.from({ length: upTo(3) }, () => upTo(5));
        words.push(few);
        const values = arrays[upTo(8) === 0 ? upTo(3) : run]!;
        if (upTo(6) === 0) values[upTo(700)] = upTo(9) - 1;
        const shape = upTo(9) === 0 ? { rows: 3, stride: 200, count: 120 } : { rows: 2, stride: 350, count: 300 };
        const { at } = words.pushRows(values, shape, owners[upTo(12) === 0 ? 1 : 0]!);
        words.vouch(at, owners[0]!);
        all.push(...few);
        for (let row = 0; row < shape.rows; row++) {
          all.push(...values.subarray(row * shape.stride, row * shape.stride + shape.count));
        }
      }
      if (upTo(10) === 0) continue;
      if (upTo(50) === 0) buffer = new FakeBuffer();
      const before = buffer.written;
      buffer.expectSent(words, all);
      written += buffer.written - before;
      pushed += all.length;
    }
    expect(written).toBeLessThan(pushed * 0.95);
  });
});
