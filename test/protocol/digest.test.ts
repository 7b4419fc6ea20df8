import { createHash, randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { contentDigestHex, hex } from "../../protocol/digest.ts";

describe("contentDigestHex", () => {
  it("is SHA-256, at once for few bytes and awaited for many", async () => {
    for (const length of [0, 1, 55, 56, 64, 1_023, 1_024, 1_025, 70_000]) {
      const bytes = new Uint8Array(randomBytes(length));
      const digest = contentDigestHex(bytes);
      expect(typeof digest === "string", `${length} bytes`).toBe(length <= 1_024);
      expect(await digest, `${length} bytes`).toBe(createHash("sha256").update(bytes).digest("hex"));
    }
  });
});

describe("hex", () => {
  it("writes a view, and not what lies around it", () => {
    const bytes = new Uint8Array(randomBytes(64));
    expect(hex(bytes.buffer)).toBe(Buffer.from(bytes).toString("hex"));
    expect(hex(bytes.subarray(3, 35))).toBe(Buffer.from(bytes.subarray(3, 35)).toString("hex"));
  });
});
