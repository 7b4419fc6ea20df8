import { execFileSync, spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { delimiter, join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { openDataFolder } from "../../cli/data-folder.ts";
import { ENGINE_ENVIRONMENT, ENGINE_NODE_FLAGS } from "../../cli/engine-start.ts";
import { main } from "../../cli/main.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { quirePath, runProgram, runQuire, withTempFolder } from "./run-quire.ts";

const { version } = JSON.parse(readFileSync(join(repositoryRoot, "package.json"), "utf8")) as { version: string };

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

/** Help text without its columns. */
const unfolded = (help: string) => help.replace(/\s+/g, " ");

describe("quire", () => {
  it("explains itself and its commands", async () => {
    const overview = await runQuire(["--help"]);
    expect(overview).toMatchObject({ code: 0, stderr: "" });
    expect(overview.stdout).toMatch(/quire <command>[\s\S]*start[\s\S]*serve/);
    expect((await runQuire([])).stdout).toBe(overview.stdout);
    const start = await runQuire(["start", "--help"]);
    expect(start).toMatchObject({ code: 0, stderr: "" });
    expect(unfolded(start.stdout)).toMatch(/--port PORT port of the edge[^-]*default 8787, QUIRE_PORT\)/);
    expect((await runQuire(["help", "start"])).stdout).toBe(start.stdout);
    expect(await runQuire(["help", "sing"])).toMatchObject({ code: 1, stderr: expect.stringContaining('"sing"') });
    const serve = await runQuire(["serve", "--help"]);
    expect(serve).toMatchObject({ code: 0, stderr: "" });
    expect(unfolded(serve.stdout)).toMatch(/--store ADDRESS fs:FOLDER[^-]*default fs:/);
  });

  it("explains every command within 80 columns", async () => {
    const { stdout: overview } = await runQuire(["--help"]);
    const names = [...overview.matchAll(/^ {2}([a-z-]+) {2,}/gm)].map(([, name]) => name ?? "");
    expect(names).toContain("profile-heads");
    const write = vi.spyOn(process.stdout, "write").mockReturnValue(true);
    for (const name of names) expect(await main([name, "--help"])).toBe(0);
    const helps = write.mock.calls.flat().map(String);
    write.mockRestore();
    const lines = [overview, ...helps].join("\n").split("\n");
    expect(lines.filter((line) => line.length > 80)).toEqual([]);
    for (const help of helps) {
      // Flags are one table: what they mean begins in one column, and goes on in it.
      const table = help.slice(Math.max(0, help.search(/^ {2}--/m))).split(/\n(?=\n|$)/)[0] ?? "";
      const columns = table.split("\n").map((line) => (/^ {2}--\S+(?: \S+)*? {2,}|^ +/.exec(line)?.[0] ?? "").length);
      expect([help, new Set(columns).size]).toEqual([help, table.startsWith("  --") ? 1 : expect.any(Number)]);
    }
  });

  it("says its version", async () => {
    expect(await runQuire(["--version"])).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  it.each([
    [["sing"], {}, 'unknown command "sing"; quire --help lists them'],
    [["--loud"], {}, "unknown flag --loud; quire --help lists the commands"],
    [["strat"], {}, 'unknown command "strat" (did you mean start?); quire --help lists them'],
    [["start", "--prot", "1"], {}, "unknown flag --prot (did you mean --port?); --help lists them"],
    [["serve", "--pool_bytes", "1G"], {}, "unknown flag --pool_bytes (did you mean --pool-bytes?); --help lists them"],
    // Switches, which take no value, are known beside flags.
    [["verify", "--reapir"], {}, "unknown flag --reapir (did you mean --repair?); --help lists them"],
    [["gc", "--dryrun"], {}, "unknown flag --dryrun (did you mean --dry-run?); --help lists them"],
    [["sessions", "ls", "--jsno"], {}, "unknown flag --jsno (did you mean --json?); --help lists them"],
    [["inspect", "weights/house-0", "--jsno"], {}, "unknown flag --jsno (did you mean --json?); --help lists them"],
    [["inspect", "weights/house-0", "--json=yes"], {}, "--json takes no value"],
    // What a command is for may stand behind its flags.
    [["compile-tokenizer", "--out", "x", "weights/none"], {}, "weights/none is not there"],
    [["calibrate", "--kv", "f32", "weights/house-0", "more"], {}, 'unexpected argument "more"'],
    [["profile-heads", "--kv", "f32"], {}, "profile-heads needs a model folder or GGUF file"],
    [["pull", "--concurrency", "2", "a/b/c"], {}, '"a/b/c" is not a repository\'s name: OWNER/NAME'],
    [["keys", "revoke", "--file", "none.json", "key_0123456789ab"], {}, "none.json cannot be read (ENOENT)"],
    [["keys", "revoke", "key_1"], {}, "keys revoke needs a key's id: key_ and 12 hex digits"],
    // A word that stands twice is both: what the command is for, and a flag's value.
    [["inspect", "int8", "--kv", "int8"], {}, "int8: is not there"],
    [
      ["trace", "http://127.0.0.1:1", "--engine", "http://127.0.0.1:1"],
      {},
      "no engine answers at http://127.0.0.1:1: --engine or QUIRE_ENGINE_URL",
    ],
    [["serve", "-x"], {}, "unknown flag -x; --help lists them"],
    [["start", "here"], {}, 'unexpected argument "here"'],
    [["start", "--port"], {}, "--port needs a value"],
    [["start", "--port", "--data", "x"], {}, "--port needs a value"],
    [["start", "--threads", "-1"], {}, '--threads: must be a whole number from 1 to 256, not "-1"'],
    // What every request without a selection of its own would be refused for.
    [
      ["start", "--budget", "112"],
      {},
      '--budget: must be a multiple of 16 (whole pages) from 128 to 1048576, not "112"',
    ],
    [
      ["start", "--policy", "infllm"],
      {},
      "--policy infllm needs the page summaries representatives: --summaries min-max,mean-deviation,representatives",
    ],
    [["start", "--page-encoding=f16"], {}, "--page-encoding f16: pages of --kv int8 are stored as int8 or int4"],
    [["serve", "--page-encoding=f16"], {}, "--page-encoding f16: pages of --kv int8 are stored as int8 or int4"],
    [["start", "--port", "65536"], {}, '--port: must be a whole number from 0 to 65535, not "65536"'],
    [["start"], { QUIRE_PORT: "http" }, 'QUIRE_PORT: must be a whole number from 0 to 65535, not "http"'],
    [["serve", "--device", "abacus"], {}, '--device: must be one of auto, wasm, webgpu, reference, not "abacus"'],
    [["start", "--pool-bytes=lots"], {}, '--pool-bytes: must be a size such as 512M or 2G, not "lots"'],
    [
      ["start", "--policy", "foo"],
      {},
      '--policy: "foo": expected a policy: dense, streaming, quest, mean-deviation, arkvale, infllm, sign-hash, residual-signs, tokenselect, auto',
    ],
    [["start", "--policy", "quest("], {}, '--policy: "(" at position 5 of "quest(": expected "+" or the end'],
    [["start", "--model", "weights/none"], {}, "model folder weights/none is not there; name one with --model"],
    [["start", "--model", "protocol"], {}, "model folder protocol has no config.json"],
    ...["inspect", "calibrate", "profile-heads"].map((command): [string[], Record<string, string>, string] => {
      return [[command, "weights/house-0"], { QUIRE_KV: "int3" }, 'QUIRE_KV: must be one of int8, f32, not "int3"'];
    }),
    [["compile-tokenizer", "weights/none"], {}, "weights/none is not there"],
    [["compile-tokenizer", "weights/house-0", "--out", "/dev/null/x"], {}, "/dev/null/x cannot be written (ENOTDIR)"],
    [["keys", "list", "--file", "weights/none.json"], {}, "weights/none.json cannot be read (ENOENT)"],
    [
      ["keys", "create", "--tenant", "a", "--file", "weights/none/keys.json"],
      {},
      "weights/none/keys.json cannot be written (ENOENT)",
    ],
  ])("refuses %j %j with one clear line", async (args, env, message) => {
    for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
    const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    expect(await main(args)).toBe(1);
    expect(stderr.mock.calls).toEqual([[`quire: ${message}\n`]]);
  });

  it.each([
    ["profile-heads", "heads.json"],
    ["calibrate", "selection.json"],
  ])("%s says before it measures that it could not write %s", (command, file) =>
    withTempFolder(async (folder) => {
      writeFileSync(join(folder, "model.safetensors"), "");
      mkdirSync(join(folder, file));
      const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
      expect(await main([command, folder])).toBe(1);
      expect(stderr.mock.calls).toEqual([[`quire: ${join(folder, file)} cannot be written (EISDIR)\n`]]);
    }),
  );

  it("ends as a process with that line and exit code 1", async () => {
    const result = await runQuire(["start", "--prot", "1"]);
    const stderr = "quire: unknown flag --prot (did you mean --port?); --help lists them\n";
    expect(result).toEqual({ code: 1, signal: null, stdout: "", stderr });
  });
});

describe("the model that ships", () => {
  it("is found from any folder, where that has none of its own", () =>
    withTempFolder(async (folder) => {
      const serve = ["serve", "--device=wasm", "--threads=1", "--pool-bytes=1M", "--port=0", "--store=memory:"];
      const run = () => runProgram(process.execPath, [quirePath, ...serve], {}, folder);
      expect(await run()).toMatchObject({ code: 1, stderr: expect.stringContaining("a KV pool of 1.0 MiB") });
      mkdirSync(join(folder, "weights/house"), { recursive: true });
      const own = "quire: model folder weights/house has no config.json\n";
      expect(await run()).toMatchObject({ code: 1, stderr: expect.stringContaining(own) });
    }));
});

describe("a taken port", () => {
  const servers: Server[] = [];
  afterEach(() => {
    for (const server of servers.splice(0)) server.close();
  });
  const take = (): Promise<number> =>
    new Promise((resolve) => {
      const server = createServer().listen(0, "127.0.0.1", () => {
        const address = server.address();
        resolve(typeof address === "object" && address !== null ? address.port : 0);
      });
      servers.push(server);
    });

  it("is not what somebody is told who starts the same folder twice", () =>
    withTempFolder(async (folder) => {
      const running = await openDataFolder(folder);
      const port = await take();
      const result = await runQuire(["start", `--port=${port}`, `--engine-port=${port}`, `--data=${folder}`]);
      await running.release();
      const stderr = `quire: data folder ${folder} is in use by process ${process.pid}; choose another with --data\n`;
      expect(result).toEqual({ code: 1, signal: null, stdout: "", stderr });
    }));

  it.each(["--port", "--engine-port"])("given as %s is one clear line", async (flag) => {
    const port = await take();
    await withTempFolder(async (folder) => {
      const others = ["--port=0", "--engine-port=0", `--data=${join(folder, "data")}`];
      const result = await runQuire(["start", ...others, flag, String(port)]);
      const stderr = `quire: port ${port} is taken; choose another with ${flag}\n`;
      expect(result).toEqual({ code: 1, signal: null, stdout: "", stderr });
    });
  });

  it("is the same line also where somebody takes it while the model is loaded", { timeout: 60_000 }, async () => {
    // The second to listen is the engine: the first one only looked whether the port is free.
    const preload = `
      import { Server } from "node:net";
      const { listen } = Server.prototype;
      let count = 0;
      Server.prototype.listen = function (...args) {
        if (++count === 2) args[0] = globalThis.taken.address().port;
        return listen.apply(this, args);
      };
      globalThis.taken = new Server();
      listen.call(globalThis.taken, 0, "127.0.0.1").unref();
    `;
    const node = ["--import", `data:text/javascript,${encodeURIComponent(preload)}`, quirePath];
    const model = ["--model", "weights/house-0", "--device", "wasm", "--threads", "1", "--pool-bytes", "16M"];
    const result = await runProgram(process.execPath, [...node, "serve", "--port=0", "--store=memory:", ...model]);
    expect(result).toMatchObject({ code: 1, signal: null, stdout: "" });
    expect(result.stderr.trimEnd().split("\n").at(-1)).toMatch(
      /^quire: port \d+ is taken; choose another with --port$/,
    );
  });
});

describe("the Node it runs on", () => {
  const preload = 'Object.defineProperty(process, "versions", { value: { ...process.versions, node: "20.0.0" } });';
  const asOldNode = ["--import", `data:text/javascript,${encodeURIComponent(preload)}`, quirePath];

  it("is the one that npm installed when the host's is older; the exit code passes through", async () => {
    const result = await runProgram(process.execPath, [...asOldNode, "--version"]);
    expect(result).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: "" });
    const refused = await runProgram(process.execPath, [...asOldNode, "sing"]);
    expect(refused).toMatchObject({ code: 1, stderr: 'quire: unknown command "sing"; quire --help lists them\n' });
  });

  const toldStart = `data:text/javascript,${encodeURIComponent("console.error(process.pid, ...process.execArgv.slice(0, -2));")}`;
  const asTold = ["--import", toldStart, quirePath];

  it.skipIf(process.platform === "win32")(
    "becomes one with an engine's flags for `quire serve`, once, and in place",
    async () => {
      const flags = ENGINE_NODE_FLAGS.join(" ");
      const [before, after, ...more] = (
        await runProgram(process.execPath, [...asTold, "serve", "--help"])
      ).stderr.split("\n");
      expect([after, ...more]).toEqual([`${before?.trim()} ${flags}`, ""]);
      const whole = [...ENGINE_NODE_FLAGS, ...asTold, "serve", "--help"];
      const given = await runProgram(process.execPath, whole, ENGINE_ENVIRONMENT);
      expect(given.stderr).toMatch(new RegExp(`^\\d+ ${flags}\n$`));
      const other = await runProgram(process.execPath, [...asTold, "--version"]);
      expect(other).toMatchObject({ stdout: `${version}\n`, stderr: expect.stringMatching(/^\d+\n$/) });
    },
  );

  it.skipIf(process.platform !== "linux")(
    "has an engine's variables for `quire serve`, and the user's own",
    async () => {
      const tell = (name: string) => `console.error("told", process.env.${name});`;
      for (const [name, value] of Object.entries(ENGINE_ENVIRONMENT)) {
        const told = `data:text/javascript,${encodeURIComponent(tell(name))}`;
        const toldBy = async (command: string, program: readonly string[], env: Record<string, string> = {}) => {
          const { stderr } = await runProgram(process.execPath, ["--import", told, ...program, command, "--help"], env);
          return stderr.trim().split("\n").at(-1);
        };
        expect(await toldBy("serve", [quirePath])).toBe(`told ${value}`);
        expect(await toldBy("serve", [quirePath], { [name]: "65536" })).toBe("told 65536");
        expect(await toldBy("sessions", [quirePath])).toBe("told undefined");
      }
    },
  );

  it.skipIf(process.platform === "win32")(
    "ends an engine at once that is asked to while it loads its weights",
    async () => {
      // Weights that never come, and a SIGTERM as soon as they are asked for.
      const stalls = `import { syncBuiltinESMExports } from "node:module";
      import fs from "node:fs/promises";
      const open = fs.open;
      fs.open = (path, ...rest) => {
        if (!String(path).endsWith(".safetensors")) return open(path, ...rest);
        process.kill(process.pid, "SIGTERM");
        return new Promise(() => setInterval(() => {}, 1000));
      };
      syncBuiltinESMExports();`;
      const loader = `data:text/javascript,${encodeURIComponent(stalls)}`;
      const args = ["serve", "--model", "weights/house-0", "--device", "wasm", "--port", "0", "--store", "memory:"];
      const result = await runProgram(process.execPath, ["--import", loader, quirePath, ...args]);
      expect(result).toMatchObject({ code: 0, stdout: "quire: SIGTERM: stopping before the engine is ready\n" });
    },
  );

  it.skipIf(!existsSync("/dev/full"))("does not call done what could not be written", async () => {
    const command = `"${process.execPath}" "${quirePath}" --version > /dev/full`;
    const stderr = "quire: standard output cannot be written (ENOSPC)\n";
    expect(await runProgram("bash", ["-c", command])).toMatchObject({ code: 1, stderr });
  });

  it.skipIf(!existsSync("/dev/full"))("serves on where nothing that it says can be written", async () => {
    const full = openSync("/dev/full", "w");
    const args = [quirePath, "serve", "--port=0", "--store=memory:", "--model=weights/house-0"];
    const { QUIRE_ENGINE_KEY: _, ...env } = process.env;
    const child = spawn(process.execPath, args, { cwd: repositoryRoot, env, stdio: ["ignore", "pipe", full] });
    closeSync(full);
    const ended = new Promise((resolve) => child.once("close", resolve));
    const ready = new Promise<void>((resolve) => {
      let text = "";
      child.stdout?.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
        if (text.includes(" is ready on ")) resolve();
      });
    });
    await Promise.race([ready, ended]);
    expect(child.exitCode).toBeNull();
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  });

  it("has an engine's flags for `quire serve` also where the host's is older", async () => {
    const tell = 'if (process.connected) console.error("child", ...process.execArgv);';
    const env = { NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(tell)}` };
    const flagsOf = async (command: string) =>
      /^child ?(.*)$/m.exec((await runProgram(process.execPath, [...asOldNode, command, "--help"], env)).stderr)?.[1];
    expect(await flagsOf("serve")).toBe(ENGINE_NODE_FLAGS.join(" "));
    expect(await flagsOf("sessions")).toBe("");
  });

  const oldNode = findOldNode();
  it.skipIf(oldNode === undefined)("works from a really older Node (skipped where the host has none)", async () => {
    const result = await runProgram(oldNode ?? "", [quirePath, "--version"]);
    expect(result).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: "" });
  });
});

/** A Node of version 20 to 23 on the path, npm's own folder aside. */
function findOldNode(): string | undefined {
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    if (folder.includes("node_modules")) continue;
    try {
      const text = execFileSync(join(folder, "node"), ["--version"], { encoding: "utf8", stdio: "pipe" });
      const major = Number(/^v(\d+)/.exec(text)?.[1]);
      if (major >= 20 && major < 24) return join(folder, "node");
    } catch {
      // No Node in this folder.
    }
  }
  return undefined;
}
