import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { PageStore } from "../../storage/contract.ts";
import { EncryptedStore } from "../../storage/encrypted-store.ts";
import { FsStore } from "../../storage/fs-store.ts";
import { collectGarbage } from "../../storage/gc.ts";
import { parseKeyRing } from "../../storage/key-ring.ts";
import { LAYOUT_VERSION } from "../../storage/keys.ts";
import { commitManifest, encodeManifest, loadManifest, type Manifest } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { decodeSegmentHeader } from "../../storage/segment.ts";
import { encodeSummaryObject, summaryDigest } from "../../storage/summary-object.ts";
import { Verifier } from "../../storage/verify.ts";
import { faultyStore } from "./faulty-store.ts";
import { repairEnvelope } from "./hostile.ts";
import { seededRandom } from "./random.ts";
import { chainOf, sampleKeys, sampleSegment } from "./samples.ts";
import { storeWholeSession, WHOLE_GEOMETRY } from "./whole-session.ts";

const GEOMETRY = WHOLE_GEOMETRY;
const KEYS = sampleKeys(GEOMETRY);

async function stored(): Promise<{ store: MemoryStore; key: string; manifest: Manifest }> {
  const store = new MemoryStore();
  return { store, ...(await storeWholeSession(store, { sessionId: "s" })) };
}

async function flip(store: PageStore, key: string, at: number): Promise<void> {
  const { bytes } = (await store.get(key))!;
  bytes[Math.floor(at * bytes.length)]! ^= 4;
  await store.put(key, bytes);
}

const verify = (store: PageStore, key: string, repair = false) => new Verifier(store, { repair }).session(key);

