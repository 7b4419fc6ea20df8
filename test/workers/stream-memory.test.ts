/** Many turns of one isolate whose readers are slow: what they hold together is bounded, and nobody loses a word. */
import { describe, expect, it } from "vitest";
import { FrameDecoder } from "../../protocol/frames.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { FRAMES } from "../../workers/session-log/event-coding.ts";
import { eventBytes, ReplayBuffer } from "../../workers/session-log/replay-buffer.ts";
import { StreamMemory } from "../../workers/session-log/stream-memory.ts";
import { TurnStream } from "../../workers/session-log/turn-stream.ts";
import type { TurnEvent } from "../../workers/turn-job.ts";
import { until } from "./world.ts";

const KIB = 1024;
const { turnBufferTightBytes, turnBufferBytesMax, streamWriteBytesMax } = LIMITS;

/** A piece of a reply that takes 1 KiB, and says which one it is. */
function piece(index: number): TurnEvent {
  const event: TurnEvent = { type: "text", choice: 0, text: String(index).padEnd(480, "."), offset: 0 };
  expect(eventBytes(event)).toBe(KIB);
  return event;
}

interface Turn {
  stream: TurnStream;
  reader: ReadableStreamDefaultReader<Uint8Array>;
  /** Pieces that the engine has said. */
  said: number;
  over: Promise<void>;
}

/** A turn whose engine says so many pieces, as fast as it may. */
function runTurn(memory: StreamMemory, pieceCount: number, resumable = false): Turn {
  const stream = new TurnStream({ resumable, memory });
  const reader = (stream.subscribe(0, FRAMES) as ReadableStream<Uint8Array>).getReader();
  const produce = async (): Promise<void> => {
    for (; turn.said < pieceCount; turn.said++) {
      await stream.ready(stream.gone);
      stream.send(piece(turn.said));
    }
    await stream.close();
  };
  const turn: Turn = { stream, reader, said: 0, over: Promise.resolve() };
  turn.over = produce();
  return turn;
}

/** Reads to the end; the numbers of the pieces that came. */
async function readAll({ reader }: Turn): Promise<number[]> {
  const decoder = new FrameDecoder();
  const numbers: number[] = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return numbers;
    for (const event of decoder.push(value) as TurnEvent[]) {
      if (event.type === "text") numbers.push(Number.parseInt(event.text, 10));
    }
  }
}

/** The engines of all of them wait, or are done. */
async function settled(turns: readonly Turn[]): Promise<void> {
  let before = -1;
  await until(async () => {
    const now = turns.reduce((sum, { said }) => sum + said, 0);
    const isStill = now === before;
    before = now;
    // A producer that waits looks again with each heartbeat.
    await new Promise((resolve) => setTimeout(resolve, 2 * LIMITS.heartbeatMs));
    return isStill;
  }, 20_000);
}

describe("turns of slow readers", () => {
  it("hold no more together than an isolate may, while one who reads gets all of it, and each gets every word in the end", {
    timeout: 60_000,
  }, async () => {
    const turnCount = 40;
    const pieceCount = 400;
    const bytesMax = 4 * 1024 * KIB;
    const memory = new StreamMemory({ bytesMax, now: () => 0 });
    const slow = Array.from({ length: turnCount }, () => runTurn(memory, pieceCount));
    await settled(slow);
    // Each might have held all of its 400 KiB, 16 MiB together.
    expect(memory.isTight).toBe(true);
    expect(memory.bytes).toBeLessThanOrEqual(bytesMax + turnCount * (turnBufferTightBytes + streamWriteBytesMax + KIB));
    const quick = runTurn(memory, pieceCount);
    expect(await readAll(quick)).toEqual(Array.from({ length: pieceCount }, (_, index) => index));
    expect(memory.isTight).toBe(true);
    for (const turn of slow) {
      expect(turn.said).toBeLessThan(pieceCount);
      expect(turn.stream.gone.aborted).toBe(false);
    }
    const read = await Promise.all(slow.map(readAll));
    for (const numbers of read) expect(numbers).toEqual(Array.from({ length: pieceCount }, (_, index) => index));
    await Promise.all(slow.map(({ over }) => over));
    expect(memory.bytes).toBe(0);
  });

  it("may each have what a turn may have, while there is room", async () => {
    const memory = new StreamMemory({ bytesMax: 2 * turnBufferBytesMax, now: () => 0 });
    const turn = runTurn(memory, 10_000);
    await settled([turn]);
    expect(turn.said * KIB).toBeGreaterThan(turnBufferBytesMax);
    expect(turn.said * KIB).toBeLessThan(turnBufferBytesMax + 2 * streamWriteBytesMax);
    await turn.reader.cancel();
    await turn.over;
    expect(memory.bytes).toBe(0);
  });

  it("that may be resumed keep less of what they said, and wait for their reader to come back, while memory is short", {
    timeout: 30_000,
  }, async () => {
    const memory = new StreamMemory({ bytesMax: 256 * KIB, now: () => 0 });
    memory.hold("other turns", 256 * KIB);
    const turn = runTurn(memory, 1_000, true);
    const decoder = new FrameDecoder();
    let got = 0;
    while (got < 500) got += decoder.push((await turn.reader.read()).value as Uint8Array).length;
    expect(turn.stream.held.events.length * KIB).toBeLessThanOrEqual(turnBufferTightBytes + 2 * streamWriteBytesMax);
    await turn.reader.cancel();
    await settled([turn]);
    expect(turn.said).toBeLessThan(1_000);
    expect(turn.stream.gone.aborted).toBe(false);
    const back = turn.stream.subscribe(turn.stream.held.first, FRAMES) as ReadableStream<Uint8Array>;
    const from = turn.stream.held.first;
    const numbers = await readAll({ ...turn, reader: back.getReader() });
    expect(numbers).toEqual(Array.from({ length: 1_000 - from }, (_, index) => from + index));
  });
});

describe("StreamMemory", () => {
  it("counts what turns hold, and forgets one that says nothing more: its object was lost", () => {
    let nowMs = 0;
    const memory = new StreamMemory({ bytesMax: 100, now: () => nowMs });
    memory.hold("lost", 80);
    memory.hold("a", 30);
    expect([memory.bytes, memory.isTight]).toEqual([110, true]);
    memory.hold("a", 10);
    expect([memory.bytes, memory.isTight]).toEqual([90, false]);
    for (nowMs = 1_000; nowMs <= 6_000; nowMs += 1_000) memory.hold("a", 20);
    expect(memory.bytes).toBe(20);
    memory.release("a");
    memory.release("a");
    expect(memory.bytes).toBe(0);
  });
});

describe("ReplayBuffer.next", () => {
  it("gives what waits piece by piece, each event once, and at least one", () => {
    const buffer = new ReplayBuffer(3);
    for (let index = 0; index < 9; index++) buffer.push(piece(index), 3 + 2 * index);
    const seen: number[] = [];
    for (let from = 0; from < buffer.end; ) {
      const { events, end, bytes } = buffer.next(from, 2 * KIB);
      expect(bytes).toBe(events.length * KIB);
      expect(events.length).toBeLessThanOrEqual(2);
      seen.push(...events.map(({ number }) => number));
      from = end;
    }
    expect(seen).toEqual([3, 5, 7, 9, 11, 13, 15, 17, 19]);
    expect(buffer.next(4, 1)).toMatchObject({ end: 6, bytes: KIB });
    expect(buffer.next(20, KIB)).toEqual({ events: [], end: 20, bytes: 0 });
  });
});
