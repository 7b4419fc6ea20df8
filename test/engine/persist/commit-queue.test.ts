import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { LIMITS } from "../../../protocol/limits.ts";
import { StoreError } from "../../../storage/contract.ts";
import { EncryptedStore } from "../../../storage/encrypted-store.ts";
import { endSession } from "../../../storage/end-session.ts";
import { beginEnvelope, sealEnvelope } from "../../../storage/envelope.ts";
import { FsStore } from "../../../storage/fs-store.ts";
import { deleteSession } from "../../../storage/gc.ts";
import { parseKeyRing } from "../../../storage/key-ring.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { faultyStore } from "../../storage/faulty-store.ts";
import { CommitWorld } from "./commit-world.ts";

describe("a commit", () => {
  it("names segments, summaries and tail that can all be read, and deletes the tail it replaces", async () => {
    const world = new CommitWorld(new MemoryStore());
    const first = await world.turn("a", 200);
    await world.push(first);
    expect(await world.readAll()).toMatchObject({
      generation: 1,
      tokenCount: 200,
      tail: { fromToken: 192, tokenCount: 8 },
    });
    const second = await world.turn("a", 260, { known: first.segments });
    await world.push(second);
    expect(await world.readAll()).toMatchObject({ generation: 2, tokenCount: 260 });
    expect(await world.countOf("tail")).toBe(1);
    await world.push(await world.turn("a", 320, { known: second.segments }));
    expect((await world.readAll()).tail).toBeUndefined();
    expect(await world.countOf("tail")).toBe(0);
    expect(first.released).toBe(1);
    expect(world.queue.status(first.sessionKey)).toEqual({ persistedTokens: 320, generation: 3, pending: false });
  });

  it("ends before a segment that could not be put, and still validates", async () => {
    const world = new CommitWorld(new MemoryStore());
    const snapshot = await world.turn("a", 330, { failedSegment: 3 });
    snapshot.spans = [
      { end: 100, how: "dense" },
      { end: 330, how: "quest.1:128@16" },
    ];
    await world.push(snapshot);
    const manifest = await world.readAll();
    expect(manifest).toMatchObject({ tokenCount: 192, chain: snapshot.segments[2]!.chain });
    expect(manifest.spans).toEqual([
      { end: 100, how: "dense" },
      { end: 192, how: "quest.1:128@16" },
    ]);
    expect(manifest.tail).toBeUndefined();
    await world.push(await world.turn("b", 100, { failedSegment: 0, sessionId: "nothing" }));
    expect(await world.manifest("nothing")).toBeUndefined();
  });

  it("is made at most once in manifestCommitMs, and the newest turn wins", async () => {
    const world = new CommitWorld(new MemoryStore(), 1000);
    const [first, second, third] = [await world.turn("a", 70), await world.turn("a", 80), await world.turn("a", 90)];
    let commits = 0;
    const put = world.store.put.bind(world.store);
    world.store.put = (key, ...rest) => {
      if (key.includes("/session/")) commits += 1;
      return put(key, ...rest);
    };
    world.queue.push(first);
    await expect.poll(() => commits).toBe(1);
    const committedAt = world.clock.ms;
    world.queue.push(second);
    world.queue.push(third);
    expect([first.released, second.released]).toEqual([1, 1]);
    await expect.poll(() => commits).toBe(2);
    expect(world.clock.ms - committedAt).toBeGreaterThanOrEqual(1000);
    await world.queue.flush();
    expect(await world.readAll()).toMatchObject({ tokenCount: 90, generation: 2 });
    expect(third.released).toBe(1);
    const before = world.clock.ms;
    world.queue.push(await world.turn("a", 95));
    await world.queue.flush();
    expect(world.clock.ms - before, "a flush does not wait").toBeLessThan(200);
    expect(commits).toBe(3);
  });
});

