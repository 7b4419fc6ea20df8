import { describe, expect, it } from "vitest";
import { giveBack } from "../../storage/bytes.ts";

describe("giving memory back", () => {
  it("empties bytes that have their memory for themselves", () => {
    const bytes = new Uint8Array(100).fill(7);
    giveBack(bytes);
    expect(bytes.byteLength).toBe(0);
    expect(bytes.buffer.detached).toBe(true);
    giveBack(bytes);
  });

  it("leaves bytes alone that share it", () => {
    const whole = new Uint8Array(100).fill(7);
    for (const part of [whole.subarray(1), whole.subarray(0, 99), new Uint8Array(0)]) giveBack(part);
    expect(whole).toEqual(new Uint8Array(100).fill(7));
  });
});
