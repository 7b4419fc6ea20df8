/** Deleted sessions in a store: what stands in their place, who leaves it alone, and when it goes. */
import { describe, expect, it } from "vitest";
import type { PageStore } from "../../storage/contract.ts";
import { endSession } from "../../storage/end-session.ts";
import { beginEnvelope, sealEnvelope } from "../../storage/envelope.ts";
import { collectGarbage } from "../../storage/gc.ts";
import { commitManifest, encodeManifest, loadCommit, loadManifest, objectKeysOf } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { type ArchiveFile, exportSession, importSession } from "../../storage/session-archive.ts";
import { listSessions } from "../../storage/session-list.ts";
import { loadSessionRecord } from "../../storage/session-record.ts";
import { decodeTombstone, encodeTombstone, isTombstone, type Tombstone } from "../../storage/tombstone.ts";
import { Verifier } from "../../storage/verify.ts";
import { goldenTombstone } from "./golden.ts";
import { codeOf, expectEveryCutRefused, expectEveryFlipRefused, expectNoiseRefused } from "./hostile.ts";
import { chainOf, SMALL, sampleKeys, sampleSession } from "./samples.ts";
import { storeWholeSession } from "./whole-session.ts";

const HOUR_MS = 3_600_000;
const keys = sampleKeys(SMALL);
const key = keys.session("one");
const end = { sessionId: "one", bornMs: 1_001, nowMs: 5_000 };

function clockedStore(): { store: MemoryStore; clock: { nowMs: number } } {
  const clock = { nowMs: 1_700_000_000_000 };
  return { store: new MemoryStore({ now: () => clock.nowMs }), clock };
}

async function save(store: PageStore, bornMs?: number) {
  const session = sampleSession(SMALL, { sessionId: "one", segmentCount: 2, tailTokens: 5 });
  for (const [objectKey, bytes] of session.objects) await store.put(objectKey, bytes);
  const manifest = { ...session.manifest, bornMs };
  const result = await commitManifest(store, key, manifest, (await store.get(key))?.etag);
  return { manifest, result };
}

async function filesOf(archive: AsyncIterable<ArchiveFile>): Promise<ArchiveFile[]> {
  const files: ArchiveFile[] = [];
  for await (const file of archive) files.push(file);
  return files;
}

const tombstoneIn = async (store: PageStore) => (await loadCommit(store, key))?.tombstone;

describe("a tombstone", () => {
  const bytes = encodeTombstone(goldenTombstone);

  it("reads as it was written; damage is refused, and everything but a tombstone", () => {
    expect(decodeTombstone(bytes)).toEqual(goldenTombstone);
    expect(isTombstone(bytes)).toBe(true);
    expectEveryFlipRefused(bytes, decodeTombstone);
    expectEveryCutRefused(bytes, decodeTombstone);
    expectNoiseRefused(bytes, decodeTombstone, 31);
    const wrong: Partial<Record<keyof Tombstone, unknown>>[] = [
      { sessionId: "" },
      { generation: 0 },
      { bornMs: -1 },
      { bornMs: "1" },
      { updatedMs: 0.5 },
      { objectKeys: ["../a"] },
      { objectKeys: "a" },
      { formatVersion: 3 },
    ];
    for (const fields of wrong)
      expect(codeOf(envelopeOf(JSON.stringify({ ...goldenTombstone, ...fields }), 4), decodeTombstone)).toBe("corrupt");
    for (const text of ["null", "[]", "7", "{"]) expect(codeOf(envelopeOf(text, 4), decodeTombstone)).toBe("corrupt");
  });
});

describe("the end of a session", () => {
  it("puts a tombstone in the place of its manifest and deletes its tail; told again it changes nothing", async () => {
    const store = new MemoryStore();
    const { manifest } = await save(store, 1_000);
    const named = await endSession(store, key, end);
    expect(new Set(named)).toEqual(objectKeysOf(manifest));
    expect(await tombstoneIn(store)).toEqual({
      ...{ formatVersion: 4, sessionId: "one", generation: manifest.generation + 1, bornMs: 1_001, updatedMs: 5_000 },
      objectKeys: named,
    });
    expect(await loadManifest(store, key)).toBeUndefined();
    expect((await store.list(keys.tailPrefix("one"))).keys).toEqual([]);
    const { etag } = (await store.get(key))!;
    expect(await endSession(store, key, { ...end, nowMs: 6_000 })).toEqual(named);
    expect((await store.get(key))!.etag).toBe(etag);
    // Of one that begins later and ends, too.
    expect(await endSession(store, key, { ...end, bornMs: 2_000 })).toEqual(named);
    expect(await tombstoneIn(store)).toMatchObject({ bornMs: 2_000, generation: manifest.generation + 2 });
  });

  it("leaves one where nothing is stored, in the place of what is damaged or of a version that is not known", async () => {
    for (const bytes of [undefined, Buffer.from("damaged"), envelopeOf("{}", 99)]) {
      const store = new MemoryStore();
      if (bytes) await store.put(key, bytes);
      expect(await endSession(store, key, end)).toEqual([]);
      expect(await tombstoneIn(store)).toMatchObject({ bornMs: 1_001, generation: 1, objectKeys: [] });
    }
  });

  it("is not the end of one that has begun since, nor of what it has stored", async () => {
    const store = new MemoryStore();
    const { manifest } = await save(store, 1_001);
    expect(await endSession(store, key, end)).toEqual([]);
    expect((await loadManifest(store, key))?.manifest).toEqual(manifest);
  });

  it("covers a commit that comes between its reading and its writing, and says so when there is always one", async () => {
    const store = new MemoryStore();
    const { manifest } = await save(store);
    const put = store.put.bind(store);
    let commits = 3;
    store.put = async (objectKey, bytes, options) => {
      if (objectKey === key && isTombstone(bytes) && commits-- > 0)
        await put(key, encodeManifest({ ...manifest, generation: 100 - commits }));
      return await put(objectKey, bytes, options);
    };
    await endSession(store, key, end);
    expect(await tombstoneIn(store)).toMatchObject({ bornMs: 1_001 });
    commits = 100;
    await expect(endSession(store, key, { ...end, bornMs: 2_000 })).rejects.toMatchObject({ code: "unavailable" });
  });
});