describe("verify", () => {
  it("finds nothing in what is whole, and changes nothing", async () => {
    const { store, key } = await stored();
    const before = (await store.get(key))!.etag;
    const verdict = await verify(store, key, true);
    expect(verdict).toEqual({
      ...{
        key,
        sessionId: "s",
        isDeleted: false,
        tokenCount: 582,
        trustedTokens: 582,
        objectCount: 9,
        problems: [],
        action: "none",
      },
    });
    expect((await store.get(key))!.etag).toBe(before);
    expect(await verify(store, KEYS.session("never there"))).toMatchObject({ problems: [], isDeleted: true });
  });

  /** What is broken, and how many tokens can be trusted then. */
  const damages: [string, number, (world: Awaited<ReturnType<typeof stored>>) => Promise<unknown>][] = [
    ["a segment gone", 128, ({ store }) => store.delete([KEYS.segment(chainOf(256))])],
    ["a bit of a block", 128, ({ store }) => flip(store, KEYS.segment(chainOf(512)), 0.9)],
    ["a bit of a header", 0, ({ store }) => flip(store, KEYS.segment(chainOf(128)), 0.01)],
    ["a summary object gone", 128, ({ store, manifest }) => store.delete([manifest.summaries[1]!.objectKey])],
    [
      "the first summaries of the other kind",
      0,
      ({ store, manifest }) => flip(store, manifest.summaries[2]!.objectKey, 0.7),
    ],
    ["the tail", 512, ({ store, manifest }) => flip(store, manifest.tail!.objectKey, 0.5)],
    ["the tail gone", 512, ({ store, manifest }) => store.delete([manifest.tail!.objectKey])],
    [
      "a segment in the place of another",
      128,
      async ({ store }) => store.put(KEYS.segment(chainOf(384)), (await store.get(KEYS.segment(chainOf(256))))!.bytes),
    ],
  ];

  it.each(damages)("%s: trusts %i tokens, and cuts to them", async (_name, trusted, damage) => {
    const world = await stored();
    const { store, key, manifest } = world;
    await damage(world);
    const found = await verify(store, key);
    expect(found.problems).toHaveLength(1);
    expect(found).toMatchObject({ trustedTokens: trusted, action: "none" });
    expect((await loadManifest(store, key))!.manifest).toEqual(manifest);
    const repaired = await verify(store, key, true);
    expect(repaired).toEqual({ ...found, action: trusted === 0 ? "deleted" : "cut" });
    const after = await loadManifest(store, key);
    if (trusted === 0) expect(after).toBeUndefined();
    else {
      expect(after!.manifest).toMatchObject({ tokenCount: trusted, chain: chainOf(trusted), generation: 4 });
      expect(after!.manifest.spans).toEqual([{ end: trusted, how: "dense" }]);
      expect(await verify(store, key)).toMatchObject({ problems: [], trustedTokens: trusted, action: "none" });
    }
    // What is not named any more goes with the next collection, and nothing else does.
    const { deletedKeys } = await collectGarbage(store, "kv/", { graceMs: 0, nowMs: Date.now() + 10 });
    for (const named of deletedKeys) expect(named).not.toBe(key);
    if (trusted > 0) expect(await verify(store, key)).toMatchObject({ problems: [] });
  });

  it("finds summaries with other checksums than their segment, though each is intact", async () => {
    const { store, key, manifest } = await stored();
    const { chain } = decodeSegmentHeader(sampleSegment(GEOMETRY, 0));
    const segments = [{ chain, checksums: new Uint32Array(4), slots: new Uint8Array(2 * GEOMETRY.summaryBytes) }];
    const bytes = encodeSummaryObject({ geometry: GEOMETRY, kind: "min-max", fromToken: 0, segments });
    const [first, ...rest] = manifest.summaries;
    await store.put(first!.objectKey, bytes);
    const etag = (await store.get(key))!.etag;
    const summaries = [{ ...first!, sha256: summaryDigest(bytes) }, ...rest];
    await commitManifest(store, key, { ...manifest, summaries }, etag);
    const { problems } = await verify(store, key);
    expect(problems).toEqual([{ objectKey: first!.objectKey, what: "has other checksums than its segment" }]);
  });

  it("deletes a manifest that is damaged or another's, leaves one of another version alone", async () => {
    const { store, key, manifest } = await stored();
    const stranger = KEYS.session("stranger");
    await store.put(stranger, encodeManifest(manifest));
    expect(await verify(store, stranger, true)).toMatchObject({ action: "deleted", trustedTokens: 0 });
    expect(await store.get(stranger)).toBeUndefined();
    const newer = encodeManifest(manifest);
    newer[8] = 9;
    repairEnvelope(newer);
    await store.put(key, newer);
    expect(await verify(store, key, true)).toMatchObject({ action: "left" });
    await store.put(key, encodeManifest({ ...manifest, layoutVersion: LAYOUT_VERSION + 1 }));
    expect(await verify(store, key, true)).toMatchObject({ action: "left", sessionId: "s", trustedTokens: 0 });
    expect(await store.get(key)).toBeDefined();
    for (const odd of [{ modelFingerprint: "not a digest" }, { numericsId: "a/b" }]) {
      await store.put(stranger, encodeManifest({ ...manifest, ...odd }));
      expect(await verify(store, stranger, true)).toMatchObject({ action: "deleted", trustedTokens: 0 });
    }
    await store.put(key, Buffer.from("damaged"));
    expect(await verify(store, key)).toMatchObject({ action: "none", problems: [{ objectKey: key }] });
    expect(await verify(store, key, true)).toMatchObject({ action: "deleted" });
    expect(await store.get(key)).toBeUndefined();
  });

  it("deletes a manifest that the store itself finds damaged: a file that was cut, a chunk that does not authenticate", async () => {
    const folder = await mkdtemp(join(tmpdir(), "quire-verify-"));
    onTestFinished(() => rm(folder, { recursive: true }));
    const files = await FsStore.open(folder);
    const inner = new MemoryStore();
    const encrypted = new EncryptedStore(inner, parseKeyRing("11".repeat(32)));
    const { key } = await storeWholeSession(files, { sessionId: "s" });
    await storeWholeSession(encrypted, { sessionId: "s" });
    await truncate(join(folder, `${key}~`), 100);
    await flip(inner, key, 0.5);
    for (const store of [files, encrypted]) {
      const found = await verify(store, key);
      expect(found).toMatchObject({ problems: [{ objectKey: key }], trustedTokens: 0, action: "none" });
      expect(await verify(store, key, true)).toEqual({ ...found, action: "deleted" });
      expect(await store.get(key)).toBeUndefined();
    }
    await files.close();
  });

  it("does not take a failing store or a read that went wrong once for damage", async () => {
    const { store, key } = await stored();
    const down = faultyStore(store, { seed: 1, rates: { error: 1 }, only: (name) => name.includes("/tail/") });
    await expect(verify(down, key, true)).rejects.toMatchObject({ name: "StoreError", code: "unavailable" });
    const get = store.get.bind(store);
    const seen = new Set<string>();
    store.get = async (name, options) => {
      const object = await get(name, options);
      if (object && !seen.has(name)) object.bytes[40]! ^= 1;
      seen.add(name);
      return object;
    };
    expect(await verify(store, key, true)).toMatchObject({ problems: [], action: "none" });
    expect(seen.size).toBe(10);
  });

  it("leaves a manifest that was committed anew while it was looked at", async () => {
    const { store, key, manifest } = await stored();
    await store.delete([manifest.tail!.objectKey]);
    const get = store.get.bind(store);
    store.get = async (name, options) => {
      if (name === manifest.tail!.objectKey) {
        const { etag } = (await get(key))!;
        await store.put(key, encodeManifest({ ...manifest, generation: 9 }), { condition: { etag } });
      }
      return await get(name, options);
    };
    expect(await verify(store, key, true)).toMatchObject({ action: "left" });
    expect((await loadManifest(store, key))!.manifest.generation).toBe(9);
  });

  it("notices any flipped bit of any object: a thousand of them", async () => {
    const { store, key, manifest } = await stored();
    const random = seededRandom(77);
    const names = [...manifest.segments, ...manifest.summaries, manifest.tail!].map(({ objectKey }) => objectKey);
    for (let round = 0; round < 1000; round++) {
      const name = names[Math.floor(random() * names.length)]!;
      const { bytes } = (await store.get(name))!;
      const bit = Math.floor(random() * bytes.length * 8);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      await store.put(name, bytes);
      const { problems } = await verify(store, key);
      // Padding of a segment's header is under its checksum too.
      expect(
        problems.map(({ objectKey }) => objectKey),
        `${name}, bit ${bit}`,
      ).toEqual([name]);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      await store.put(name, bytes);
    }
  });
});
