import { createHash, createHmac } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import {
  engineAudience,
  equalInConstantTime,
  ReplayGuard,
  signRequest,
  verifySignature,
} from "../../protocol/signature.ts";

const key = "a secret of enough characters";
const target = { audience: engineAudience("engine-1"), method: "POST", path: "/v1/generate" };
const body = new TextEncoder().encode("body");
const NOW = 1_800_000_000_000;

describe("a signature", () => {
  it("is an HMAC over the lines that the format names", async () => {
    const header = await signRequest(key, target, body, NOW);
    const [, ts, nonce, digest, sig] = /^Quire-HMAC ts=(\d+),nonce=(\w+),digest=(\w+),sig=(\w+)$/.exec(header) ?? [];
    expect(ts).toBe(String(NOW));
    expect(digest).toBe(createHash("sha256").update("body").digest("hex"));
    const text = `quire-signature-1\nengine engine-1\nPOST\n/v1/generate\n${NOW}\n${nonce}\n${digest}`;
    expect(sig).toBe(createHmac("sha256", key).update(text).digest("hex"));
    expect(await verifySignature(key, target, header, NOW)).toEqual({
      nonce,
      digest,
      expiresMs: NOW + LIMITS.signatureSkewMsMax,
    });
    expect(await signRequest(key, target, body, NOW)).not.toBe(header);
  });

  it("is good for this key, peer, method, path and time only", async () => {
    const header = await signRequest(key, target, body, NOW);
    const good = (changes: object, at = NOW, secret = key) =>
      verifySignature(secret, { ...target, ...changes }, header, at).then((claims) => claims !== undefined);
    expect(await good({})).toBe(true);
    expect(await good({ audience: engineAudience("engine-2") })).toBe(false);
    expect(await good({ audience: "edge" })).toBe(false);
    expect(await good({ method: "PUT" })).toBe(false);
    expect(await good({ path: "/v1/cancel" })).toBe(false);
    expect(await good({}, NOW, `${key}!`)).toBe(false);
    expect(await good({}, NOW, "")).toBe(false);
    const skew = LIMITS.signatureSkewMsMax;
    expect([await good({}, NOW - skew), await good({}, NOW + skew)]).toEqual([true, true]);
    expect([await good({}, NOW - skew - 1), await good({}, NOW + skew + 1)]).toEqual([false, false]);
  });

  it("does not survive the change of any character of its header", async () => {
    const header = await signRequest(key, target, body, NOW);
    for (let index = 0; index < header.length; index++) {
      const other = header[index] === "0" ? "1" : "0";
      const changed = header.slice(0, index) + other + header.slice(index + 1);
      expect(await verifySignature(key, target, changed, NOW), changed).toBeUndefined();
    }
    for (const bad of ["", "Bearer x", `${header},`, `${header}, ${header}`, ` ${header}`, header.toUpperCase()]) {
      expect(await verifySignature(key, target, bad, NOW)).toBeUndefined();
    }
  });
});

describe("a secret of several keys", () => {
  it("signs with the first and accepts all: a key is replaced step by step, and nobody is refused", async () => {
    const [old, next] = ["an old key of 16", "the next key of 16"];
    const accepts = async (signer: string, verifier: string) =>
      (await verifySignature(verifier, target, await signRequest(signer, target, body, NOW), NOW)) !== undefined;
    // Edge and engines, before, during and after; each step changes one side.
    const steps = [
      [old, old],
      [old, `${old},${next}`],
      [`${next}, ${old}`, `${old},${next}`],
      [`${next},${old}`, next],
      [next, next],
    ] as const;
    for (const [edge, engine] of steps) {
      expect(await accepts(edge, engine)).toBe(true);
      expect(await accepts(engine, edge)).toBe(true);
    }
    expect(await accepts(old, next)).toBe(false);
    expect(await accepts(next, old)).toBe(false);
    expect(await verifySignature(",", target, await signRequest(old, target, body, NOW), NOW)).toBeUndefined();
    await expect(signRequest(" , ", target, body, NOW)).rejects.toThrow("there is a key to sign with");
  });
});

describe("nonces", () => {
  it("come once, and are forgotten when they are too old to come again", () => {
    const guard = new ReplayGuard(4);
    const at = (nonce: string, expiresMs: number, nowMs: number) => guard.admit({ nonce, expiresMs }, nowMs);
    expect(at("a", 100, 0)).toBe(true);
    expect(at("a", 100, 0)).toBe(false);
    expect(at("a", 100, 100)).toBe(false);
    expect(at("b", 50, 0)).toBe(true);
    expect([at("c", 200, 0), at("d", 200, 0)]).toEqual([true, true]);
    // Full: nothing is forgotten early, and nothing more comes in.
    expect(at("e", 200, 0)).toBe(false);
    expect(at("a", 100, 0)).toBe(false);
    // "b" is behind "a" and older: it makes room when room is needed.
    expect(at("e", 200, 51)).toBe(true);
    expect(at("f", 200, 51)).toBe(false);
    expect(guard.size).toBe(4);
    expect(at("f", 300, 201)).toBe(true);
    expect(guard.size).toBe(1);
  });
});

describe("equalInConstantTime", () => {
  it("is equality", () => {
    const bytes = fc.uint8Array({ maxLength: 6, max: 2 });
    fc.assert(
      fc.property(bytes, bytes, (a, b) => equalInConstantTime(a, b) === Buffer.from(a).equals(Buffer.from(b))),
      { numRuns: 5_000 },
    );
    expect(equalInConstantTime(new Uint8Array(0), new Uint8Array(0))).toBe(true);
    expect(equalInConstantTime(new Uint8Array(1), new Uint8Array(0))).toBe(false);
    expect(equalInConstantTime(new Uint8Array(0), new Uint8Array(1))).toBe(false);
  });
});
