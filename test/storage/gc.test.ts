import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import type { PageStore } from "../../storage/contract.ts";
import { collectGarbage, deleteSession } from "../../storage/gc.ts";
import { namespacePrefix } from "../../storage/keys.ts";
import { commitManifest, encodeManifest, loadManifest, objectKeysOf } from "../../storage/manifest.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { decodeSessionRecord } from "../../storage/session-record.ts";
import { faultyStore } from "./faulty-store.ts";
import { goldenPath } from "./golden.ts";
import { repairEnvelope } from "./hostile.ts";
import { seededRandom } from "./random.ts";
import { chainOf, SMALL, sampleKeys, sampleSession } from "./samples.ts";

const HOUR_MS = 3_600_000;

/** A store whose clock the test moves. */
function clockedStore(): { store: MemoryStore; clock: { nowMs: number } } {
  const clock = { nowMs: 1_700_000_000_000 };
  return { store: new MemoryStore({ now: () => clock.nowMs }), clock };
}

async function save(store: PageStore, session: ReturnType<typeof sampleSession>): Promise<void> {
  for (const [key, bytes] of session.objects) await store.put(key, bytes);
  const etag = (await store.get(session.key))?.etag;
  await commitManifest(store, session.key, session.manifest, etag);
}

async function keysOf(store: PageStore): Promise<string[]> {
  return (await store.list("")).keys.map(({ key }) => key);
}

