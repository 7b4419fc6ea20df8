import { expect, it } from "vitest";
import { CacheIndex } from "../../storage/cache-index.ts";
import { encodeRecords } from "../../storage/cache-record.ts";
import { MemoryFiles } from "./cache-world.ts";
import { noise } from "./random.ts";

const RECORDS = 10;
const key = (index: number) => `object-${index}`;
const data = (index: number) => noise(index, RECORDS * 8);

/** Files of so many objects; each of ten records. */
async function filesOf(count: number): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  for (let index = 0; index < count; index++)
    for (let at = 0; at < RECORDS; at++) {
      const part = { offset: 8 * at, data: data(index).subarray(8 * at, 8 * at + 8) };
      await files.append(`f${index}`, encodeRecords(key(index), { ...part, objectBytes: RECORDS * 8, etag: "e" }));
    }
  return files;
}

it("remembers so many records of all files, those used longest ago go first, and reads what it forgot again", async () => {
  const files = await filesOf(8);
  const index = new CacheIndex(files, 3 * RECORDS);
  const read = async (file: number) => {
    const { calls } = files;
    const found = await index.read(`f${file}`, key(file), undefined);
    expect(found).toMatchObject({ bytes: data(file), etag: "e", objectBytes: RECORDS * 8 });
    return files.calls - calls;
  };
  for (let file = 0; file < 8; file++) {
    await read(file);
    expect(index.recordCount).toBe(RECORDS * Math.min(3, file + 1));
  }
  expect(await read(7)).toBe(RECORDS);
  expect(await read(5)).toBe(RECORDS);
  expect(await read(0)).toBeGreaterThan(RECORDS);
  expect(await read(7)).toBe(RECORDS);
  for (let file = 0; file < 8; file++) index.drop(`f${file}`);
  expect(index.recordCount).toBe(0);
});

it("a file of more records than all may have is read all the same", async () => {
  const index = new CacheIndex(await filesOf(1), 3);
  expect(await index.read("f0", key(0), { offset: 40, bytes: 24 })).toMatchObject({ bytes: data(0).subarray(40, 64) });
  expect(index.recordCount).toBe(RECORDS);
});
