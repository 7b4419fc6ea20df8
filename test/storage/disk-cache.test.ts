import { fork } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { openCacheFolder } from "../../storage/cache-files.ts";
import { beginEnvelope, sealEnvelope } from "../../storage/envelope.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openCachedStore } from "../../storage/open.ts";
import { CacheClock, CountedStore, cacheOver, MemoryFiles } from "./cache-world.ts";
import { noise, seededRandom } from "./random.ts";
import { chainOf, SMALL, sampleKeys } from "./samples.ts";

const KEYS = sampleKeys(SMALL);
const segment = (index: number): string => KEYS.segment(chainOf(index));
const plain = (bytes: Uint8Array | undefined): string => (bytes ? Buffer.from(bytes).toString("hex") : "absent");

async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "quire-cache-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  return folder;
}

describe("disk cache", () => {
  it("gives what was read before, also in part, and asks the store for the rest", async () => {
    const store = new CountedStore();
    const bytes = noise(1, 200_000);
    await store.put(segment(1), bytes);
    const cache = cacheOver({ files: new MemoryFiles(), store });
    const read = async (offset: number, count: number) => {
      const object = await cache.get(segment(1), { range: { offset, bytes: count } });
      await cache.settled();
      expect(plain(object?.bytes)).toBe(plain(bytes.subarray(offset, offset + count)));
      expect(object).toMatchObject({
        objectBytes: 200_000,
        etag: (await MemoryStore.prototype.get.call(store, segment(1)))?.etag,
      });
      return store.reads;
    };
    expect(await read(1000, 90_000)).toBe(1);
    expect(await read(1000, 90_000)).toBe(1);
    expect(await read(66_000, 2000)).toBe(1);
    expect(await read(90_000, 2000)).toBe(2);
    expect(await read(60_000, 31_500)).toBe(2);
    expect(await read(999, 10)).toBe(3);
    expect(plain((await cache.get(segment(1)))?.bytes)).toBe(plain(bytes));
    await cache.settled();
    expect(store.reads).toBe(4);
    await cache.get(segment(1));
    expect(store.reads).toBe(4);
    expect(cache.counts).toMatchObject({ hits: 4, misses: 4, damaged: 0, failures: 0 });
    expect(await cache.get(segment(2))).toBeUndefined();
  });

  it("has what was written, for the next process too, and of manifests nothing", async () => {
    const folder = await temporaryFolder();
    const store = new CountedStore();
    const files = await openCacheFolder(folder);
    const first = cacheOver({ files, store });
    const bytes = noise(2, 150_000);
    await first.put(segment(1), bytes);
    await first.put(KEYS.session("s"), noise(3, 100));
    await first.settled();
    const next = cacheOver({ files: await openCacheFolder(folder), store });
    for (const range of [{ offset: 0, bytes: 10 }, { offset: 65_530, bytes: 70_000 }, undefined]) {
      const object = await next.get(segment(1), range === undefined ? {} : { range });
      const { offset, bytes: count } = range ?? { offset: 0, bytes: 150_000 };
      expect(plain(object?.bytes)).toBe(plain(bytes.subarray(offset, offset + count)));
    }
    expect(store.reads).toBe(0);
    for (let time = 1; time <= 3; time++) {
      expect((await next.get(KEYS.session("s")))?.bytes.byteLength).toBe(100);
      expect(store.reads).toBe(time);
    }
    expect(await readdir(folder)).toHaveLength(1);
    await next.delete([segment(1)]);
    await next.settled();
    expect(await next.get(segment(1))).toBeUndefined();
    expect(await readdir(folder)).toEqual([]);
  });

  it("never gives bytes of a file that was cut, flipped anywhere, or is another object's", async () => {
    const store = new CountedStore();
    const objects = [noise(4, 300), noise(5, 300)];
    for (const [index, bytes] of objects.entries()) await store.put(segment(index), bytes);
    const files = new MemoryFiles();
    const whole = cacheOver({ files, store });
    for (const index of [0, 1]) {
      await whole.get(segment(index), { range: { offset: 0, bytes: 200 } });
      await whole.get(segment(index), { range: { offset: 150, bytes: 150 } });
    }
    await whole.settled();
    const [names, images] = [[...files.files.keys()], [...files.files.values()].map(({ bytes }) => bytes)];
    const [name, image, other] = [names[0] as string, images[0] as Uint8Array<ArrayBuffer>, images[1]];
    const damaged: Uint8Array<ArrayBuffer>[] = [other as Uint8Array<ArrayBuffer>];
    for (let at = 0; at < image.byteLength; at++) {
      damaged.push(image.slice(0, at));
      const flipped = image.slice();
      flipped[at] = (flipped[at] as number) ^ (1 << (at % 8));
      damaged.push(flipped);
    }
    let hits = 0;
    for (const bytes of damaged) {
      files.files.set(name, { bytes, usedMs: 0 });
      const cache = cacheOver({ files, store });
      for (const range of [
        { offset: 10, bytes: 100 },
        { offset: 0, bytes: 300 },
      ]) {
        const object = await cache.get(segment(0), { range });
        expect(plain(object?.bytes)).toBe(plain(objects[0]?.subarray(range.offset, range.offset + range.bytes)));
      }
      await cache.settled();
      hits += cache.counts.hits;
      expect(cache.counts.failures).toBe(0);
    }
    // A file of which one record is damaged still gives the other; none that is damaged gives everything.
    expect(hits).toBeGreaterThan(damaged.length / 4);
    expect(hits).toBeLessThan(damaged.length);
  });

  it("stays within its bound, and keeps what was used last", async () => {
    const store = new CountedStore();
    const files = new MemoryFiles();
    const clock = new CacheClock();
    const cache = cacheOver({ files, store, clock, bytesMax: 100_000 });
    for (let index = 0; index < 60; index++) {
      clock.ms += 100_000;
      files.nowMs = clock.ms;
      await cache.put(segment(index), noise(index, 7_000));
      await cache.get(segment(0));
      await cache.settled();
      expect(files.totalBytes).toBeLessThanOrEqual(100_000);
    }
    expect(cache.counts.evictions).toBeGreaterThan(40);
    const reads = store.reads;
    await cache.get(segment(0));
    await cache.get(segment(59));
    expect(store.reads).toBe(reads);
    await cache.get(segment(30));
    expect(store.reads).toBe(reads + 1);
    await cache.put(segment(99), noise(99, 30_000));
    await cache.settled();
    expect(files.totalBytes, "an object of more than a quarter is not kept").toBeLessThanOrEqual(100_000);
  });

  it("shares a folder with others, whatever they do (seeded)", async () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = seededRandom(seed);
      const files = new MemoryFiles();
      const store = new CountedStore();
      const caches = [1, 2, 3].map(() => cacheOver({ files, store, bytesMax: 60_000 }));
      const contents = new Map<string, Uint8Array>();
      for (let round = 0; round < 120; round++) {
        const key = segment(Math.floor(random() * 8));
        const cache = caches[Math.floor(random() * 3)] as (typeof caches)[number];
        const known = contents.get(key);
        const act = random();
        if (known === undefined || act < 0.1) {
          // The same key, the same content: what a content-addressed object is.
          const bytes = known ?? noise(contents.size, 2_000 + Math.floor(random() * 8_000));
          contents.set(key, bytes);
          await cache.put(key, bytes);
        } else if (act < 0.2) cache.forget(key);
        else if (act < 0.25) {
          const file = files.files.get([...files.files.keys()][0] as string);
          if (file) file.bytes = file.bytes.slice(0, Math.floor(random() * file.bytes.byteLength));
        } else {
          const offset = Math.floor(random() * known.byteLength);
          const bytes = 1 + Math.floor(random() * (known.byteLength - offset));
          const reads = [cache.get(key, { range: { offset, bytes } }), cache.get(key), cache.get(key)];
          const [part, ...wholes] = await Promise.all(reads);
          expect(plain(part?.bytes)).toBe(plain(known.subarray(offset, offset + bytes)));
          for (const whole of wholes) expect(plain(whole?.bytes)).toBe(plain(known));
        }
        if (random() < 0.5) for (const each of caches) await each.settled();
      }
      for (const each of caches) await each.settled();
      expect(caches.some(({ counts }) => counts.hits > 10)).toBe(true);
      // Three writers, each of which looks at the folder after every 64th of the bound.
      expect(files.totalBytes).toBeLessThan(60_000 * 1.5);
    }
  });

  it("asks a store for what was replaced, or turned out to be damaged", async () => {
    const store = new CountedStore();
    const files = new MemoryFiles();
    const cache = cacheOver({ files, store });
    const [bad, good] = [noise(6, 500), noise(7, 500)];
    await store.put(segment(1), bad);
    await cache.get(segment(1), { range: { offset: 0, bytes: 400 } });
    await cache.settled();
    await cache.put(segment(1), good);
    expect(plain((await cache.get(segment(1), { range: { offset: 0, bytes: 400 } }))?.bytes)).toBe(
      plain(good.subarray(0, 400)),
    );
    await cache.settled();
    await store.put(segment(1), bad);
    expect(plain((await cache.get(segment(1)))?.bytes)).toBe(plain(good));
    cache.forget(segment(1));
    expect(plain((await cache.get(segment(1)))?.bytes), "at once, before the file is gone").toBe(plain(bad));
  });

  it("does not keep what is read whole and damaged", async () => {
    const store = new CountedStore();
    const cache = cacheOver({ files: new MemoryFiles(), store });
    const envelope = beginEnvelope({ magic: "QUIRESUM", version: 2 }, 100);
    const intact = sealEnvelope(envelope);
    const torn = intact.slice();
    torn[20] = 1;
    const key = KEYS.summary("mean-deviation", chainOf(1), 128);
    for (const [bytes, reads] of [
      [torn, 2],
      [intact, 3],
    ] as const) {
      await store.put(key, bytes);
      for (let time = 0; time < 2; time++) {
        await cache.get(key);
        await cache.settled();
      }
      expect(store.reads).toBe(reads);
    }
  });

  it.each(["fails", "stalls"] as const)(
    "a disk that %s is left alone for a while, and nobody notices",
    async (trouble) => {
      const store = new CountedStore();
      const files = new MemoryFiles();
      const clock = new CacheClock();
      const cache = cacheOver({ files, store, clock });
      const bytes = noise(8, 1000);
      await cache.put(segment(1), bytes);
      await cache.settled();
      files.trouble = trouble;
      clock.isLate = true;
      expect(plain((await cache.get(segment(1)))?.bytes)).toBe(plain(bytes));
      expect(cache.counts.failures).toBe(1);
      const { calls } = files;
      expect(plain((await cache.get(segment(1)))?.bytes)).toBe(plain(bytes));
      await cache.put(segment(2), bytes);
      await cache.settled();
      expect(files.calls).toBe(calls);
      files.trouble = "none";
      clock.isLate = false;
      clock.ms += 30_001;
      const { reads } = store;
      expect(plain((await cache.get(segment(1)))?.bytes)).toBe(plain(bytes));
      expect(store.reads).toBe(reads);
    },
  );

  it("a process that is killed while it writes leaves nothing that is wrong", async () => {
    const folder = await temporaryFolder();
    const writer = join(import.meta.dirname, "fixtures", "cache-writer.ts");
    for (let life = 0; life < 4; life++) {
      const child = fork(writer, [folder, String(life)], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
      await new Promise<void>((resolve, reject) => {
        let written = 0;
        child.on("message", () => {
          written += 1;
          if (written === 8) child.kill("SIGKILL");
        });
        child.once("exit", () => resolve());
        child.once("error", reject);
      });
      const cache = cacheOver({ files: await openCacheFolder(folder), store: new MemoryStore() });
      let found = 0;
      for (let index = 0; index < 64; index++) {
        const object = await cache.get(segment(index));
        if (object === undefined) continue;
        found += 1;
        expect(plain(object.bytes)).toBe(plain(noise(index, 300_000)));
      }
      expect(found).toBeGreaterThan(0);
      await cache.settled();
    }
  }, 30_000);

  it("holds what is stored: where the store is encrypted, so is the folder", async () => {
    const folder = await temporaryFolder();
    const env = { QUIRE_STORE_KEYS: Buffer.alloc(32, 7).toString("base64") };
    const where = { folder, bytesMax: 2 ** 20, clock: new CacheClock() };
    const { store, cache } = await openCachedStore("memory:", env, where);
    const secret = new Uint8Array(Buffer.from("the words of a tenant ".repeat(400)));
    await store.put(segment(1), secret);
    await cache.settled();
    expect(plain((await store.get(segment(1), { range: { offset: 100, bytes: 5000 } }))?.bytes)).toBe(
      plain(secret.subarray(100, 5100)),
    );
    expect(cache.counts).toMatchObject({ hits: 1, misses: 0 });
    const [name] = await readdir(folder);
    expect((await readFile(join(folder, name as string))).includes("words of a tenant")).toBe(false);
    await store.close();
  });
});
