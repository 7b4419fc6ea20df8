import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { PageStore } from "../../storage/contract.ts";
import { FsStore } from "../../storage/fs-store.ts";
import { collectGarbage } from "../../storage/gc.ts";
import { LAYOUT_VERSION } from "../../storage/keys.ts";
import { commitManifest, decodeManifest, encodeManifest, loadManifest, objectKeysOf } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { type ArchiveFile, exportSession, importSession, MANIFEST_FILE } from "../../storage/session-archive.ts";
import { listSessions } from "../../storage/session-list.ts";
import { Verifier } from "../../storage/verify.ts";
import { chainOf, sampleKeys } from "./samples.ts";
import { storeWholeSession, WHOLE_GEOMETRY } from "./whole-session.ts";

async function archive(sessionId = "s"): Promise<{ store: MemoryStore; files: ArchiveFile[]; key: string }> {
  const store = new MemoryStore();
  const { key } = await storeWholeSession(store, { sessionId });
  const files: ArchiveFile[] = [];
  for await (const file of exportSession(store, key)) files.push(file);
  return { store, files, key };
}

const NOW_MS = Date.UTC(2026, 10, 23);
const TARGET = { namespace: "cd02", nowMs: NOW_MS };

const HOME = { ...TARGET, namespace: "ab01" };
const KEYS = sampleKeys(WHOLE_GEOMETRY);
const sampleSegmentKey = (index: number) => KEYS.segment(chainOf((index + 1) * WHOLE_GEOMETRY.segmentTokens));

async function listed(store: PageStore) {
  return (await loadManifest(store, KEYS.session("s")))!.manifest;
}