describe("beside other work", () => {
  it("a tombstone protects nothing, is no session, and goes with the collection once the grace is over", async () => {
    const { store, clock } = clockedStore();
    await save(store, 1_000);
    await endSession(store, key, { ...end, nowMs: clock.nowMs });
    expect(await loadSessionRecord(store, key)).toMatchObject({ isDeleted: true, tokenCount: 0 });
    const found: unknown[] = [];
    for await (const session of listSessions(store, "kv/")) found.push(session);
    expect(found).toEqual([]);
    expect(await new Verifier(store, { repair: true }).session(key)).toMatchObject({ problems: [], action: "none" });
    const options = { graceMs: HOUR_MS, sessionAgeMsMax: 0, tenantBytesMax: 0 };
    const young = await collectGarbage(store, "kv/", { ...options, nowMs: clock.nowMs + HOUR_MS });
    expect(young).toMatchObject({ manifestCount: 0, expiredCount: 0, overQuotaCount: 0, deletedKeys: [] });
    expect(await tombstoneIn(store)).toBeDefined();
    const old = await collectGarbage(store, "kv/", { ...options, nowMs: clock.nowMs + HOUR_MS + 1 });
    expect(old).toMatchObject({ manifestCount: 0, expiredCount: 0, unreadableKeys: [] });
    expect((await store.list("")).keys).toEqual([]);
  });

  it("a collection leaves one alone that was put while it read, and what the next session has put in its place", async () => {
    const { store, clock } = clockedStore();
    await endSession(store, key, { ...end, nowMs: clock.nowMs });
    clock.nowMs += 2 * HOUR_MS;
    const get = store.get.bind(store);
    let reads = 0;
    store.get = async (...args) => {
      const object = await get(...args);
      if (args[0] === key && reads++ === 0) await save(store, 1_001);
      return object;
    };
    const report = await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs });
    expect(report).toMatchObject({ manifestCount: 1, deletedKeys: [] });
    expect(await loadManifest(store, key)).toBeDefined();
  });

  it("an export of what is deleted meanwhile says that it is not whole; an import in its place keeps what is late away", async () => {
    const store = new MemoryStore();
    const { key: whole } = await storeWholeSession(store, { sessionId: "s" });
    const files = await filesOf(exportSession(store, whole));
    const cut = exportSession(store, whole);
    await cut.next();
    await endSession(store, whole, { ...end, sessionId: "s" });
    await expect(filesOf(cut)).rejects.toMatchObject({ name: "FormatError" });
    await expect(filesOf(exportSession(store, whole))).rejects.toMatchObject({ name: "FormatError" });
    const into = { namespace: "ab01", nowMs: 7_000 };
    expect(await importSession(store, files, into)).toMatchObject({ tokenCount: 582, bornMs: 1_001 });
    expect(await importSession(store, files, into)).toBeUndefined();
    expect(await importSession(store, files, { ...into, replace: true })).toMatchObject({ bornMs: 1_001 });
    expect((await importSession(store, files, { ...into, sessionId: "copy" }))?.bornMs).toBeUndefined();
  });

  it("what a deleted session named counts for no tenant's bytes", async () => {
    const { store, clock } = clockedStore();
    await save(store);
    const fork = sampleSession(SMALL, { sessionId: "fork", segmentCount: 0, tailTokens: 9 });
    for (const [objectKey, bytes] of fork.objects) await store.put(objectKey, bytes);
    await commitManifest(store, fork.key, fork.manifest, undefined);
    const forkBytes = (await store.get(fork.key))!.objectBytes + [...fork.objects.values()][0]!.byteLength;
    await endSession(store, key, { ...end, nowMs: clock.nowMs });
    const report = await collectGarbage(store, "kv/", {
      ...{ graceMs: HOUR_MS, nowMs: clock.nowMs, tenantBytesMax: forkBytes },
    });
    expect(report).toMatchObject({ overQuotaCount: 0, manifestCount: 1 });
  });
});

it("segments of a deleted session go with the collection, but those that a fork shares", async () => {
  const { store, clock } = clockedStore();
  await save(store);
  const fork = sampleSession(SMALL, { sessionId: "fork", segmentCount: 1, tailTokens: 9 });
  for (const [objectKey, bytes] of fork.objects) await store.put(objectKey, bytes);
  await commitManifest(store, fork.key, fork.manifest, undefined);
  await endSession(store, key, { ...end, nowMs: clock.nowMs });
  await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs + HOUR_MS + 1 });
  const left = (await store.list("")).keys.map((item) => item.key);
  expect(left.sort()).toEqual([fork.key, ...fork.objects.keys()].sort());
  expect(left).toContain(keys.segment(chainOf(128)));
});

/** An intact envelope around a text. */
function envelopeOf(text: string, version: number): Uint8Array<ArrayBuffer> {
  const body = Buffer.from(text);
  const envelope = beginEnvelope({ magic: "QUIREMAN", version }, body.byteLength);
  envelope.body.set(body);
  return sealEnvelope(envelope);
}