describe("garbage collection", () => {
  const keys = sampleKeys(SMALL);
  const one = sampleSession(SMALL, { sessionId: "one", segmentCount: 2, tailTokens: 5 });
  /** Shares both of its segments with the first. */
  const fork = sampleSession(SMALL, { sessionId: "fork", segmentCount: 2, tailTokens: 9 });
  const orphan = keys.segment(chainOf("orphan"));

  it("deletes what no manifest names once it is older than the grace, and nothing else", async () => {
    const { store, clock } = clockedStore();
    await save(store, one);
    await save(store, fork);
    await store.put(orphan, Buffer.from("x"));
    await store.put(keys.tail("one", chainOf("old tail"), 2), Buffer.from("xy"));
    await store.put("kv/ab01/notes", Buffer.from("not of this system"));
    const before = await keysOf(store);
    const young = await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs + HOUR_MS });
    expect(young.deletedKeys).toEqual([]);
    const options = { graceMs: HOUR_MS, nowMs: clock.nowMs + HOUR_MS + 1 };
    const dry = await collectGarbage(store, "kv/", { ...options, dryRun: true });
    expect(await keysOf(store)).toEqual(before);
    const report = await collectGarbage(store, namespacePrefix("ab01"), options);
    expect(report).toEqual(dry);
    expect([...report.deletedKeys].sort()).toEqual([orphan, keys.tail("one", chainOf("old tail"), 2)].sort());
    expect(report).toMatchObject({ manifestCount: 2, deletedBytes: 3, unreadableKeys: [] });
    expect(report.objectCount).toBe(new Set([...one.objects.keys(), ...fork.objects.keys()]).size + 2);
    expect(await keysOf(store)).toEqual(before.filter((key) => !report.deletedKeys.includes(key)));
  });

  it("keeps the segments a fork shares when the other session is deleted, and drops them with the last", async () => {
    const { store, clock } = clockedStore();
    await save(store, one);
    await save(store, fork);
    await deleteSession(store, keys, "one");
    expect(await store.get(one.key)).toBeUndefined();
    expect((await store.list(keys.tailPrefix("one"))).keys).toEqual([]);
    clock.nowMs += 2 * HOUR_MS;
    await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs });
    for (const key of fork.objects.keys()) expect(await store.get(key), key).toBeDefined();
    await deleteSession(store, keys, "fork");
    await deleteSession(store, keys, "never there");
    await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs });
    expect(await keysOf(store)).toEqual([]);
  });

  it("takes of a deleted session what its manifest names, and of one that cannot be read only that; the rest goes once it is old", async () => {
    const { store, clock } = clockedStore();
    const nextTail = keys.tail("one", chainOf("of a turn that is not committed yet"), 1, "ab");
    const tailsOf = async (id: string) => (await store.list(keys.tailPrefix(id))).keys.map(({ key }) => key);
    await save(store, one);
    await store.put(nextTail, Buffer.from("x"));
    await deleteSession(store, keys, "one");
    expect(await tailsOf("one")).toEqual([nextTail]);
    await save(store, fork);
    await store.put(fork.key, Buffer.from("damaged"));
    await deleteSession(store, keys, "fork");
    expect(await store.get(fork.key)).toBeUndefined();
    expect(await tailsOf("fork")).toHaveLength(1);
    await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs + HOUR_MS + 1 });
    expect(await keysOf(store)).toEqual([]);
  });

  it("deletes sessions that were not used for long, with what they alone named", async () => {
    const { store, clock } = clockedStore();
    await save(
      store,
      sampleSession(SMALL, { sessionId: "old", segmentCount: 3, tailTokens: 5, updatedMs: clock.nowMs }),
    );
    const used = { sessionId: "used", segmentCount: 1, tailTokens: 5, updatedMs: clock.nowMs + 20 * HOUR_MS };
    await save(store, sampleSession(SMALL, used));
    const nowMs = clock.nowMs + 25 * HOUR_MS;
    await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs, sessionAgeMsMax: 24 * HOUR_MS });
    expect(await store.get(keys.session("old"))).toBeUndefined();
    expect(await store.get(keys.segment(chainOf(384)))).toBeUndefined();
    const kept = await loadManifest(store, keys.session("used"));
    for (const key of objectKeysOf(kept?.manifest ?? one.manifest)) expect(await store.get(key), key).toBeDefined();
  });

  it("deletes a tenant's least recently committed sessions beyond its bytes, shared bytes counted once", async () => {
    const { store, clock } = clockedStore();
    const HOUR = HOUR_MS;
    const at = (sessionId: string, hours: number, segmentCount: number, namespace?: string) =>
      sampleSession(SMALL, {
        ...{ sessionId, segmentCount, tailTokens: 5, updatedMs: clock.nowMs + hours * HOUR },
        ...(namespace === undefined ? {} : { namespace }),
      });
    // The same chains everywhere, so segments are shared by all sessions of a tenant.
    const sessions = [at("a", 4, 1), at("b", 1, 3), at("c", 3, 2), at("d", 2, 2)];
    const foreign = at("e", 0, 4, "ab02");
    for (const session of [...sessions, foreign]) await save(store, session);
    const sizes = new Map((await store.list("")).keys.map(({ key, bytes }) => [key, bytes]));
    const bytesOf = (kept: ReturnType<typeof at>[]) => {
      const keys = new Set(kept.flatMap(({ key, objects }) => [key, ...objects.keys()]));
      return [...keys].reduce((sum, key) => sum + sizes.get(key)!, 0);
    };
    const newest = [sessions[0]!, sessions[2]!, sessions[3]!];
    const options = { graceMs: HOUR, nowMs: clock.nowMs + 10 * HOUR, dryRun: true };
    const keptFor = async (tenantBytesMax: number): Promise<string[]> => {
      const tenants = new Map([["ab01", { tenantBytesMax }]]);
      const { deletedKeys, overQuotaCount } = await collectGarbage(store, "kv/", { ...options, tenants });
      const gone = sessions.filter(({ key }) => deletedKeys.includes(key));
      expect(overQuotaCount).toBe(gone.length);
      expect(deletedKeys.filter((key) => key.startsWith("kv/ab02/"))).toEqual([]);
      return sessions.filter((session) => !gone.includes(session)).map(({ manifest }) => manifest.sessionId);
    };
    expect(await keptFor(bytesOf(sessions))).toEqual(["a", "b", "c", "d"]);
    expect(await keptFor(bytesOf(sessions) - 1)).toEqual(["a", "c", "d"]);
    expect(await keptFor(bytesOf(newest))).toEqual(["a", "c", "d"]);
    expect(await keptFor(bytesOf(newest) - 1)).toEqual(["a", "c"]);
    expect(await keptFor(0)).toEqual([]);

    const tenantBytesMax = bytesOf(newest.slice(0, 2));
    await collectGarbage(store, "kv/", { ...options, dryRun: false, tenants: new Map([["ab01", { tenantBytesMax }]]) });
    const left = [sessions[0]!, sessions[2]!, foreign];
    const expected = new Set(left.flatMap(({ key, objects }) => [key, ...objects.keys()]));
    expect(new Set(await keysOf(store))).toEqual(expected);
    // A limit for all, and another age for one.
    const everywhere = await collectGarbage(store, "kv/", {
      ...{ ...options, sessionAgeMsMax: HOUR, tenantBytesMax: 1 << 30 },
      tenants: new Map([["ab01", { sessionAgeMsMax: 6.5 * HOUR }]]),
    });
    expect(everywhere).toMatchObject({ expiredCount: 2, overQuotaCount: 0, manifestCount: 1 });
    expect(everywhere.deletedKeys).not.toContain(sessions[0]!.key);
  });

  it("judges a session by the store's clock where an engine's was ahead: it would be the last to go, and never be too old", async () => {
    const { store, clock } = clockedStore();
    const ahead = { segmentCount: 1, tailTokens: 5, updatedMs: clock.nowMs + 9_999 * HOUR_MS };
    const [wrong, right] = [
      sampleSession(SMALL, { ...ahead, sessionId: "wrong" }),
      sampleSession(SMALL, { ...ahead, sessionId: "right", updatedMs: clock.nowMs + HOUR_MS }),
    ];
    await save(store, wrong);
    clock.nowMs += HOUR_MS;
    await save(store, right);
    const options = { graceMs: HOUR_MS, nowMs: clock.nowMs + 3 * HOUR_MS, dryRun: true };
    const sizes = new Map((await store.list("")).keys.map(({ key, bytes }) => [key, bytes]));
    const tenantBytesMax = [right.key, ...right.objects.keys()].reduce((sum, key) => sum + sizes.get(key)!, 0);
    const over = await collectGarbage(store, "kv/", { ...options, tenantBytesMax });
    expect([over.overQuotaCount, over.deletedKeys[0]]).toEqual([1, wrong.key]);
    const old = await collectGarbage(store, "kv/", { ...options, sessionAgeMsMax: 3.5 * HOUR_MS });
    expect([old.expiredCount, old.deletedKeys[0]]).toEqual([1, wrong.key]);
  });

  it("keeps what a manifest of layout 1 names until its session is too old", async () => {
    const { store, clock } = clockedStore();
    const bytes = new Uint8Array(readFileSync(goldenPath("manifest-layout-1")));
    const { objectKeys, updatedMs } = decodeSessionRecord(bytes);
    const key = [...objectKeys][0]!.replace(/seg.*/, "session/aa");
    for (const named of [...objectKeys, key]) await store.put(named, named === key ? bytes : Buffer.from("x"));
    await store.put(orphan, Buffer.from("x"));
    const nowMs = clock.nowMs + 2 * HOUR_MS;
    const kept = await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs });
    expect([kept.deletedKeys, kept.unreadableKeys, kept.manifestCount]).toEqual([[orphan], [], 1]);
    const sessionAgeMsMax = nowMs - updatedMs - 1;
    const expired = await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs, sessionAgeMsMax });
    expect(new Set(expired.deletedKeys)).toEqual(new Set([...objectKeys, key]));
  });

  it("touches nothing of a tenant whose manifest is of a newer version, or cannot be read", async () => {
    const { store, clock } = clockedStore();
    await save(store, one);
    await store.put(orphan, Buffer.from("x"));
    const foreign = sampleKeys(SMALL, "ab02").segment(chainOf("orphan"));
    await store.put(foreign, Buffer.from("x"));
    const newer = encodeManifest(fork.manifest);
    newer[8] = 99;
    repairEnvelope(newer);
    await store.put(fork.key, newer);
    const options = { graceMs: HOUR_MS, nowMs: clock.nowMs + 2 * HOUR_MS };
    const report = await collectGarbage(store, "kv/", options);
    expect(report.unreadableKeys).toEqual([fork.key]);
    expect(report.deletedKeys).toEqual([foreign]);
    expect(await store.get(orphan)).toBeDefined();
    expect(await store.get(fork.key)).toBeDefined();

    const broken = faultyStore(store, { seed: 1, rates: { error: 1 }, only: (key) => key === one.key });
    await expect(collectGarbage(broken, "kv/", options)).rejects.toMatchObject({ code: "unavailable" });
    expect(await store.get(orphan)).toBeDefined();
  });

  it("removes a damaged manifest first, and what it named in the next run", async () => {
    const { store, clock } = clockedStore();
    await save(store, one);
    await store.put(one.key, Buffer.from("damaged"));
    const options = { graceMs: HOUR_MS, nowMs: clock.nowMs + 2 * HOUR_MS };
    expect((await collectGarbage(store, "kv/", options)).deletedKeys).toEqual([one.key]);
    expect((await collectGarbage(store, "kv/", options)).deletedKeys.sort()).toEqual([...one.objects.keys()].sort());
    expect(await keysOf(store)).toEqual([]);
  });

  it("does not take a read that went wrong once for a damaged manifest", async () => {
    const { store, clock } = clockedStore();
    await save(store, one);
    const flaky = faultyStore(store, { seed: 5, rates: { bitFlip: 1 } });
    const get = flaky.get.bind(flaky);
    flaky.get = async (key, options) => {
      const object = await get(key, options);
      flaky.rates = {};
      return object;
    };
    const report = await collectGarbage(flaky, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs + 2 * HOUR_MS });
    expect(flaky.faults.bitFlip).toBe(1);
    expect(report).toMatchObject({ manifestCount: 1, deletedKeys: [], unreadableKeys: [] });
  });

  it("keeps what a session begins to name while the collection runs", async () => {
    const { store, clock } = clockedStore();
    for (const [key, bytes] of one.objects) await store.put(key, bytes);
    clock.nowMs += 2 * HOUR_MS;
    const list = store.list.bind(store);
    let lists = 0;
    store.list = async (prefix, options) => {
      const page = await list(prefix, options);
      if (++lists === 1) await commitManifest(store, one.key, one.manifest, undefined);
      return page;
    };
    const report = await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs });
    expect(report.deletedKeys).toEqual([]);
    expect(report.manifestCount).toBe(1);
  });

  it.each([
    ["was not used for long", { sessionAgeMsMax: 24 * HOUR_MS }, "expiredCount"],
    ["is beyond its tenant's bytes", { tenantBytesMax: 1 }, "overQuotaCount"],
    ["is damaged", {}, undefined],
  ] as const)("keeps a session that %s and is committed while the collection reads", async (_why, limits, count) => {
    for (const comesBack of [false, true]) {
      const { store, clock } = clockedStore();
      await save(store, one);
      if (count === undefined) await store.put(one.key, Buffer.from("damaged"));
      clock.nowMs = one.manifest.updatedMs + 48 * HOUR_MS;
      const options = { graceMs: HOUR_MS, nowMs: clock.nowMs, ...limits };
      const get = store.get.bind(store);
      let reads = 0;
      store.get = async (key, getOptions) => {
        const object = await get(key, getOptions);
        // A damaged one is read twice before it is taken for damaged.
        if (comesBack && key === one.key && ++reads === (count === undefined ? 2 : 1)) {
          const next = { ...one.manifest, generation: one.manifest.generation + 1, updatedMs: clock.nowMs };
          const result = await commitManifest(store, one.key, next, object?.etag);
          expect(result.outcome).toBe("stored");
        }
        return object;
      };
      const report = await collectGarbage(store, "kv/", options);
      const remaining = await keysOf(store);
      if (count !== undefined) expect(report[count]).toBe(comesBack ? 0 : 1);
      if (comesBack) expect(remaining).toEqual([...one.objects.keys(), one.key].sort());
      else expect(remaining).not.toContain(one.key);
      expect(report.manifestCount).toBe(comesBack ? 1 : 0);
    }
  });

  it("refuses a prefix that is less than a tenant", async () => {
    for (const prefix of ["", "kv", "kv/ab01", keys.prefix, "other/"]) {
      const run = collectGarbage(new MemoryStore(), prefix, { graceMs: 0, nowMs: 0 });
      await expect(run, prefix).rejects.toBeInstanceOf(AssertionError);
    }
  });

  it("agrees with a naive model over random histories", async () => {
    const seed = 20_261;
    const random = seededRandom(seed);
    const { store, clock } = clockedStore();
    const live = new Map<string, Set<string>>();
    const stored = new Map<string, number>();
    for (let step = 0; step < 300; step++) {
      clock.nowMs += Math.floor(random() * HOUR_MS);
      const sessionId = `s${Math.floor(random() * 6)}`;
      const action = random();
      if (action < 0.6) {
        const segmentCount = Math.floor(random() * 4);
        const session = sampleSession(SMALL, { sessionId, segmentCount, tailTokens: 1 + Math.floor(random() * 100) });
        await save(store, session);
        for (const key of session.objects.keys()) stored.set(key, clock.nowMs);
        live.set(sessionId, new Set(session.objects.keys()));
      } else if (action < 0.8) {
        await deleteSession(store, keys, sessionId);
        for (const key of live.get(sessionId) ?? []) if (key.startsWith(keys.tailPrefix(sessionId))) stored.delete(key);
        live.delete(sessionId);
      } else {
        await collectGarbage(store, "kv/", { graceMs: HOUR_MS, nowMs: clock.nowMs });
        const named = new Set([...live.values()].flatMap((names) => [...names]));
        for (const [key, storedMs] of stored) {
          if (!named.has(key) && clock.nowMs - storedMs > HOUR_MS) stored.delete(key);
        }
        const expected = [...stored.keys(), ...[...live.keys()].map((id) => keys.session(id))].sort();
        expect(await keysOf(store), `seed ${seed}, step ${step}`).toEqual(expected);
      }
    }
    expect(stored.size).toBeGreaterThan(0);
  });
});
