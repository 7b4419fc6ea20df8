import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { beginEnvelope, sealEnvelope } from "../../storage/envelope.ts";
import {
  commitManifest,
  decodeManifest,
  encodeManifest,
  loadManifest,
  type Manifest,
  objectKeysOf,
} from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  codeOf,
  expectEveryCutRefused,
  expectEveryFlipRefused,
  expectNoiseRefused,
  repairEnvelope,
} from "./hostile.ts";
import { chainOf, SMALL, sampleKeys, sampleSession } from "./samples.ts";

const session = (segmentCount = 2, tailTokens = 70, sessionId = "a session") =>
  sampleSession(SMALL, { sessionId, segmentCount, tailTokens });

/** An intact envelope around any text. */
function envelopeOf(text: string | Uint8Array, version = 2): Uint8Array {
  const body = Buffer.from(text as string);
  const envelope = beginEnvelope({ magic: "QUIREMAN", version }, body.byteLength);
  envelope.body.set(body);
  return sealEnvelope(envelope);
}

describe("manifest", () => {
  it("comes back as it was written, with and without tail and segments", () => {
    for (const [segmentCount, tailTokens] of [
      [2, 70],
      [3, 0],
      [0, 1],
    ] as const) {
      const { manifest } = session(segmentCount, tailTokens);
      const decoded = decodeManifest(encodeManifest(manifest));
      expect(decoded).toEqual(manifest);
      expect("tail" in decoded).toBe(tailTokens > 0);
    }
  });

  it("has the same bytes however the object was put together", () => {
    const { manifest } = session();
    const reversed = Object.fromEntries(Object.entries(manifest).reverse()) as unknown as Manifest;
    expect(Buffer.from(encodeManifest(reversed)).equals(encodeManifest(manifest))).toBe(true);
  });

  it("notices every flipped bit, every cut and noise", () => {
    const bytes = encodeManifest(session(1, 1, "s").manifest);
    expectEveryFlipRefused(bytes, decodeManifest);
    expectEveryCutRefused(bytes, decodeManifest);
    expectNoiseRefused(bytes, decodeManifest, 24);
  });

  it("refuses a newer version with a code of its own", () => {
    expect(codeOf(envelopeOf("not even JSON", 4), decodeManifest)).toBe("unsupported_version");
    const bytes = encodeManifest(session().manifest);
    bytes[8] = 9;
    repairEnvelope(bytes);
    expect(codeOf(bytes, decodeManifest)).toBe("unsupported_version");
  });

  it("refuses content that is no manifest, though its envelope is intact", () => {
    for (const text of ["", "null", "[]", "{}", "7", "{", "[".repeat(100_000), '{"formatVersion":2}']) {
      expect(codeOf(envelopeOf(text), decodeManifest), text.slice(0, 20)).toBe("corrupt");
    }
    expect(codeOf(envelopeOf(Uint8Array.from([0xff, 0xfe])), decodeManifest)).toBe("corrupt");
    fc.assert(
      fc.property(fc.json(), (json) => {
        expect(codeOf(envelopeOf(json), decodeManifest)).toBe("corrupt");
      }),
      { seed: 15, numRuns: 300 },
    );
  });

  it("refuses any field that is missing, of another type, or out of place", () => {
    const { manifest } = session();
    const hostile: unknown[] = [null, -1, 1.5, 2 ** 60, "", "x", [], {}, [null], [[-1]], true, "../../etc/passwd"];
    for (const field of Object.keys(manifest)) {
      for (const value of hostile) {
        // An empty list of hot blocks, a time of any kind and a text of any kind are as good as what was there.
        const acceptable =
          (field === "hotBlocks" && Array.isArray(value) && value.length === 0) ||
          (["sessionId", "modelFingerprint", "numericsId"].includes(field) &&
            typeof value === "string" &&
            value !== "");
        const text = JSON.stringify({ ...manifest, [field]: value });
        expect(codeOf(envelopeOf(text), decodeManifest), `${field}: ${JSON.stringify(value)}`).toBe(
          acceptable ? undefined : "corrupt",
        );
      }
      if (field === "tail") continue;
      const { [field as "chain"]: _, ...rest } = manifest;
      expect(codeOf(envelopeOf(JSON.stringify(rest)), decodeManifest), `without ${field}`).toBe("corrupt");
    }
  });

  it("refuses parts that do not fit together", () => {
    const { manifest } = session();
    const [first, second] = manifest.segments;
    const [summary] = manifest.summaries;
    if (first === undefined || second === undefined || summary === undefined || manifest.tail === undefined) {
      throw new Error("the sample is incomplete");
    }
    const changes: Record<string, Partial<Record<keyof Manifest, unknown>>> = {
      "segments out of order": { segments: [second, first] },
      "a segment twice": { segments: [first, first] },
      "a segment too few": { segments: [first] },
      "a segment of another length": { segments: [first, { ...second, tokenCount: 64 }] },
      "a segment of other bytes": { segments: [first, { ...second, objectBytes: 1 }] },
      "a key outside of the contract": { segments: [first, { ...second, objectKey: "../x" }] },
      "no summaries": { summaries: [] },
      "summaries of a kind that the geometry does not keep": { summaries: [{ ...summary, kind: "min-max" }] },
      "summaries without a kind": { summaries: [{ ...summary, kind: undefined }] },
      "summaries twice": { summaries: [summary, summary] },
      "summaries of one kind where there are two": {
        geometry: { ...manifest.geometry, summaryKinds: ["mean-deviation", "min-max"] },
      },
      "summaries with a gap": { summaries: [{ ...summary, fromToken: 128 }] },
      "summaries of half a segment": { summaries: [{ ...summary, tokenCount: 100 }] },
      "a tail elsewhere": { tail: { ...manifest.tail, fromToken: 128 } },
      "a tail of another length": { tail: { ...manifest.tail, objectBytes: 7 } },
      "no tail": { tail: undefined },
      "a token more": { tokenCount: manifest.tokenCount + 1 },
      "spans that end early": { spans: [{ end: 5, how: "dense" }] },
      "spans that go back": {
        spans: [
          { end: 326, how: "dense" },
          { end: 326, how: "dense" },
        ],
      },
      "no spans": { spans: [] },
      "a hot block beyond the end": { hotBlocks: [[], [6]] },
      "a hot block twice": { hotBlocks: [[], [2, 2]] },
      "hot blocks of one layer": { hotBlocks: [[]] },
    };
    for (const [what, change] of Object.entries(changes)) {
      const text = JSON.stringify({ ...manifest, ...change });
      expect(codeOf(envelopeOf(text), decodeManifest), what).toBe("corrupt");
      expect(() => encodeManifest({ ...manifest, ...change } as Manifest), what).toThrow(AssertionError);
    }
  });

  it("names every object once", () => {
    const { manifest, objects } = session();
    expect(objectKeysOf(manifest)).toEqual(new Set(objects.keys()));
  });
});

