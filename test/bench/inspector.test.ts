/** What a run asks of other processes' V8, and the folders it leaves nothing of: with real processes. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it } from "vitest";
import { collectGarbage } from "../../bench/load/inspector.ts";
import { MemoryBook } from "../../bench/load/memory.ts";
import { makeRunFolder, noteProcess } from "../../bench/temp-folder.ts";
import { withTempFolder } from "../cli/run-quire.ts";

const MIB = 2 ** 20;

/** Keeps 20 MiB of numbers, and has dropped 60. */
const HOLDER = `
  const make = (mebibytes) => Array.from({ length: mebibytes }, () => new Array(2 ** 17).fill(0.5));
  globalThis.kept = make(20);
  globalThis.dropped = make(60);
  globalThis.dropped = undefined;
  console.log("ready");
  setInterval(() => {}, 1000);
`;

async function startHolder(): Promise<{ pid: number; url: string; end(): Promise<void> }> {
  const child = spawn(process.execPath, ["--inspect=127.0.0.1:0", "--eval", HOLDER], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const line = async (stream: NodeJS.ReadableStream, pattern: RegExp): Promise<string> => {
    for await (const text of createInterface({ input: stream })) {
      const found = pattern.exec(text);
      if (found) return found[1] ?? "";
    }
    throw new Error("the process has ended");
  };
  const [url] = await Promise.all([line(child.stderr, /^Debugger listening on (\S+)$/), line(child.stdout, /ready/)]);
  const end = async (): Promise<void> => {
    child.kill("SIGKILL");
    await once(child, "close");
  };
  return { pid: child.pid!, url, end };
}

describe("a process's garbage", () => {
  it("is collected over its inspector, and what it keeps is told", { timeout: 60_000 }, async () => {
    const holder = await startHolder();
    const heapBytes = await collectGarbage(holder.url);
    expect(heapBytes).toBeGreaterThan(20 * MIB);
    expect(heapBytes).toBeLessThan(40 * MIB);
    const book = new MemoryBook();
    let nowS = 0;
    const processes = [
      { name: "holder", pid: holder.pid, inspectorUrl: holder.url },
      { name: "without inspector", pid: process.pid },
      { name: "gone", pid: 2 ** 30, inspectorUrl: "ws://127.0.0.1:1/" },
    ];
    await book.sampleCollected(processes, () => ++nowS);
    await holder.end();
    await expect(collectGarbage(holder.url)).rejects.toThrow(/cannot be reached|is gone/);
    await book.sampleCollected(processes, () => ++nowS);
    const trends = book.trends(100);
    if (process.platform === "linux")
      expect(trends).toMatchObject([{ name: "holder", fromS: 1, toS: 1, isCollected: true }]);
  });

  it("is asked for in vain of who closes the connection", async () => {
    const server = createServer((socket) => socket.destroy()).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    await expect(collectGarbage(`ws://127.0.0.1:${port}/`)).rejects.toThrow(/cannot be reached|is gone/);
    server.close();
  });
});

describe("a folder of a run's own", () => {
  it("is taken away by the next run where its process is gone, with what still runs in it", async () => {
    await withTempFolder(async (parent) => {
      const ended = spawn(process.execPath, ["--version"], { stdio: "ignore" });
      await once(ended, "close");
      const stale = join(parent, `quire-bench-run-${ended.pid}-abcdef`);
      await mkdir(stale);
      const orphan = spawn(process.execPath, ["--eval", "setInterval(() => {}, 1000)"], {
        cwd: stale,
        stdio: "ignore",
      });
      await noteProcess(stale, orphan.pid!);
      // The number in this one is somebody else's: it does not run there.
      const other = join(parent, `quire-bench-run-${ended.pid}-ghijkl`);
      await mkdir(other);
      const bystander = spawn(process.execPath, ["--eval", "setInterval(() => {}, 1000)"], {
        cwd: parent,
        stdio: "ignore",
      });
      await noteProcess(other, bystander.pid!);
      const mine = await makeRunFolder(parent);
      await writeFile(join(mine, "worker.js"), "");
      const foreign = join(parent, "quire-bench-by-somebody");
      await mkdir(foreign);
      const second = await makeRunFolder(parent);
      expect((await readdir(parent)).map((name) => join(parent, name)).sort()).toEqual([foreign, mine, second].sort());
      if (process.platform === "linux") {
        const [, signal] = orphan.signalCode ? [null, orphan.signalCode] : await once(orphan, "close");
        expect(signal).toBe("SIGKILL");
      } else orphan.kill("SIGKILL");
      expect(bystander.exitCode).toBeNull();
      expect(bystander.signalCode).toBeNull();
      bystander.kill("SIGKILL");
      await once(bystander, "close");
    });
  });
});
