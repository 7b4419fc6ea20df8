import { mkdir, mkdtemp, open, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished, vi } from "vitest";
import { openDataFolder } from "../../cli/data-folder.ts";
import { fileKeys } from "../../cli/keys/file-keys.ts";
import { replaceFile } from "../../storage/replace-file.ts";

async function folderForTest(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "quire-replace-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** What is synced while `work` runs, a folder or a file. */
async function synced(work: () => Promise<unknown>): Promise<string[]> {
  const any = await open(tmpdir(), "r");
  const sync = vi.spyOn(Object.getPrototypeOf(any), "sync");
  await any.close();
  const seen: Promise<string>[] = [];
  sync.mockImplementation(async function (this: typeof any) {
    seen.push(this.stat().then((stats) => (stats.isDirectory() ? "folder" : `file of ${stats.size} bytes`)));
    await seen.at(-1);
  });
  onTestFinished(() => void sync.mockRestore());
  await work();
  sync.mockRestore();
  return await Promise.all(seen);
}

it("leaves what was there, or all of the new one, for its owner only", async () => {
  const folder = await folderForTest();
  const path = join(folder, "a");
  expect(await synced(() => replaceFile(path, "first"))).toEqual(["file of 5 bytes", "folder"]);
  await replaceFile(path, "second");
  expect(await readFile(path, "utf8")).toBe("second");
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  await mkdir(join(folder, "b"));
  await writeFile(join(folder, "b", "c"), "");
  await expect(replaceFile(join(folder, "b"), "no")).rejects.toMatchObject({ syscall: "rename" });
  expect((await readdir(folder)).sort()).toEqual(["a", "b"]);
});

it("is how secrets and keys are written: a power failure leaves no empty file in their place", async () => {
  const folder = await folderForTest();
  const whole = expect.stringMatching(/^file of [1-9]\d+ bytes$/);
  let release = async () => {};
  const opening = async () => {
    ({ release } = await openDataFolder(join(folder, "data")));
  };
  expect(await synced(opening)).toEqual([whole, "folder"]);
  await release();
  const keys = fileKeys(join(folder, "keys.json"), () => 5);
  expect(await synced(() => keys.add("ab".repeat(32), { tenant: "t", scopes: ["keys"] }))).toEqual([whole, "folder"]);
});
