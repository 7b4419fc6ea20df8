import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { OverlaidStore } from "../../bench/tight/overlaid-store.ts";
import type { TightRow } from "../../bench/tight/tight-pool.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

it("a store over another one takes a turn's commit, once, and leaves the base as it was", async () => {
  const base = new MemoryStore();
  const [before, after] = [Uint8Array.of(1), Uint8Array.of(2, 2)];
  const stored = await base.put("manifest", before);
  const etag = stored.outcome === "stored" ? stored.etag : "";
  const store = new OverlaidStore(base);
  expect(await store.put("manifest", after, { condition: "absent" })).toEqual({ outcome: "conflict" });
  expect(await store.put("manifest", after, { condition: { etag: "x" } })).toEqual({ outcome: "conflict" });
  expect(await store.put("manifest", after, { condition: { etag } })).toMatchObject({ outcome: "stored" });
  expect(await store.put("manifest", before, { condition: { etag } })).toEqual({ outcome: "conflict" });
  expect((await store.get("manifest"))?.bytes).toEqual(after);
  expect((await base.get("manifest"))?.bytes).toEqual(before);
  expect(await store.put("new", after, { condition: "absent" })).toMatchObject({ outcome: "stored" });
  expect(await base.get("new")).toBeUndefined();
});

it(
  "bench tight-pool decodes in a part of the context, and exact replies are those of the whole",
  () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "tight.json");
      const what = [
        "--shape=tiny",
        "--threads=1",
        "--context=1024",
        "--percent=60",
        "--budget=256",
        "--prompt=16",
        "--tokens=4",
      ];
      const run = await runBench(["tight-pool", ...what, `--json=${path}`]);
      expect(run.code).toBe(0);
      expect(run.out).toMatch(/pool {2}behind it {2}mode .* identical/);
      const { rows } = JSON.parse(await readFile(path, "utf8")) as { rows: TightRow[] };
      expect(rows.map(({ pool, behind, mode }) => `${pool} ${behind} ${mode}`)).toEqual([
        ...["1 - exact", "1 - default", "0.6 host exact", "0.6 host default", "0.6 disk exact", "0.6 disk default"],
      ]);
      const [whole, , host] = rows as [TightRow, TightRow, TightRow];
      for (const row of rows) {
        expect(row.identical).toBe(row.mode === "exact" ? true : undefined);
        expect(row.recomputedTokens).toBe(0);
        if (row.mode === "exact") expect(row.pagesMissed).toBe(0);
      }
      expect(whole.bytesInPerToken).toBe(0);
      // 1,044 tokens: 18 blocks with one to spare, against 0.6 of 1,044 tokens: 10. Each of two layers, two heads of 16 channels, scales of both.
      const blockBytes = 2 * (2 * 64 * 16 + (16 + 64) * 4);
      expect(whole.poolBytes - host.poolBytes).toBe((18 - 10) * 2 * blockBytes);
      expect((await runBench(["tight-pool", "--context=300"])).err).toContain("must be a multiple of 256");
      expect((await runBench(["tight-pool", "--policy=dense"])).err).toContain("must be one that scores pages");
    }),
  120_000,
);