describe("a turn that was cut short", () => {
  it("replaces no manifest, and no commit that waits, which hold more of the same segments", async () => {
    const world = new CommitWorld(new MemoryStore(), 1000);
    const first = await world.turn("a", 200);
    await world.push(first);
    world.clock.ms += 1;
    const cut = async (tokenCount: number) => ({
      ...(await world.turn("a", tokenCount, { known: first.segments })),
      isCut: true,
    });
    await world.push(await cut(192));
    expect(await world.readAll()).toMatchObject({ tokenCount: 200, generation: 1 });
    world.queue.push(await world.turn("a", 230, { known: first.segments }));
    world.queue.push(await world.turn("a", 240, { known: first.segments }));
    world.queue.push(await cut(192));
    await world.queue.flush();
    expect(await world.readAll()).toMatchObject({ tokenCount: 240, generation: 2 });
    await world.push(await cut(256));
    expect(await world.readAll()).toMatchObject({ tokenCount: 256, generation: 3 });
  });

  it("replaces one of a log that was cut since, whose segments are others", async () => {
    const world = new CommitWorld(new MemoryStore());
    await world.push(await world.turn("ab", 400));
    await world.push({ ...(await world.turn("ac", 192)), isCut: true });
    expect(await world.readAll()).toMatchObject({ tokenCount: 192, generation: 2 });
  });

  it("is one whose segment could not be put", async () => {
    const world = new CommitWorld(new MemoryStore());
    const first = await world.turn("a", 200);
    await world.push(first);
    world.clock.ms += 1;
    await world.push(await world.turn("a", 330, { known: first.segments.slice(0, 2), failedSegment: 2 }));
    expect(await world.readAll()).toMatchObject({ tokenCount: 200, generation: 1 });
  });
});

describe("another writer", () => {
  it("that is ahead on the same segments keeps its manifest and its tail", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
    await other.push(await other.turn("a", 300));
    await one.push(await one.turn("a", 200));
    expect(await one.readAll()).toMatchObject({ tokenCount: 300, generation: 1 });
    expect(await one.countOf("tail")).toBe(1);
    expect(one.queue.status("00ff/s")).toMatchObject({ persistedTokens: 300 });
  });

  it("that is ahead of a commit which waits behind the one that met it is not undone by that, either", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
    const put = store.put.bind(store);
    const [first, second, ahead] = [await one.turn("a", 100), await one.turn("a", 192), await other.turn("a", 300)];
    let puts = 0;
    store.put = async (key, ...rest) => {
      if (key.includes("/session/") && puts++ === 0) {
        await other.push(ahead);
        one.queue.push(second);
      }
      return await put(key, ...rest);
    };
    await one.push(first);
    await one.queue.flush();
    expect(await one.readAll()).toMatchObject({ tokenCount: 300, generation: 1 });
    await one.push(await one.turn("a", 310, { known: ahead.segments }));
    expect(await one.readAll()).toMatchObject({ tokenCount: 310, generation: 2 });
  });

  it("that is behind or on another branch is replaced, tail and all", async () => {
    for (const [branch, tokenCount] of [
      ["a", 100],
      ["b", 500],
    ] as const) {
      const store = new MemoryStore();
      const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
      await other.push(await other.turn(branch, tokenCount));
      await one.push(await one.turn("a", 200));
      expect(await one.readAll()).toMatchObject({ tokenCount: 200, generation: 2 });
      expect(await one.countOf("tail")).toBe(1);
      // The other learns of it the same way.
      await other.push(await other.turn("a", 210));
      expect(await other.readAll()).toMatchObject({ tokenCount: 210, generation: 3 });
      expect(await other.countOf("tail")).toBe(1);
    }
  });

  it("that was ahead on a log which was cut since is replaced: its tokens are nobody's any more", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
    await other.push(await other.turn("a", 300));
    one.clock.ms = other.clock.ms + 1;
    await one.push(await one.turn("a", 200));
    expect(await one.readAll()).toMatchObject({ tokenCount: 200, generation: 2 });
    expect(await one.countOf("tail")).toBe(1);
  });

  it("that computed the same turn does not lose its tail", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
    await other.push(await other.turn("a", 200));
    await one.push(await one.turn("a", 200));
    expect(await one.readAll()).toMatchObject({ tokenCount: 200, generation: 1 });
    expect(one.logged).toEqual([]);
  });

  it("that never stops is given up on, with a line in the log", async () => {
    const store = new MemoryStore();
    const world = new CommitWorld(store);
    const put = store.put.bind(store);
    store.put = async (key, ...rest) => (key.includes("/session/") ? { outcome: "conflict" } : await put(key, ...rest));
    const snapshot = await world.turn("a", 100);
    await world.push(snapshot);
    expect(world.logged).toEqual(["persist.conflict"]);
    expect(await world.countOf("tail")).toBe(0);
    expect(snapshot.released).toBe(1);
  });
});

