import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { startEngineServer } from "../../engine/server.ts";
import { systemClock } from "../../engine/settings.ts";
import { openCacheFolder } from "../../storage/cache-files.ts";
import { DiskCache } from "../../storage/disk-cache.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, randomIds, TestSession, untilIdle } from "./harness.ts";
import { HOUSE_0_SERVER } from "./house-server.ts";

const PROMPTS = [randomIds(1, 700), randomIds(2, 30), randomIds(3, 30), randomIds(4, 30)];
const SELECTION = { policy: "quest", budgetTokens: 128, exact: true } as const;

/** Bytes of pages that were really read. */
class CountedStore extends MemoryStore {
  pageBytes = 0;

  override async get(...args: Parameters<MemoryStore["get"]>): ReturnType<MemoryStore["get"]> {
    const object = await super.get(...args);
    if (!args[0].includes("/session/")) this.pageBytes += object?.bytes.byteLength ?? 0;
    return object;
  }
}

describe("an engine with a disk cache", () => {
  it("reads no page of the store that the machine has, gives the same tokens, and survives a disk full of damage", async () => {
    const undisturbed = await openForTest({ store: new MemoryStore() });
    const plain = new TestSession("s", SELECTION);
    const expected: number[][] = [];
    for (const prompt of PROMPTS) expected.push((await plain.turn(undisturbed, prompt)).ids);

    const folder = await mkdtemp(join(tmpdir(), "quire-engine-cache-"));
    onTestFinished(() => rm(folder, { recursive: true }));
    const store = new CountedStore();
    const session = new TestSession("s", SELECTION);
    for (const [index, prompt] of PROMPTS.entries()) {
      const diskCache = new DiskCache(store, {
        ...{ files: await openCacheFolder(folder), bytesMax: 2 ** 26 },
        clock: systemClock,
      });
      const engine = await openForTest({ store: diskCache, diskCache });
      const logged = session.ids.length;
      const { ids, usage } = await session.turn(engine, prompt);
      expect(ids).toEqual(expected[index]);
      expect(usage.source.store).toBe(logged);
      await untilIdle(engine);
      await engine.persister.flush();
      await diskCache.settled();
      if (index < 3) expect(store.pageBytes, `turn ${index}`).toBe(0);
      else expect(store.pageBytes).toBeGreaterThan(0);
      if (index > 0) expect(diskCache.counts[index === 3 ? "damaged" : "hits"]).toBeGreaterThan(0);
      const text = engine.engine.metrics.expose();
      expect(text).toContain(`quire_disk_cache_reads_total{source="disk"} ${diskCache.counts.hits}`);
      if (index === 2) await flipEverywhere(folder);
    }
  });
});

describe("an engine process with --disk-cache", () => {
  it("makes the folder and tells of it; one that cannot be used is refused at the start", async () => {
    const parent = await mkdtemp(join(tmpdir(), "quire-engine-cache-"));
    onTestFinished(() => rm(parent, { recursive: true }));
    const folder = join(parent, "a", "b");
    const server = await startEngineServer({ ...HOUSE_0_SERVER, diskCache: { folder, bytesMax: 2 ** 30 } });
    expect((await stat(folder)).isDirectory()).toBe(true);
    expect(server.description).toContain("memory behind a disk cache");
    const metrics = await (await fetch(`${server.url}/metrics`)).text();
    expect(metrics).toMatch(/^quire_disk_cache_max_bytes\S* 1073741824$/m);
    await server.stop(0);
    const file = join(parent, "file");
    await writeFile(file, "");
    const refused = startEngineServer({ ...HOUSE_0_SERVER, diskCache: { folder: file, bytesMax: 2 ** 30 } });
    await expect(refused).rejects.toThrow(/cannot use the folder .*file as a disk cache/);
  });
});

async function flipEverywhere(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const bytes = await readFile(join(folder, name));
    for (let at = 100; at < bytes.byteLength; at += 1000) bytes[at] = (bytes[at] as number) ^ 16;
    await writeFile(join(folder, name), bytes);
  }
}
