import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FsStore } from "../../storage/fs-store.ts";
import { describeStore } from "./conformance.ts";

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "quire-fs-store-"));
});
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
});

describeStore("fs", {
  open: () => FsStore.open(join(root, "conformance"), { listKeysMax: 60 }),
  rounds: 6,
  listKeysMax: 60,
  interruptible: true,
});

function fixture(name: string, ...args: string[]): ChildProcess {
  return spawn(process.execPath, [join(import.meta.dirname, "fixtures", name), ...args], {
    stdio: ["pipe", "pipe", "inherit"],
  });
}

/** Lets counters that are ready begin together; gives the conflicts each met. */
async function conflictsOf(children: readonly ChildProcess[]): Promise<number[]> {
  const outputs = children.map(async (child) => {
    let output = "";
    child.stdout?.on("data", (chunk) => {
      output += String(chunk);
    });
    const [code] = await once(child, "close");
    expect(code).toBe(0);
    return Number(output.replace("ready ", ""));
  });
  await Promise.all(children.map((child) => once(child.stdout as NodeJS.EventEmitter, "data")));
  for (const child of children) child.stdin?.write("g");
  return Promise.all(outputs);
}

describe("fs store between processes", () => {
  it("loses no update when processes make the same folder and swap the same object", async () => {
    const folder = join(root, "several");
    const children = Array.from({ length: 3 }, () => fixture("fs-counter.ts", folder, "counter", "30"));
    const conflicts = await conflictsOf(children);
    const store = await FsStore.open(folder);
    expect(Buffer.from((await store.get("counter"))?.bytes ?? []).toString()).toBe("90");
    expect(conflicts.reduce((sum, count) => sum + count, 0)).toBeGreaterThan(0);
    expect(await readdir(join(folder, "~tmp"))).toEqual([]);
    await store.close();
  });

  it("waits for another process's lock with a deadline, and goes on when that process is killed", async () => {
    const folder = join(root, "killed");
    const store = await FsStore.open(folder);
    const hasty = await FsStore.open(folder, { putMsMax: 300 });
    await store.put("a", Buffer.from("before"));
    const holder = fixture("fs-lock-holder.ts", join(folder, "~lock.db"));
    await once(holder.stdout as NodeJS.EventEmitter, "data");
    await expect(hasty.put("a", Buffer.from("meanwhile"))).rejects.toMatchObject({ code: "timeout" });
    expect(Buffer.from((await store.get("a"))?.bytes ?? []).toString()).toBe("before");
    holder.kill("SIGKILL");
    await once(holder, "close");
    expect((await store.put("a", Buffer.from("after"))).outcome).toBe("stored");
    expect(Buffer.from((await store.get("a"))?.bytes ?? []).toString()).toBe("after");
    await hasty.close();
    await store.close();
  });

  it("shows a whole version after its writer was killed in the middle of its work", async () => {
    const folder = join(root, "crash");
    for (let round = 0; round < 4; round++) {
      const writer = fixture("fs-writer.ts", folder, "object");
      await once(writer.stdout as NodeJS.EventEmitter, "data");
      await new Promise((resolve) => setTimeout(resolve, 7 + round * 11));
      writer.kill("SIGKILL");
      await once(writer, "close");
      const store = await FsStore.open(folder);
      const { bytes } = (await store.get("object")) ?? { bytes: new Uint8Array(0) };
      const version = bytes.byteLength - 200_000;
      expect(version).toBeGreaterThan(0);
      expect(bytes.every((byte) => byte === version % 256)).toBe(true);
      expect((await store.put("after", Buffer.from("x"))).outcome).toBe("stored");
      expect((await store.list("")).keys.map(({ key }) => key)).toEqual(["after", "object"]);
      await store.close();
    }
  });

  it("sees what another handle on the folder wrote", async () => {
    const [one, two] = [await FsStore.open(join(root, "shared")), await FsStore.open(join(root, "shared"))];
    await one.put("x/y", Buffer.from("1"));
    const object = await two.get("x/y");
    expect((await two.put("x/y", Buffer.from("2"), { condition: { etag: object?.etag ?? "" } })).outcome).toBe(
      "stored",
    );
    const stale = await one.put("x/y", Buffer.from("3"), { condition: { etag: object?.etag ?? "" } });
    expect(stale.outcome).toBe("conflict");
    await one.close();
    await two.close();
  });
});

describe("fs store files", () => {
  it("answers corrupt for a file that was cut, lengthened or is not its own, and lets it be replaced", async () => {
    const folder = join(root, "damaged");
    const store = await FsStore.open(folder);
    await store.put("a", Buffer.from("0123456789"));
    const path = join(folder, "a~");
    const whole = await readFile(path);
    for (const damaged of [whole.subarray(0, 73), whole.subarray(0, 20), Buffer.alloc(0), Buffer.alloc(90, 1)]) {
      await writeFile(path, damaged);
      await expect(store.get("a")).rejects.toMatchObject({ name: "StoreError", code: "corrupt" });
    }
    await writeFile(path, Buffer.concat([whole, Buffer.from("x")]));
    await expect(store.get("a")).rejects.toMatchObject({ code: "corrupt" });
    await store.put("a", Buffer.from("new"));
    expect(Buffer.from((await store.get("a"))?.bytes ?? []).toString()).toBe("new");
    await store.close();
  });

  it("removes temporary files of writers that are gone, and keeps those of running ones", async () => {
    const folder = join(root, "temporary");
    await (await FsStore.open(folder)).close();
    const [old, fresh] = [join(folder, "~tmp", "1-old"), join(folder, "~tmp", "2-fresh")];
    await writeFile(old, "x");
    await writeFile(fresh, "x");
    await utimes(old, 1_000, 1_000);
    const store = await FsStore.open(folder);
    expect(await readdir(join(folder, "~tmp"))).toEqual(["2-fresh"]);
    expect((await store.list("")).keys).toEqual([]);
    await store.close();
  });

  it("leaves no empty folders behind, and no temporary file after a conflict", async () => {
    const folder = join(root, "empty");
    const store = await FsStore.open(folder);
    await store.put("a/b/c", Buffer.from("x"));
    await store.put("a/d", Buffer.from("x"));
    await store.put("a/d", Buffer.from("y"), { condition: "absent" });
    await store.delete(["a/b/c"]);
    expect(await readdir(join(folder, "a"))).toEqual(["d~"]);
    await store.delete(["a/d"]);
    expect((await readdir(folder)).sort()).toEqual(["~lock.db", "~tmp"]);
    expect(await readdir(join(folder, "~tmp"))).toEqual([]);
    await store.close();
  });

  it("says that it cannot use a folder that is a file", async () => {
    const path = join(root, "a-file");
    await writeFile(path, "x");
    await expect(FsStore.open(path)).rejects.toMatchObject({ name: "StoreError" });
  });

  it("fails with unavailable after it was closed, writing nothing", async () => {
    const folder = join(root, "closed");
    const store = await FsStore.open(folder);
    await store.close();
    await store.close();
    await expect(store.put("a", Buffer.from("x"))).rejects.toMatchObject({ name: "StoreError", code: "unavailable" });
    expect(await readdir(join(folder, "~tmp"))).toEqual([]);
  });
});
