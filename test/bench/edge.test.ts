import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout } from "node:timers/promises";
import { describe, expect, it, vi } from "vitest";
import { openConnection, timeTurn } from "../../bench/edge/turn-client.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("npm run bench -- edge", () => {
  it(
    "times turns through the whole edge in a workerd of its own, and the engine without it",
    () =>
      withTempFolder(async (folder) => {
        const path = join(folder, "edge.json");
        const run = await runBench(["edge", "--turns=5", "--tokens=4", "--gap=2", `--json=${path}`]);
        expect(run).toMatchObject({ code: 0 });
        const { rows, added } = JSON.parse(await readFile(path, "utf8")) as {
          rows: { kind: string; firstMs: { p50: number }; tokenMs: { p50: number } }[];
          added: { kind: string; requestMs: { p50: number }; tokenMs: { p50: number } }[];
        };
        const floor = ["floor: an object", "floor: a new object"];
        const chat = ["chat, first message", "chat, next message"];
        const sessions = ["later turn", "later turn, resumable", "new session", "new session, resumable"];
        expect(rows.map(({ kind }) => kind)).toEqual(["direct", ...floor, ...chat, ...sessions]);
        for (const { firstMs, tokenMs } of rows) {
          expect(firstMs.p50).toBeGreaterThan(0);
          expect(tokenMs.p50).toBeGreaterThan(0);
        }
        expect(added.map(({ kind }) => kind)).toEqual(rows.slice(1).map(({ kind }) => kind));
        // Differences of medians: on a busy machine some may be below zero.
        const direct = rows[0]!;
        for (const [index, { firstMs, tokenMs }] of rows.slice(1).entries()) {
          expect(added[index]!.requestMs.p50).toBeCloseTo(firstMs.p50 - direct.firstMs.p50, 9);
          expect(added[index]!.tokenMs.p50).toBeCloseTo(tokenMs.p50 - direct.tokenMs.p50, 9);
        }
      }),
    90_000,
  );
});

it.skipIf(process.platform === "win32")(
  "a terminal's Ctrl-C, which ends its workerd as well, ends it with what was measured until then",
  async () => {
    const args = ["bench/main.ts", "edge", "--turns=100000", "--tokens=4", "--gap=2"];
    const child = spawn(process.execPath, args, { detached: true, stdio: ["ignore", "pipe", "pipe"] });
    const group = -(child.pid ?? 0);
    const [ended, out, err] = [once(child, "close"), text(child.stdout), text(child.stderr)];
    try {
      // The edge and the floor, and then some turns.
      const workerds = () => execFileSync("pgrep", ["-c", "-g", String(-group), "workerd"], { encoding: "utf8" });
      await vi.waitFor(() => expect(workerds()).toBe("2\n"), { timeout: 40_000, interval: 200 });
      await setTimeout(1_500);
      process.kill(group, "SIGINT");
      expect([await ended, await err]).toEqual([[0, null], "bench: stopping early (once more: at once)\n"]);
      expect(await out).toContain("stopped early: what follows was measured until then\n");
    } finally {
      child.exitCode ?? process.kill(group, "SIGKILL");
    }
  },
  60_000,
);

describe("timeTurn", () => {
  it("notes each mark once, also one that is cut between two chunks, when it came", async () => {
    const writtenMs: number[] = [];
    const server = createServer(async (_, response) => {
      for (const part of ["xx<to", "k>y<tok><t", "ok>", "<to"]) {
        writtenMs.push(performance.timeOrigin + performance.now());
        response.write(part);
        await setTimeout(30);
      }
      response.end();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const agent = openConnection();
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
      const options = { agent, headers: {}, body: new Uint8Array(1), mark: Buffer.from("<tok>") };
      const { sentMs, tokenMs } = await timeTurn(url, { ...options, tokenCount: 3 });
      const [first = 0, second = 0, third = 0] = tokenMs;
      expect(sentMs).toBeLessThanOrEqual(writtenMs[0]!);
      expect(first).toBeGreaterThanOrEqual(writtenMs[1]!);
      expect(second).toBe(first);
      expect(third).toBeGreaterThanOrEqual(writtenMs[2]!);
      expect(third).toBeGreaterThan(second);
      await expect(timeTurn(url, { ...options, tokenCount: 4 })).rejects.toThrow("with 3 tokens");
    } finally {
      agent.destroy();
      server.close();
    }
  });
});