describe("a store that fails", () => {
  it("a commit whose answer was lost is found to have been made", async () => {
    const inner = new MemoryStore();
    const store = faultyStore(inner, { seed: 1, rates: {}, only: (key) => key.includes("/session/") });
    const world = new CommitWorld(store);
    await world.push(await world.turn("a", 100));
    const snapshot = await world.turn("a", 150);
    const put = store.put.bind(store);
    let puts = 0;
    store.put = async (key, ...rest) => {
      const result = await put(key, ...rest);
      if (key.includes("/session/") && puts++ === 0) throw new StoreError("unavailable", "the answer was lost");
      return result;
    };
    await world.push(snapshot);
    expect(puts).toBe(2);
    expect(await world.readAll()).toMatchObject({ tokenCount: 150, generation: 2 });
    expect(await world.countOf("tail")).toBe(1);
    expect(world.logged).toEqual([]);
  });

  it("passing faults of any put are tried again; lasting ones are logged and the next turn commits everything", async () => {
    for (const kind of ["/sum-", "/tail/", "/session/"]) {
      const store = new MemoryStore();
      const world = new CommitWorld(store);
      const first = await world.turn("a", 100);
      const put = store.put.bind(store);
      let failures = 1;
      store.put = async (key, ...rest) => {
        if (key.includes(kind) && failures-- > 0) throw new StoreError("unavailable", "down");
        return await put(key, ...rest);
      };
      await world.push(first);
      expect(await world.readAll(), kind).toMatchObject({ tokenCount: 100 });
      // Both tries, of both kinds.
      failures = kind === "/sum-" ? 4 : 2;
      await world.push(await world.turn("a", 170, { known: first.segments }));
      expect(world.logged, kind).toEqual(["persist.commit-failed"]);
      failures = 0;
      await world.push(await world.turn("a", 200, { known: first.segments }));
      expect(await world.readAll(), kind).toMatchObject({ tokenCount: 200 });
    }
  });

  it("that throws at once where a tail is discarded leaves no rejection behind that nobody handles", async () => {
    const world = new CommitWorld(new MemoryStore());
    world.clock.deadline = () => AbortSignal.timeout(5);
    const unhandled = vi.fn();
    process.prependListener("unhandledRejection", unhandled);
    onTestFinished(() => void process.off("unhandledRejection", unhandled));
    const first = await world.turn("a", 70);
    await world.push(first);
    world.store.delete = () => {
      throw new StoreError("denied", "closed");
    };
    await world.push(await world.turn("a", 75, { known: first.segments }));
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(world.logged).toEqual(["persist.discard-failed"]);
    expect(unhandled).not.toHaveBeenCalled();
  });

  it("replaces a corrupt manifest, never one of a newer version", async () => {
    const store = new MemoryStore();
    await store.put(new CommitWorld(store).keys.session("s"), new Uint8Array(100));
    const world = new CommitWorld(store);
    await world.push(await world.turn("a", 100));
    expect(await world.readAll()).toMatchObject({ tokenCount: 100 });

    const newer = sealEnvelope(beginEnvelope({ magic: "QUIREMAN", version: 99 }, 8));
    await store.put(world.keys.session("s"), newer);
    await world.push(await world.turn("a", 110));
    expect((await store.get(world.keys.session("s")))?.bytes).toEqual(newer);
    expect(world.logged).toEqual(["persist.commit-failed"]);
  });

  it("replaces a manifest that the store itself finds damaged, never one whose key is not here", async () => {
    const folder = await mkdtemp(join(tmpdir(), "quire-damaged-manifest-"));
    onTestFinished(() => rm(folder, { recursive: true }));
    const files = await FsStore.open(folder);
    const inFolder = new CommitWorld(files);
    const key = inFolder.keys.session("s");
    await inFolder.push(await inFolder.turn("a", 100));
    const path = join(folder, `${key}~`);
    for (const length of [0, 40, 150]) {
      await writeFile(path, (await readFile(path)).subarray(0, length));
      const world = new CommitWorld(files);
      await world.push(await world.turn("a", 110));
      expect(world.logged, `${length} bytes`).toEqual([]);
      expect(await world.readAll()).toMatchObject({ tokenCount: 110 });
    }
    await files.close();

    const inner = new MemoryStore();
    const keyed = (byte: string) => new EncryptedStore(inner, parseKeyRing(byte.repeat(32)));
    const first = new CommitWorld(keyed("11"));
    await first.push(await first.turn("a", 100));
    const bytes = (await inner.get(key))!.bytes;
    bytes[50]! ^= 1;
    await inner.put(key, bytes);
    const stranger = new CommitWorld(keyed("22"));
    await stranger.push(await stranger.turn("a", 110));
    expect(stranger.logged).toEqual(["persist.commit-failed"]);
    expect((await inner.get(key))!.bytes).toEqual(bytes);
    const world = new CommitWorld(keyed("11"));
    await world.push(await world.turn("a", 110));
    expect(world.logged).toEqual([]);
    expect(await world.readAll()).toMatchObject({ tokenCount: 110 });
  });
});

