/**
 * llama.cpp's file of one sequence's state (version 3), made longer: the cells of a short one are repeated up to the wanted count. Loading
 * it fills a context with KV in a second, where a prefill would take minutes; attention costs the same whatever the values are.
 *
 * Layout, little-endian: magic "ggsq", version, token count, tokens; streams (1), cells; per cell position, 1, sequence; then whether V is
 * transposed, layers; per layer of K: type i32, row bytes u64, rows; of V the same, or type i32, element bytes u32, channels u32 and
 * `[channel][cell]`.
 */
import { open } from "node:fs/promises";
import { UsageError } from "../../cli/usage-error.ts";

const MAGIC = 0x67677371;
const VERSION = 3;
const CELL_BYTES = 12;

/** Reads numbers in order. */
class Cursor {
  readonly bytes: Buffer;
  at = 0;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  u32(): number {
    this.at += 4;
    return this.bytes.readUInt32LE(this.at - 4);
  }

  u64(): number {
    this.at += 8;
    return Number(this.bytes.readBigUInt64LE(this.at - 8));
  }

  take(count: number): Buffer {
    this.at += count;
    if (this.at > this.bytes.length) throw new UsageError("llama.cpp's state file ends early");
    return this.bytes.subarray(this.at - count, this.at);
  }
}

/**
 * Writes a state of `tokenCount` tokens made of the short state `seed`.
 * @throws {UsageError} when the peer writes states of another version or layout.
 */
export async function writeLongState(seed: Buffer, tokenCount: number, path: string): Promise<void> {
  const file = await open(path, "w");
  try {
    for (const part of longState(seed, tokenCount)) {
      for (let done = 0; done < part.length; ) done += (await file.write(part, done)).bytesWritten;
    }
  } finally {
    await file.close();
  }
}

/** The parts of the long state, in order. */
export function* longState(seed: Buffer, tokenCount: number): Generator<Buffer> {
  const cursor = new Cursor(seed);
  if (cursor.u32() !== MAGIC || cursor.u32() !== VERSION)
    throw new UsageError("the peer's state file is of another version");
  const tokens = cursor.take(4 * cursor.u32());
  yield words(MAGIC, VERSION, tokenCount);
  yield repeated(tokens, tokenCount * 4);
  const streamCount = cursor.u32();
  const cellCount = cursor.u32();
  if (streamCount !== 1 || cellCount * 4 !== tokens.length)
    throw new UsageError("the peer's state is not one sequence");
  const cells = cursor.take(cellCount * CELL_BYTES);
  if (cells.readUInt32LE(4) !== 1 || cells.readUInt32LE(CELL_BYTES) !== 1) {
    throw new UsageError("the peer's state describes its cells in another way");
  }
  yield words(1, tokenCount);
  const sequence = cells.readUInt32LE(8);
  yield words(...Array.from({ length: tokenCount }, (_, position) => [position, 1, sequence]).flat());
  const transposed = cursor.u32();
  const layerCount = cursor.u32();
  yield words(transposed, layerCount);
  for (let layer = 0; layer < layerCount; layer++) yield* rowsOf(cursor, cellCount, tokenCount);
  for (let layer = 0; layer < layerCount; layer++) {
    yield* transposed === 1 ? channelsOf(cursor, cellCount, tokenCount) : rowsOf(cursor, cellCount, tokenCount);
  }
  if (cursor.at !== seed.length) throw new UsageError("the peer's state has more in it than is known");
}

function* rowsOf(cursor: Cursor, cellCount: number, tokenCount: number): Generator<Buffer> {
  yield cursor.bytes.subarray(cursor.at, cursor.at + 12);
  cursor.u32();
  const rowBytes = cursor.u64();
  yield repeated(cursor.take(rowBytes * cellCount), rowBytes * tokenCount);
}

function* channelsOf(cursor: Cursor, cellCount: number, tokenCount: number): Generator<Buffer> {
  yield cursor.bytes.subarray(cursor.at, cursor.at + 12);
  cursor.u32();
  const elementBytes = cursor.u32();
  const channelCount = cursor.u32();
  for (let channel = 0; channel < channelCount; channel++) {
    yield repeated(cursor.take(elementBytes * cellCount), elementBytes * tokenCount);
  }
}

function words(...values: number[]): Buffer {
  const out = Buffer.alloc(values.length * 4);
  for (const [index, value] of values.entries()) out.writeUInt32LE(value, index * 4);
  return out;
}

function repeated(part: Buffer, bytes: number): Buffer {
  return Buffer.alloc(bytes, part);
}
