import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { Journal } from "../../../bench/eval/journal.ts";
import { withTempFolder } from "../../cli/run-quire.ts";

const SETTINGS = { seed: 1 };
const never = () => Promise.reject(new Error("measured again"));

it("a journal has what was measured, and only that again which a kill cut short", async () => {
  await withTempFolder(async (folder) => {
    const journal = await Journal.open(folder, SETTINGS);
    expect(await journal.take("one", async () => ({ text: "é" }))).toEqual({ text: "é" });
    expect(await journal.take("two", async () => 2)).toBe(2);
    const path = join(folder, "journal.jsonl");
    const whole = await readFile(path, "utf8");
    for (const cut of [whole.length - 1, whole.length - 9]) {
      await writeFile(path, whole.slice(0, cut));
      const again = await Journal.open(folder, SETTINGS);
      expect(await again.take("one", never)).toEqual({ text: "é" });
      expect(await again.take("two", async () => 3)).toBe(3);
      expect(await (await Journal.open(folder, SETTINGS)).take("two", never)).toBe(3);
    }
  });
});

it("a journal that was cut within its head has nothing in it", async () => {
  await withTempFolder(async (folder) => {
    await Journal.open(folder, SETTINGS);
    const path = join(folder, "journal.jsonl");
    await writeFile(path, (await readFile(path, "utf8")).slice(0, 7));
    const again = await Journal.open(folder, SETTINGS);
    expect(await again.take("one", async () => 1)).toBe(1);
    await expect(Journal.open(folder, { seed: 2 })).rejects.toThrow(/results of other settings/);
  });
});

it("a journal that cannot be read is left as it is", async () => {
  await withTempFolder(async (folder) => {
    const path = join(folder, "journal.jsonl");
    // More than Node reads in one piece; the disk holds none of it.
    await writeFile(path, "");
    await truncate(path, 3 * 2 ** 30);
    await expect(Journal.open(folder, SETTINGS)).rejects.toThrow(/cannot be used \(ERR_FS_FILE_TOO_LARGE\)/);
    expect((await stat(path)).size).toBe(3 * 2 ** 30);
  });
});
