/** What every decoder must stand: each flipped bit, each cut, noise, and damage under a checksum made good again. */
import { expect } from "vitest";
import { crc32, sha256 } from "../../storage/checksum.ts";
import { FormatError } from "../../storage/format-error.ts";
import { noise, seededRandom } from "./random.ts";

type Decode = (bytes: Uint8Array) => unknown;

/** Every single flipped bit is refused as `corrupt`, in the version too. */
export function expectEveryFlipRefused(bytes: Uint8Array, decode: Decode): void {
  decode(bytes);
  for (let bit = 0; bit < bytes.byteLength * 8; bit++) {
    const flipped = bytes.slice();
    flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
    expect(codeOf(flipped, decode), `bit ${bit} flipped`).toBe("corrupt");
  }
}

/** Every cut is refused, and so is a byte too many. */
export function expectEveryCutRefused(bytes: Uint8Array, decode: Decode): void {
  for (let length = 0; length < bytes.byteLength; length++) {
    expect(codeOf(bytes.subarray(0, length), decode), `cut to ${length} bytes`).toBe("corrupt");
  }
  const longer = new Uint8Array(bytes.byteLength + 1);
  longer.set(bytes);
  expect(codeOf(longer, decode), "one byte too many").toBe("corrupt");
}

/** Noise, alone and behind a good beginning, is refused and throws nothing else. */
export function expectNoiseRefused(bytes: Uint8Array, decode: Decode, seed: number): void {
  const random = seededRandom(seed);
  for (let round = 0; round < 500; round++) {
    const hostile = noise(seed + round, Math.floor(random() * 400));
    hostile.set(bytes.subarray(0, Math.floor(random() * Math.min(64, hostile.byteLength))));
    expect(codeOf(hostile, decode), `seed ${seed}, round ${round}`).toBe("corrupt");
  }
}

/**
 * Changes bytes and repairs the checksum with `repair`: the decoder is then alone with hostile content. It may accept it
 * (a token id is as good as another) or refuse it, but throws nothing else. Returns how often it refused.
 */
export function countRepairedRefused(bytes: Uint8Array, repair: Decode, decode: Decode, seed: number): number {
  const random = seededRandom(seed);
  let refused = 0;
  for (let round = 0; round < 2_000; round++) {
    const hostile = bytes.slice();
    const changes = 1 + Math.floor(random() * 3);
    for (let i = 0; i < changes; i++) {
      const value = [0, 1, 127, 128, 255, Math.floor(random() * 256)][Math.floor(random() * 6)] as number;
      hostile[Math.floor(random() * Math.min(bytes.byteLength, 160))] = value;
    }
    repair(hostile);
    if (codeOf(hostile, decode) !== undefined) refused++;
  }
  return refused;
}

/** Makes the trailing SHA-256 of an envelope good again. */
export function repairEnvelope(bytes: Uint8Array): void {
  bytes.set(sha256(bytes.subarray(0, bytes.byteLength - 32)), bytes.byteLength - 32);
}

/** Makes a segment's header checksum good again, where its length still says where that is. */
export function repairSegment(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerBytes = view.getUint32(12, true);
  if (headerBytes < 16 || headerBytes > bytes.byteLength) return;
  view.setUint32(headerBytes - 4, crc32(bytes.subarray(0, headerBytes - 4)), true);
}

/** The code with which bytes are refused; undefined when they are accepted. Any other error is thrown on. */
export function codeOf(bytes: Uint8Array, decode: Decode): string | undefined {
  try {
    decode(bytes);
    return undefined;
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    return error.code;
  }
}