describe("a commit that comes too late", () => {
  it("is given up: the tombstone that would keep it away may be gone", async () => {
    const world = new CommitWorld(new MemoryStore());
    const [inTime, late] = [await world.turn("a", 70), await world.turn("a", 80)];
    world.clock.ms += LIMITS.commitAgeMsMax;
    await world.push(inTime);
    expect(await world.readAll()).toMatchObject({ tokenCount: 70 });
    world.clock.ms += 1;
    await world.push(late);
    expect(await world.readAll()).toMatchObject({ tokenCount: 70 });
    expect(world.logged).toEqual(["persist.too-late"]);
    expect(late.released).toBe(1);
  });
});

describe("a session that is deleted", () => {
  it("and has begun anew keeps away what waits of the first, and commits its own", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store, 1_000), new CommitWorld(store)];
    await one.push(await one.turn("a", 70, { bornMs: 5 }));
    one.queue.push(await one.turn("a", 100, { bornMs: 5 }));
    await endSession(store, one.keys.session("s"), { sessionId: "s", bornMs: 6, nowMs: 9 });
    await other.push(await other.turn("b", 90, { bornMs: 6 }));
    expect(await other.readAll()).toMatchObject({ tokenCount: 90, generation: 3, bornMs: 6 });
    await one.queue.flush();
    expect(await other.readAll()).toMatchObject({ tokenCount: 90, generation: 3 });
    // What waits of the one that has begun since is not dropped by a deletion that is told late.
    one.queue.push(await one.turn("b", 120, { bornMs: 6 }));
    await one.queue.forget("00ff/s", 6);
    await one.queue.flush();
    expect(await one.readAll()).toMatchObject({ tokenCount: 120, generation: 4, bornMs: 6 });
  });

  it("is not written again by what waited or was under way", async () => {
    const store = new MemoryStore();
    const world = new CommitWorld(store, 60_000);
    await world.push(await world.turn("a", 70));
    const waiting = await world.turn("a", 100);
    world.clock.sleep = () => new Promise((resolve) => setTimeout(resolve, 5));
    world.queue.push(waiting);
    await world.queue.forget(waiting.sessionKey, 1);
    await store.delete([world.keys.session("s")]);
    await world.queue.flush();
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(await world.manifest()).toBeUndefined();
    expect(waiting.released).toBe(1);
    expect(world.queue.status(waiting.sessionKey)).toBeUndefined();
  });

  it("takes no tail from a turn that is committed under its name meanwhile, were it the same turn again", async () => {
    for (const branch of ["a", "b"]) {
      const store = new MemoryStore();
      const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
      await one.push(await one.turn("a", 70));
      const remove = store.delete.bind(store);
      store.delete = async (keys) => {
        await remove(keys);
        if (keys.some((key) => key.includes("/session/"))) await other.push(await other.turn(branch, 70));
      };
      await deleteSession(store, one.keys, "s");
      expect(await other.readAll(), branch).toMatchObject({ generation: 1, tokenCount: 70, tail: { tokenCount: 6 } });
      expect(await other.countOf("tail"), branch).toBe(1);
    }
  });

  it("takes no tail from one that has put its tail and is about to commit it", async () => {
    const store = new MemoryStore();
    const [one, other] = [new CommitWorld(store), new CommitWorld(store)];
    await one.push(await one.turn("a", 70));
    const put = store.put.bind(store);
    const again = await other.turn("a", 70);
    let deletions = 0;
    store.put = async (key, ...rest) => {
      const result = await put(key, ...rest);
      if (key.includes("/tail/") && deletions++ === 0) await deleteSession(store, one.keys, "s");
      return result;
    };
    await other.push(again);
    expect(deletions).toBe(1);
    expect(await other.readAll()).toMatchObject({ tokenCount: 70, tail: { tokenCount: 6 } });
  });
});
