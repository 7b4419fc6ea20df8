import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { isStoreKey } from "../../storage/key-rules.ts";
import { namespacePrefix, objectKeys, parseObjectKey, summaryFormOf, tailWritingOf } from "../../storage/keys.ts";
import { chainOf, SMALL, sampleKeys, TINY } from "./samples.ts";

describe("object keys", () => {
  const fingerprint = "0123456789abcdef".repeat(4);
  const space = { namespace: "ab01", modelFingerprint: fingerprint, numericsId: "wasm-1-fused", geometry: SMALL };

  it("have the documented form", () => {
    const keys = objectKeys(space);
    const sessionKey = createHash("sha256").update("séance", "utf8").digest("hex");
    const chain = chainOf(1);
    expect(keys.prefix).toMatch(/^kv\/ab01\/0123456789abcdef\.wasm-1-fused\.2-[0-9a-f]{12}\/$/);
    expect(keys.segment(chain)).toBe(`${keys.prefix}seg/${chain}`);
    expect(keys.summary("min-max", chain, 4096)).toBe(`${keys.prefix}sum-min-max/${chain}-4096-layers`);
    expect(keys.summary("min-max", chain, 4096, "slots")).toBe(`${keys.prefix}sum-min-max/${chain}-4096`);
    for (const form of ["layers", "slots"] as const)
      expect(summaryFormOf(keys.summary("none", chain, 64, form))).toBe(form);
    expect(keys.tail("séance", chain, 7)).toBe(`${keys.prefix}tail/${sessionKey}/${chain}-7`);
    expect(keys.tail("séance", chain, 7, "0f1e")).toBe(`${keys.prefix}tail/${sessionKey}/${chain}-7-0f1e`);
    expect(tailWritingOf(keys.tail("séance", chain, 7, "0f1e"))).toBe("0f1e");
    expect(tailWritingOf(keys.tail("séance", chain, 7))).toBeUndefined();
    expect(() => keys.tail("séance", chain, 7, "../x")).toThrow(AssertionError);
    expect(keys.session("séance")).toBe(`${keys.prefix}session/${sessionKey}`);
    expect(keys.tail("séance", chain, 7).startsWith(keys.tailPrefix("séance"))).toBe(true);
  });

  it("bind tenant, model, numerics and every setting of the layout", () => {
    const prefix = objectKeys(space).prefix;
    for (const change of [
      { namespace: "ab02" },
      { modelFingerprint: `f${fingerprint.slice(1)}` },
      { numericsId: "wasm-1-unfused" },
      { geometry: TINY },
      { geometry: { ...SMALL, segmentTokens: 64 } },
      { geometry: { ...SMALL, summaryKinds: ["min-max" as const] } },
    ]) {
      expect(objectKeys({ ...space, ...change }).prefix).not.toBe(prefix);
    }
  });

  it("are valid and stay in their folder, whatever the session id", () => {
    const keys = sampleKeys(SMALL);
    fc.assert(
      fc.property(
        fc.oneof(fc.string({ unit: "binary" }), fc.constantFrom("../../x", "/", "\0", "session/..")),
        (id) => {
          for (const key of [keys.session(id), keys.tail(id, chainOf(0), 1)]) {
            expect(isStoreKey(key)).toBe(true);
            expect(key.startsWith(keys.prefix)).toBe(true);
            expect(parseObjectKey(key)?.namespacePrefix).toBe(namespacePrefix("ab01"));
          }
        },
      ),
      { seed: 14, numRuns: 200 },
    );
  });

  it("are the same in another process", () => {
    const script = `
      import { sampleKeys, SMALL, chainOf } from "./test/storage/samples.ts";
      process.stdout.write(sampleKeys(SMALL).tail("x", chainOf(1), 2));`;
    const other = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
    expect(other).toBe(sampleKeys(SMALL).tail("x", chainOf(1), 2));
  });

  it("take impossible parts for a programmer's error", () => {
    for (const change of [
      { namespace: "" },
      { namespace: "../x" },
      { namespace: "AB" },
      { modelFingerprint: "short" },
      { numericsId: "a/b" },
      { numericsId: "" },
    ]) {
      expect(() => objectKeys({ ...space, ...change }), JSON.stringify(change)).toThrow(AssertionError);
    }
    expect(() => objectKeys(space).segment("not a chain")).toThrow(AssertionError);
    expect(() => objectKeys(space).summary("none", chainOf(1), 0)).toThrow(AssertionError);
    expect(() => namespacePrefix("a/b")).toThrow(AssertionError);
  });

  it("are told apart from keys of others", () => {
    const keys = sampleKeys(SMALL);
    expect(parseObjectKey(keys.segment(chainOf(1)))?.kind).toBe("seg");
    expect(parseObjectKey(keys.summary("mean-deviation", chainOf(1), 128))?.kind).toBe("sum");
    expect(parseObjectKey(`kv/ab01/0123456789abcdef.wasm-1.1-abc/sum/${chainOf(1)}-128`)?.kind).toBe("sum");
    for (const key of [
      "kv/ab01/x",
      "other/ab01/x/seg/y",
      "kv/AB/x/seg/y",
      "kv/ab01/x/odd/y",
      "kv/ab01/x/seg-min-max/y",
    ]) {
      expect(parseObjectKey(key)).toBeUndefined();
    }
  });
});
