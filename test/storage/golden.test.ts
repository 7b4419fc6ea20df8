import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { crc32, sha256Hex } from "../../storage/checksum.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { parseObjectKey } from "../../storage/keys.ts";
import { decodeManifest } from "../../storage/manifest.ts";
import { manifestProblem } from "../../storage/manifest-check.ts";
import { decodeSegment, encodeSegment } from "../../storage/segment.ts";
import { decodeSessionRecord } from "../../storage/session-record.ts";
import { decodeSummaryHead, decodeSummaryObject, summaryDigest, summarySlot } from "../../storage/summary-object.ts";
import { decodeTail } from "../../storage/tail.ts";
import { decodeTombstone } from "../../storage/tombstone.ts";
import { BOTH, F16, goldenObjects, goldenPath, goldenTombstone, INT4 } from "./golden.ts";
import { codeOf } from "./hostile.ts";
import * as independent from "./independent-decoder.mjs";
import { blockOf, chainOf, SMALL, SMALL_SHAPE, sampleSession, slotNoise } from "./samples.ts";

const golden = (name: string): Uint8Array => new Uint8Array(readFileSync(goldenPath(name)));
const plain = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("golden files", () => {
  it.each(goldenObjects())("%s: today's encoder still writes the committed bytes", (name, bytes) => {
    expect(sha256Hex(bytes)).toBe(sha256Hex(golden(name)));
  });

  it("segment: reader, document and file agree", () => {
    const ours = decodeSegment(golden("segment"), { geometry: SMALL, fromToken: 128, chain: chainOf(256) });
    const theirs = independent.decodeSegment(golden("segment"));
    expect(theirs.geometry).toEqual(SMALL);
    expect([theirs.fromToken, theirs.tokenCount, theirs.chain]).toEqual([ours.fromToken, ours.tokenCount, ours.chain]);
    expect(theirs.checksums).toEqual([...ours.checksums]);
    for (let layer = 0; layer < 2; layer++) {
      for (let index = 0; index < 2; index++) {
        expect(plain(theirs.blocks[layer]?.[index] ?? new Uint8Array(0))).toBe(plain(ours.block(layer, index)));
        expect(plain(ours.block(layer, index))).toBe(plain(blockOf(SMALL, 128, layer, index)));
      }
    }
  });

  it.each(["summaries", "summaries-none", "summaries-version-2", "summaries-none-version-2"])(
    "%s: reader, document and file agree",
    (name) => {
      const kind = name.includes("none") ? "none" : "mean-deviation";
      const ours = decodeSummaryObject(golden(name), { kind, fromToken: 128, tokenCount: 256 });
      const theirs = independent.decodeSummaries(golden(name));
      expect(theirs.geometry).toEqual(ours.geometry);
      expect(theirs.digest).toBe(summaryDigest(golden(name)));
      expect([theirs.fromToken, theirs.kind]).toEqual([128, kind]);
      expect(theirs.segments).toHaveLength(2);
      for (const [i, segment] of theirs.segments.entries()) {
        const own = ours.segments[i];
        if (own === undefined) throw new Error("a segment is missing");
        expect(segment.chain).toBe(own.chain);
        expect(segment.checksums).toEqual([...own.checksums]);
        const slots = kind === "none" ? ["", ""] : [0, 1].map((index) => plain(summarySlot(SMALL, own, index)));
        expect(segment.slots.map(plain)).toEqual(slots);
        const written = slotNoise(128 + 128 * i, "mean-deviation", 2 * SMALL.summaryBytes);
        if (kind !== "none") expect(slots.join("")).toBe(plain(written));
      }
    },
  );

  it("summaries of earlier versions read as the same, and lie elsewhere", () => {
    for (const [older, newer, version] of [
      ["summaries-version-2", "summaries", 2],
      ["summaries-version-3", "summaries-int4", 3],
    ] as const) {
      expect(Buffer.from(golden(older)).readUInt32LE(8)).toBe(version);
      expect(decodeSummaryObject(golden(older))).toEqual(decodeSummaryObject(golden(newer)));
      expect(codeOf(golden(older), (bytes) => decodeSummaryHead(bytes))).toBe("unsupported_version");
    }
  });

  it("tail: reader, document and file agree", () => {
    const ours = decodeTail(golden("tail"), { geometry: BOTH, fromToken: 256, tokenCount: 134, chain: chainOf(390) });
    const theirs = independent.decodeTail(golden("tail"));
    expect(theirs.geometry).toEqual(ours.geometry);
    expect([theirs.fromToken, theirs.generation, theirs.chain]).toEqual([256, 3, ours.chain]);
    expect(theirs.ids).toEqual([...ours.ids]);
    expect(theirs.blocks).toHaveLength(2);
    expect(theirs.blocks[1]?.map(plain)).toEqual([plain(ours.block(1, 0)), plain(ours.block(1, 1))]);
    expect(Object.keys(theirs.slots)).toEqual(["min-max", "mean-deviation"]);
    for (const kind of BOTH.summaryKinds)
      expect(theirs.slots[kind]?.map(plain)).toEqual([0, 1].map((index) => plain(slotNoise(index + 50, kind, 128))));
    for (const kind of BOTH.summaryKinds)
      expect(theirs.slots[kind]?.map(plain)).toEqual([0, 1].map((index) => plain(ours.summary(index, kind))));
    expect(plain(theirs.open)).toBe(plain(ours.open));
    expect(ours.open.byteLength).toBe(6 * BOTH.openTokenBytes);
  });

  it("manifest: reader, document and file agree", () => {
    const ours = decodeManifest(golden("manifest"));
    expect(independent.decodeManifest(golden("manifest"))).toEqual(ours);
    expect(ours.tail?.sha256).toHaveLength(64);
    expect(ours.tokenCount).toBe(326);
  });

  it("tombstone: reader, document and file agree", () => {
    expect(decodeTombstone(golden("tombstone"))).toEqual(goldenTombstone);
    expect(independent.decodeManifest(golden("tombstone"))).toEqual(goldenTombstone);
    expect(codeOf(golden("tombstone"), decodeManifest)).toBe("unsupported_version");
  });

  it("int4 and f16: objects carry a later version than those of int8, and reader, document and file agree", () => {
    const versionOf = (name: string) => Buffer.from(golden(name)).readUInt32LE(8);
    for (const [name, later] of [
      ["segment", 2],
      ["tail", 3],
      ["manifest", 3],
    ] as const)
      expect([versionOf(name), versionOf(`${name}-int4`)], name).toEqual([later - 1, later]);
    expect(versionOf("segment-f16")).toBe(2);
    for (const name of ["summaries", "summaries-none", "summaries-int4"]) expect(versionOf(name)).toBe(4);
    for (const [name, geometry] of [
      ["segment-int4", INT4],
      ["segment-f16", F16],
    ] as const) {
      const segment = decodeSegment(golden(name), { geometry, fromToken: 128 });
      const { blocks } = independent.decodeSegment(golden(name));
      for (let layer = 0; layer < 2; layer++) {
        expect(blocks[layer]?.map(plain)).toEqual([0, 1].map((index) => plain(segment.block(layer, index))));
        expect(plain(segment.block(layer, 1))).toBe(plain(blockOf(geometry, 128, layer, 1)));
      }
    }
    const tail = independent.decodeTail(golden("tail-int4"));
    expect(tail.geometry).toEqual(INT4);
    expect(plain(tail.open)).toBe(plain(decodeTail(golden("tail-int4"), { geometry: INT4 }).open));
    expect(independent.decodeSummaries(golden("summaries-int4")).geometry).toEqual(INT4);
    expect(decodeSummaryObject(golden("summaries-int4"), { geometry: INT4 }).segments).toHaveLength(2);
    expect(independent.decodeManifest(golden("manifest-int4"))).toEqual(decodeManifest(golden("manifest-int4")));
    expect(decodeSessionRecord(golden("manifest-int4"))).toMatchObject({ formatVersion: 3, tokenCount: 326 });
  });

  it("a manifest's version goes with its encoding", () => {
    const { manifest } = sampleSession(INT4, { sessionId: "a session", segmentCount: 1, tailTokens: 3 });
    expect(manifestProblem(manifest)).toBeUndefined();
    expect(manifestProblem({ ...manifest, formatVersion: 2 })).toBe("another format version");
    expect(manifestProblem({ ...manifest, formatVersion: 4 })).toBe("another format version");
  });

  it("files of layout 1: segments and what a manifest names still read, summaries and tails are refused as too old", () => {
    const segment = decodeSegment(golden("segment-layout-1"), { fromToken: 128, chain: chainOf(256) });
    for (let layer = 0; layer < 2; layer++)
      expect(plain(segment.block(layer, 1))).toBe(plain(blockOf(SMALL, 128, layer, 1)));
    const record = decodeSessionRecord(golden("manifest-layout-1"));
    expect(record).toMatchObject({ formatVersion: 1, sessionId: "a session", tokenCount: 326, generation: 3 });
    expect([...record.objectKeys].map((key) => parseObjectKey(key)?.kind)).toEqual(["seg", "seg", "sum", "tail"]);
    expect(codeOf(golden("manifest-layout-1"), decodeManifest)).toBe("unsupported_version");
    expect(codeOf(golden("summaries-layout-1"), (bytes) => decodeSummaryObject(bytes))).toBe("unsupported_version");
    expect(codeOf(golden("tail-layout-1"), (bytes) => decodeTail(bytes))).toBe("unsupported_version");
  });

  it("the document's int8 block gives back keys and values that were encoded by its rule", () => {
    const shape = { ...SMALL_SHAPE, kvHeadCount: 2, segmentTokens: 64, layerCount: 1 };
    const geometry = kvGeometry(shape);
    // Channel d of head h has scale 2^-(h + d), token t has scale 2^-(t mod 3): products are exact.
    const block = new Uint8Array(geometry.blockBytes);
    const view = new DataView(block.buffer);
    const codes = 2 * 64 * 4;
    for (let i = 0; i < codes; i++) {
      view.setInt8(i, (i % 255) - 127);
      view.setInt8(codes + 4 * 2 * 4 + i, 127 - (i % 255));
    }
    for (let i = 0; i < 8; i++) view.setFloat32(codes + 4 * i, 2 ** -i, true);
    for (let i = 0; i < 128; i++) view.setFloat32(2 * codes + 32 + 4 * i, 2 ** -(i % 3), true);
    const bytes = encodeSegment({ geometry, fromToken: 0, chain: chainOf("x"), block: () => block });
    const stored = independent.decodeSegment(bytes).blocks[0]?.[0] ?? new Uint8Array(0);
    expect(crc32(stored)).toBe(crc32(block));
    const { keys, values } = independent.decodeInt8Block(geometry, stored);
    const at = (h: number, t: number, d: number): number => (h * 64 + t) * 4 + d;
    for (const [h, t, d] of [
      [0, 0, 0],
      [1, 63, 3],
      [0, 17, 2],
      [1, 5, 1],
    ] as const) {
      const i = at(h, t, d);
      expect(keys[i]).toBe(((i % 255) - 127) * 2 ** -(h * 4 + d));
      expect(values[i]).toBe((127 - (i % 255)) * 2 ** -((h * 64 + t) % 3));
    }
  });
});
