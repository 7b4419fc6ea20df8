import { createHash, randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { Sha256 } from "../../protocol/sha256.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("Sha256", () => {
  it("is the platform's digest at every length around the padding, and again with the same instance", () => {
    const sha = new Sha256();
    for (let length = 0; length < 300; length++) {
      const bytes = randomBytes(length);
      expect(hex(sha.digest(bytes)), `${length} bytes`).toBe(createHash("sha256").update(bytes).digest("hex"));
    }
    const large = randomBytes(100_001);
    expect(hex(sha.digest(large))).toBe(createHash("sha256").update(large).digest("hex"));
  });

  it("takes a message in parts", () => {
    const bytes = randomBytes(500);
    const parts = [bytes.subarray(0, 0), bytes.subarray(0, 63), bytes.subarray(63, 64), bytes.subarray(64)];
    expect(hex(new Sha256().digest(...parts))).toBe(createHash("sha256").update(bytes).digest("hex"));
  });
});
