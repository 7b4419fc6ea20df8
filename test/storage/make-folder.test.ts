import { existsSync } from "node:fs";
import { mkdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openCacheFolder } from "../../storage/cache-files.ts";
import { makeFolder } from "../../storage/make-folder.ts";
import { openStore } from "../../storage/open.ts";
import { withTempFolder } from "../cli/run-quire.ts";

const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => "made",
    (error: NodeJS.ErrnoException) => error.code,
  );

describe("making a folder", () => {
  it("makes what is missing above it, takes what is there, and minds nobody who makes it too", () =>
    withTempFolder(async (folder) => {
      const deep = join(folder, "a", "b", "c");
      await Promise.all([1, 2, 3].map(() => makeFolder(deep, { mode: 0o700 })));
      await makeFolder(deep);
      await makeFolder(`${deep}/`);
      for (const path of [deep, join(folder, "a")]) expect((await stat(path)).mode & 0o777, path).toBe(0o700);
    }));

  it("says what is in the way", () =>
    withTempFolder(async (folder) => {
      const file = join(folder, "file");
      await writeFile(file, "");
      expect(await codeOf(makeFolder(file))).toBe("EEXIST");
      expect(await codeOf(makeFolder(join(file, "a", "b")))).toBe("ENOTDIR");
      await mkdir(join(folder, "kept"));
      expect(await codeOf(makeFolder(join(folder, "kept", "x".repeat(300))))).toBe("ENAMETOOLONG");
    }));

  it.skipIf(!existsSync("/proc/self"))(
    "ends where a file system takes no folders, and so do a store and a cache there",
    async () => {
      expect(await codeOf(makeFolder("/proc/x/y"))).toBe("ENOENT");
      const refused = { code: "unavailable", message: expect.stringContaining("cannot use the folder /proc/x") };
      await expect(openStore("fs:/proc/x", {})).rejects.toMatchObject(refused);
      await expect(openStore("fs:/proc/x", {})).rejects.toThrow("--store");
      await expect(openCacheFolder("/proc/x")).rejects.toMatchObject(refused);
      await expect(openCacheFolder("/proc/x")).rejects.toThrow("--disk-cache");
    },
  );
});
