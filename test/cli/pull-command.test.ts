import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openModelFolder } from "../../cli/model-folder.ts";
import { openDevice } from "../../kernels/open.ts";
import { openModel } from "../../models/open.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { type HostileHub, hubCommit, startHub } from "./hostile-hub.ts";
import { quirePath, runQuire, withTempFolder } from "./run-quire.ts";

const house = join(repositoryRoot, "weights/house-0");
const weights = "model.safetensors";
const token = "hf_secretOfThisTest";
const mebibyte = 1 << 20;

let hub: HostileHub;

beforeEach(async () => {
  hub = await startHub();
  for (const name of ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", weights]) {
    hub.files.set(name, readFileSync(join(house, name)));
  }
});

afterEach(() => hub.close());

/** Sends the first MiB of the weights, and then nothing. */
function stallWeights(): void {
  hub.misbehaviours.set(weights, (_request, response, { body }) => {
    response.writeHead(200, { "content-length": body.length, etag: '"e"' });
    response.write(body.subarray(0, mebibyte));
  });
}

/** Ends a pull once part of the weights is on the disk; resolves to its exit code and what it said. */
async function interrupt(out: string, signal: NodeJS.Signals): Promise<{ code: number | null; stderr: string }> {
  const child: ChildProcess = spawn(process.execPath, [quirePath, "pull", "owner/name", "--out", out], {
    env: { ...process.env, HF_ENDPOINT: hub.url },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr!.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  const hasPart = (): boolean => {
    const stage = join(out, ".pull");
    const names = existsSync(stage) ? readdirSync(stage) : [];
    return names.some(
      (name) => name.startsWith(weights) && name.endsWith(".part") && statSync(join(stage, name)).size === mebibyte,
    );
  };
  try {
    await expect.poll(hasPart, { timeout: 20_000 }).toBe(true);
  } finally {
    child.kill(signal);
  }
  return { code: await ended, stderr };
}

describe("quire pull", () => {
  it("brings a model that opens, with no hub any more; its words hold no token", async () => {
    await withTempFolder(async (folder) => {
      const out = join(folder, "house");
      const env = { HF_ENDPOINT: "http://127.0.0.1:1", HF_TOKEN: token };
      const result = await runQuire(["pull", "owner/name", "--endpoint", `${hub.url}/`, "--out", out], env);
      expect(result).toMatchObject({
        code: 0,
        stdout: `quire: ${out} holds owner/name at ${hubCommit} (5 of 5 files downloaded)\nquire: quire serve --model ${out}\n`,
      });
      expect(result.stderr).toMatch(/^quire: 5 files, 1\.5 MiB\n/);
      expect(result.stderr).toMatch(/quire: model\.safetensors: 1\.5 MiB, checked\n/);
      expect(result.stdout + result.stderr).not.toContain(token);
      expect(hub.seen[0]).toMatchObject({ authorization: `Bearer ${token}` });
      const again = await runQuire(["pull", "owner/name", "--endpoint", hub.url, "--out", out]);
      expect(again).toMatchObject({ code: 0, stderr: "" });
      expect(again.stdout).toContain("(already there)");
      expect(hub.downloads).toHaveLength(5);
      await hub.close();

      expect((await openModelFolder(out)).edgeFiles).toContain("tokenizer.json");
      const device = await openDevice({ kind: "reference" });
      const kv = { encoding: "f32", summaryKinds: [], blockCount: 1, openSlotCount: 1, summarySlotCount: 1 } as const;
      const runner = await openModel({ device, encoding: "f32", folder: out, kv, rowsMax: 1 });
      expect(runner.config.modelType).toBe("llama");
      hub = await startHub();
    });
  });

  it.each([
    ["SIGKILL", null],
    ["SIGINT", 130],
  ] as const)("goes on where %s ended it", async (signal, exitCode) => {
    await withTempFolder(async (folder) => {
      const out = join(folder, "house");
      stallWeights();
      const { code, stderr } = await interrupt(out, signal);
      expect(code).toBe(exitCode);
      if (signal === "SIGINT") expect(stderr).toMatch(/quire: SIGINT: stopped; the same command goes on from here\n$/);
      expect(readdirSync(out), "nothing counts before all is there").toEqual([".pull"]);
      hub.misbehaviours.clear();
      hub.seen.length = 0;
      expect(await runQuire(["pull", "owner/name", "--endpoint", hub.url, "--out", out])).toMatchObject({ code: 0 });
      expect(hub.requestsOf(weights)).toMatchObject([{ range: `bytes=${mebibyte}-`, ifRange: '"e"' }]);
      expect(readFileSync(join(out, weights)).equals(hub.files.get(weights)!)).toBe(true);
      expect(readdirSync(out)).not.toContain(".pull");
    });
  });

  it("leaves a folder to the process that is pulling into it", async () => {
    await withTempFolder(async (folder) => {
      const out = join(folder, "house");
      stallWeights();
      const first = spawn(process.execPath, [quirePath, "pull", "owner/name", "--endpoint", hub.url, "--out", out], {
        stdio: "ignore",
      });
      try {
        await expect.poll(() => existsSync(join(out, ".pull/lock")), { timeout: 20_000 }).toBe(true);
        const second = await runQuire(["pull", "owner/name", "--endpoint", hub.url, "--out", out]);
        expect(second).toMatchObject({ code: 1, stdout: "" });
        expect(second.stderr).toMatch(/^quire: .*house: process \d+ is pulling into it\n$/);
      } finally {
        first.kill("SIGKILL");
        await new Promise((resolve) => first.once("close", resolve));
      }
    });
  });

  it("refuses a lie with one line and exit code 1", async () => {
    await withTempFolder(async (folder) => {
      hub.misbehaviours.set(weights, (_request, response, { body }) => response.end(randomBytes(body.length)));
      const args = ["pull", "owner/name", "--endpoint", hub.url, "--out", join(folder, "house")];
      const result = await runQuire(args, { HF_TOKEN: token });
      expect(result).toMatchObject({ code: 1, stdout: "" });
      const last = result.stderr.trimEnd().split("\n").at(-1);
      expect(last).toBe("quire: model.safetensors: its SHA-256 is not the one the hub announces");
      expect(readdirSync(join(folder, "house"))).toEqual([".pull"]);
    });
  });

  it.each<[string[], NodeJS.ProcessEnv, RegExp]>([
    [["pull"], {}, /^quire: pull needs a repository: OWNER\/NAME\n$/],
    [["pull", "a/b/c"], {}, /^quire: "a\/b\/c" is not a repository's name/],
    [["pull", "../b"], {}, /^quire: "\.\.\/b" is not a repository's name/],
    [["pull", "a/b", "--revision", "../../x"], {}, /^quire: --revision: must be a branch, tag or commit/],
    [["pull", "a/b", "--concurrency", "0"], {}, /^quire: --concurrency: must be a whole number from 1 to 16/],
    [["pull", "a/b"], { HF_ENDPOINT: "ftp://x" }, /^quire: HF_ENDPOINT: must be an http or https address/],
    [["pull", "a/b"], { HF_TOKEN: "hf_two\nlines" }, /^quire: HF_TOKEN holds characters that no token has\n$/],
  ])("%j %j ends in one line", async (args, env, message) => {
    const result = await runQuire(args, env);
    expect(result).toMatchObject({ code: 1, stdout: "" });
    expect(result.stderr).toMatch(message);
    expect(result.stderr.trim()).not.toContain("\n");
  });
});