describe("manifest in a store", () => {
  it("is committed by compare-and-swap", async () => {
    const store = new MemoryStore();
    const { key, manifest } = session();
    expect(await loadManifest(store, key)).toBeUndefined();
    const first = await commitManifest(store, key, manifest, undefined);
    if (first.outcome !== "stored") throw new Error("the first commit met a conflict");
    expect(await commitManifest(store, key, manifest, undefined)).toEqual({ outcome: "conflict" });
    expect(await loadManifest(store, key)).toEqual({ manifest, etag: first.etag });
    const next = { ...manifest, generation: 4 };
    const second = await commitManifest(store, key, next, first.etag);
    expect(second.outcome).toBe("stored");
    expect(await commitManifest(store, key, { ...manifest, generation: 5 }, first.etag)).toEqual({
      outcome: "conflict",
    });
    expect((await loadManifest(store, key))?.manifest.generation).toBe(4);
  });

  it("gives the etag of a damaged one, so that it can be replaced", async () => {
    const store = new MemoryStore();
    const { key, manifest } = session();
    const bytes = encodeManifest(manifest);
    bytes[100] = (bytes[100] as number) ^ 1;
    const put = await store.put(key, bytes);
    const etag = put.outcome === "stored" ? put.etag : "";
    await expect(loadManifest(store, key)).rejects.toMatchObject({ name: "FormatError", code: "corrupt", etag });
    expect((await commitManifest(store, key, manifest, etag)).outcome).toBe("stored");
    expect((await loadManifest(store, key))?.manifest).toEqual(manifest);
  });

  it("may name no object of another tenant", async () => {
    const store = new MemoryStore();
    const { key, manifest } = session();
    const foreign = sampleKeys(SMALL, "ab02").segment(chainOf(128));
    const [first, ...rest] = manifest.segments;
    const hostile: Manifest = {
      ...manifest,
      segments: [{ ...first, objectKey: foreign } as typeof first & object, ...rest],
    };
    await expect(commitManifest(store, key, hostile, undefined)).rejects.toBeInstanceOf(AssertionError);
    await store.put(key, encodeManifest(hostile));
    await expect(loadManifest(store, key)).rejects.toMatchObject({ code: "corrupt" });
  });

  it("honours the caller's signal", async () => {
    const { key, manifest } = session();
    const signal = AbortSignal.abort();
    await expect(loadManifest(new MemoryStore(), key, signal)).rejects.toMatchObject({ code: "aborted" });
    await expect(commitManifest(new MemoryStore(), key, manifest, undefined, signal)).rejects.toMatchObject({
      code: "aborted",
    });
  });
});