describe("a session archive", () => {
  it("holds the manifest and every object once, named by content, and comes back whole for another tenant", async () => {
    const { store, files } = await archive();
    expect(files.map(({ name }) => name.split("/")[0])).toEqual([
      ...[MANIFEST_FILE, "seg", "seg", "seg", "seg", "sum-min-max", "sum-min-max"],
      ...["sum-mean-deviation", "sum-mean-deviation", "tail"],
    ]);
    const other = new MemoryStore();
    const manifest = await importSession(other, files, TARGET);
    const key = sampleKeys(WHOLE_GEOMETRY, "cd02").session("s");
    expect((await loadManifest(other, key))!.manifest).toEqual(manifest);
    expect(await new Verifier(other).session(key)).toMatchObject({ problems: [], trustedTokens: 582, objectCount: 9 });
    expect((await other.list("")).keys.every((item) => item.key.startsWith("kv/cd02/"))).toBe(true);
    // Carried back, it is the same again.
    const back: ArchiveFile[] = [];
    for await (const file of exportSession(other, key)) back.push(file);
    const home = new MemoryStore();
    await importSession(home, back, { namespace: "ab01", nowMs: (await listed(store)).updatedMs });
    for (const item of (await store.list("")).keys)
      expect((await home.get(item.key))?.bytes, item.key).toEqual((await store.get(item.key))!.bytes);
  });

  it("keeps what tells a tail from others of its turn", async () => {
    const { store, key } = await archive();
    const { manifest, etag } = (await loadManifest(store, key))!;
    const objectKey = sampleKeys(WHOLE_GEOMETRY).tail("s", manifest.chain, manifest.generation, "0f1e");
    await store.put(objectKey, (await store.get(manifest.tail!.objectKey))!.bytes);
    const generation = manifest.generation + 1;
    await commitManifest(store, key, { ...manifest, generation, tail: { ...manifest.tail!, objectKey } }, etag);
    const moved = await importSession(new MemoryStore(), exportSession(store, key), TARGET);
    expect(moved?.tail?.objectKey).toMatch(/^kv\/cd02\/.*-0f1e$/);
  });

  it("takes another id, and the place of a session only where it is told to", async () => {
    const { store, files, key } = await archive();
    const renamed = await importSession(store, files, { ...HOME, sessionId: "copy" });
    expect(renamed).toMatchObject({ sessionId: "copy", tokenCount: 582 });
    const keys = sampleKeys(WHOLE_GEOMETRY);
    expect(await new Verifier(store).session(keys.session("copy"))).toMatchObject({ problems: [] });
    const found: string[] = [];
    for await (const session of listSessions(store, "kv/")) found.push(session.record!.sessionId);
    expect(found.sort()).toEqual(["copy", "s"]);
    const before = (await store.get(key))!.etag;
    expect(await importSession(store, files, HOME)).toBeUndefined();
    expect((await store.get(key))!.etag).toBe(before);
    expect(await importSession(store, files, { ...HOME, replace: true })).toMatchObject({ sessionId: "s" });
  });

  it("never overwrites what is stored under a name of content, unless that is damaged", async () => {
    const { store, files } = await archive();
    const segment = [
      ...objectKeysOf((await loadManifest(store, sampleKeys(WHOLE_GEOMETRY).session("s")))!.manifest),
    ][0]!;
    const etag = (await store.get(segment))!.etag;
    await importSession(store, files, { ...HOME, sessionId: "copy" });
    expect((await store.get(segment))!.etag).toBe(etag);

    const folder = await mkdtemp(join(tmpdir(), "quire-archive-"));
    onTestFinished(() => rm(folder, { recursive: true }));
    const inFolder = await FsStore.open(folder);
    await importSession(inFolder, files, HOME);
    await truncate(join(folder, `${segment}~`), 100);
    const flipped = await inFolder.get(sampleSegmentKey(1));
    flipped!.bytes[flipped!.bytes.length - 1]! ^= 1;
    await inFolder.put(sampleSegmentKey(1), flipped!.bytes);
    await importSession(inFolder, files, { ...HOME, replace: true });
    expect(await new Verifier(inFolder).session(KEYS.session("s"))).toMatchObject({ problems: [] });
    await inFolder.close();
  });

  it("is as young as its coming, whatever its age where it comes from: it was not used here for no time", async () => {
    const { files } = await archive();
    const store = new MemoryStore({ now: () => NOW_MS });
    expect(await importSession(store, files, HOME)).toMatchObject({ updatedMs: NOW_MS });
    const day = 86_400_000;
    const options = { graceMs: day, nowMs: NOW_MS + day, sessionAgeMsMax: 2 * day };
    expect(await collectGarbage(store, "kv/", options)).toMatchObject({ expiredCount: 0, deletedKeys: [] });
  });

  it("shows nothing of an archive that is damaged, incomplete, doubled, or holds anything else", async () => {
    const { files } = await archive();
    const damaged = (index: number, at: number) =>
      files.map((file, i) => {
        const bytes = new Uint8Array(file.bytes);
        if (i === index) bytes[Math.floor(at * bytes.length)]! ^= 2;
        return { name: file.name, bytes };
      });
    const wrong: Record<string, ArchiveFile[]> = {
      "no manifest": files.slice(1),
      nothing: [],
      "a file missing": files.slice(0, -1),
      "a file twice": [...files, files[3]!],
      "a stranger": [...files, { name: "seg/../../x", bytes: new Uint8Array(4) }],
      "a bit of the manifest": damaged(0, 0.5),
      "a bit of a segment": damaged(2, 0.8),
      "a bit of summaries": damaged(7, 0.5),
      "a bit of the tail": damaged(9, 0.5),
      "two files changed for each other": [
        ...files.slice(0, 1),
        { ...files[1]!, bytes: files[2]!.bytes },
        { ...files[2]!, bytes: files[1]!.bytes },
        ...files.slice(3),
      ],
    };
    for (const [what, list] of Object.entries(wrong)) {
      const store = new MemoryStore();
      await expect(importSession(store, list, TARGET), what).rejects.toMatchObject({ name: "FormatError" });
      expect(
        (await store.list("")).keys.filter(({ key }) => key.includes("/session/")),
        what,
      ).toEqual([]);
    }
  });

  it("of another layout is refused: its bytes mean something else here", async () => {
    const { files } = await archive();
    const [first, ...rest] = files;
    const bytes = encodeManifest({ ...decodeManifest(first!.bytes), layoutVersion: LAYOUT_VERSION + 1 });
    const store = new MemoryStore();
    await expect(importSession(store, [{ name: MANIFEST_FILE, bytes }, ...rest], TARGET)).rejects.toMatchObject({
      name: "FormatError",
      code: "unsupported_version",
    });
    expect((await store.list("")).keys).toEqual([]);
  });

  it("is not made of a session that is not whole", async () => {
    const { store, key } = await archive();
    const { manifest } = (await loadManifest(store, key))!;
    await store.delete([manifest.segments[2]!.objectKey]);
    const run = async () => {
      for await (const _ of exportSession(store, key));
    };
    await expect(run()).rejects.toMatchObject({
      name: "FormatError",
      message: expect.stringContaining("not in the store"),
    });
  });
});
