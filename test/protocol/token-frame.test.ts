/** Frames of token ids, read without the general decoder: what it takes is what that one would have read, and it takes nothing else. */
import { randomBytes, randomInt } from "node:crypto";
import { describe, expect, it } from "vitest";
import { encodeFrame, FrameDecoder } from "../../protocol/frames.ts";
import { tokenFrameIds } from "../../protocol/token-frame.ts";

const tokens = (idCount: number) => ({ type: "tokens", ids: new Uint8Array(randomBytes(4 * idCount)) });

function joined(...chunks: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(chunks.flatMap((chunk) => [...chunk]));
}

describe("tokenFrameIds", () => {
  it.each([0, 1, 2, 31, 63])(
    "reads a frame of %i ids, wherever it lies in its memory, and keeps nothing of it",
    (idCount) => {
      const event = tokens(idCount);
      const frame = encodeFrame(event);
      const memory = joined(randomBytes(7), frame, randomBytes(9));
      const chunk = memory.subarray(7, 7 + frame.byteLength);
      const ids = tokenFrameIds(chunk);
      expect(ids).toEqual(event.ids);
      memory.fill(0);
      expect(ids).toEqual(event.ids);
    },
  );

  it("leaves to the decoder whatever else a chunk may be", () => {
    const frame = encodeFrame(tokens(2));
    const others = {
      empty: new Uint8Array(0),
      "more than one byte can count": encodeFrame(tokens(64)),
      "with logprobs": encodeFrame({ ...tokens(2), logprobs: [] }),
      "in another order": encodeFrame({ ids: tokens(2).ids, type: "tokens" }),
      "of another type": encodeFrame({ ...tokens(2), type: "tokenz" }),
      "ids that are no bytes": encodeFrame({ type: "tokens", ids: [1, 2] }),
      "two frames": joined(frame, frame),
      "a frame and a byte": joined(frame, [0] as unknown as Uint8Array),
    };
    for (const [name, chunk] of Object.entries(others)) expect(tokenFrameIds(chunk), name).toBeUndefined();
    for (let end = 0; end < frame.byteLength; end++) expect(tokenFrameIds(frame.subarray(0, end))).toBeUndefined();
  });

  it("agrees with the decoder about every damaged frame that it takes", () => {
    let takenCount = 0;
    for (let round = 0; round < 20_000; round++) {
      const frame = encodeFrame(tokens(randomInt(4)));
      frame[randomInt(frame.byteLength)] = randomInt(256);
      const ids = tokenFrameIds(frame);
      if (ids === undefined) continue;
      takenCount += 1;
      expect(new FrameDecoder().push(frame)).toEqual([{ type: "tokens", ids }]);
    }
    expect(takenCount).toBeGreaterThan(1_000);
  });
});
