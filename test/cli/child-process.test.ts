import { readFileSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { ChildLog } from "../../cli/child-log.ts";
import { type Child, startChild } from "../../cli/child-process.ts";
import { endedUnexpectedly, waitUntil } from "../../cli/wait-until.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { runProgram, withTempFolder } from "./run-quire.ts";

const guard = join(repositoryRoot, "cli/guard.mjs");

interface Started {
  child: Child;
  warnings: string[];
  log(): string;
}

function start(folder: string, args: readonly string[]): Started {
  const warnings: string[] = [];
  const logPath = join(folder, "x.log");
  const child = startChild({
    name: "x",
    program: process.execPath,
    args,
    cwd: folder,
    env: process.env,
    logPath,
    onWarning: (line) => warnings.push(line),
    isWarning: (line) => line.includes("WARN"),
    isNoise: (line) => line.includes("beat"),
  });
  return { child, warnings, log: () => readFileSync(logPath, "utf8") };
}

/** A program that starts a grandchild, prints both process ids, and ignores SIGTERM when told to. */
const family = (stubborn: boolean): string[] => [
  "-e",
  `const { spawn } = require("node:child_process");
   const grandchild = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { stdio: "ignore" });
   if (${stubborn}) process.on("SIGTERM", () => {});
   console.log("pids " + process.pid + " " + grandchild.pid);
   setInterval(() => {}, 1000);`,
];

/** True while a process runs; one that is dead and not yet waited for does not. */
function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

async function pidsOf(lines: () => readonly string[]): Promise<number[]> {
  for (let attempt = 0; attempt < 500; attempt++) {
    const line = lines().find((text) => text.startsWith("pids "));
    if (line !== undefined) return line.split(" ").slice(1).map(Number);
    await sleep(10);
  }
  throw new Error("the child did not print its process ids");
}

async function expectGone(pids: readonly number[]): Promise<void> {
  expect(pids.length).toBeGreaterThan(0);
  for (let attempt = 0; attempt < 300 && pids.some(isRunning); attempt++) await sleep(10);
  expect(pids.filter(isRunning)).toEqual([]);
}

describe.skipIf(process.platform !== "linux")("a child process (needs /proc, so Linux only)", () => {
  it("writes its log, passes warnings on and says how it ended", () =>
    withTempFolder(async (folder) => {
      const script = 'console.log("one"); console.error("WARN two"); console.log("beat"); process.exitCode = 1;';
      const { child, warnings, log } = start(folder, ["-e", script]);
      expect(await child.ended).toBe("ended with exit code 1");
      expect(warnings).toEqual(["WARN two"]);
      await sleep(50);
      expect(log().trim().split("\n").sort()).toEqual(["WARN two", "one"]);
      expect(endedUnexpectedly(child).message).toMatch(
        /^the x ended with exit code 1: (one|WARN two) \(log: .*x\.log\)$/,
      );
    }));

  it("goes on when its log cannot be written, and says once that lines are missing", () =>
    withTempFolder(async (folder) => {
      symlinkSync("/dev/full", join(folder, "x.log"));
      const { child, warnings } = start(folder, ["-e", 'for (const n of [1, 2, 3]) console.log("WARN", n)']);
      expect(await child.ended).toBe("ended with exit code 0");
      expect(child.lastLines()).toEqual(["WARN 1", "WARN 2", "WARN 3"]);
      expect(warnings).toEqual([`${child.logPath} has a gap: ENOSPC`, "WARN 1", "WARN 2", "WARN 3"]);
    }));

  it("puts a log aside that has grown long, while it is written", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "y.log");
      const text = (name: string) => readFileSync(join(folder, name), "utf8");
      const options = { path, bytesMax: 10, onGap: (message: string) => expect.fail(message) };
      const log = new ChildLog(options);
      for (const line of ["first of all", "second", "third", "fourth"]) log.write(line);
      // 13 bytes, then 7 and 6: the fourth line is the first of a third file.
      expect([text("y.log.old"), text("y.log")]).toEqual(["second\nthird\n", "fourth\n"]);
      log.close();
      const again = new ChildLog(options);
      for (const line of ["fifth", "sixth"]) again.write(line);
      again.close();
      expect([text("y.log.old"), text("y.log")]).toEqual(["fourth\nfifth\n", "sixth\n"]);
    }));

  it("begins a log anew that somebody took away while it was written", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "y.log");
      const log = new ChildLog({ path, bytesMax: 10, onGap: (message) => expect.fail(message) });
      log.write("first of all");
      rmSync(path);
      for (const line of ["second", "third"]) log.write(line);
      log.close();
      expect(readFileSync(path, "utf8")).toBe("second\nthird\n");
    }));

  it("stops with all that it started", () =>
    withTempFolder(async (folder) => {
      const { child } = start(folder, family(false));
      const pids = await pidsOf(child.lastLines);
      expect(pids.filter(isRunning)).toEqual(pids);
      await child.stop(10_000);
      expect(child.endedWith).toBe("ended by SIGTERM");
      await expectGone(pids);
    }));

  it("is killed, group and all, when it does not stop in time", () =>
    withTempFolder(async (folder) => {
      const { child } = start(folder, family(true));
      const pids = await pidsOf(child.lastLines);
      await child.stop(200);
      expect(child.endedWith).toBe("ended by SIGKILL");
      await expectGone(pids);
    }));

  it("under the guard ends when the process that started it is killed", () =>
    withTempFolder(async (folder) => {
      const script = `
        import { startChild } from ${JSON.stringify(join(repositoryRoot, "cli/child-process.ts"))};
        const child = startChild({
          name: "x", program: process.execPath, cwd: ".", env: process.env, logPath: ${JSON.stringify(join(folder, "x.log"))},
          args: ${JSON.stringify([guard, process.execPath, ...family(true)])},
          onWarning: (line) => { console.log(line); process.kill(process.pid, "SIGKILL"); },
          isWarning: (line) => line.startsWith("pids "),
        });
        await child.ended;`;
      const result = await runProgram(process.execPath, ["--input-type=module", "-e", script]);
      expect(result.signal).toBe("SIGKILL");
      await expectGone(await pidsOf(() => result.stdout.split("\n")));
    }));
});

describe("waiting", () => {
  const options = { what: "a wonder", timeoutMs: 250, signal: new AbortController().signal };

  it("ends with the truth, the time, or the child", () =>
    withTempFolder(async (folder) => {
      let asked = 0;
      await waitUntil(() => Promise.resolve(++asked === 2), { ...options, children: [] });
      expect(asked).toBe(2);
      await expect(waitUntil(() => Promise.reject(new Error("no")), { ...options, children: [] })).rejects.toThrow(
        "waited 0 s for a wonder",
      );
      const { child } = start(folder, ["-e", 'console.log("quire: no such thing"); process.exit(1)']);
      await child.ended;
      await expect(waitUntil(() => Promise.resolve(false), { ...options, children: [child] })).rejects.toThrow(
        /^the x ended with exit code 1: no such thing \(log: /,
      );
    }));
});
