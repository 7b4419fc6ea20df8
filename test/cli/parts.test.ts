import { execFileSync, spawn } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { chmod, copyFile, lstat, mkdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkRoom, openDataFolder } from "../../cli/data-folder.ts";
import { devVars, localConfig } from "../../cli/edge-process.ts";
import { jsonLog, shortWarning } from "../../cli/engine-log.ts";
import { parseBudget, parseBytes, parseFlags, parseHttpUrl, parseInteger, parsePort } from "../../cli/flags.ts";
import { loadReport } from "../../cli/load-report.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import { nearestName } from "../../cli/near-miss.ts";
import { findPort } from "../../cli/ports.ts";
import { curlLine } from "../../cli/ready-block.ts";
import { listenForStop } from "../../cli/stop-request.ts";
import { progressReport } from "../../cli/store/progress.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { withTempFolder } from "./run-quire.ts";

/** Opens a data folder and holds it. */
const HOLD_LOCK = `
  const { openDataFolder } = await import(process.argv[1] + "/../../cli/data-folder.ts");
  await openDataFolder(process.argv[2]);
  console.log("open");
  setInterval(() => {}, 1000);
`;

describe("flags", () => {
  const flags = {
    port: { help: "", placeholder: "P", env: "Q_PORT", fallback: "1", parse: parsePort },
    name: { help: "", placeholder: "N", env: "Q_NAME", parse: String },
  } as const;

  it("come from the command line, else the environment, else the default", () => {
    expect(parseFlags(flags, [], {})).toEqual({ port: 1, name: undefined });
    expect(parseFlags(flags, [], { Q_PORT: "2", Q_NAME: "" })).toEqual({ port: 2, name: undefined });
    expect(parseFlags(flags, ["--port=3", "--name", "a b"], { Q_PORT: "2" })).toEqual({ port: 3, name: "a b" });
    expect(parseFlags(flags, ["--port=3", "--port", "4"], {})).toEqual({ port: 4, name: undefined });
  });

  it("check their values", () => {
    expect(["1", "64K", "512M", "2G"].map(parseBytes)).toEqual([1, 65_536, 536_870_912, 2_147_483_648]);
    expect(parseBudget("2048")).toBe(2048);
    expect(parseHttpUrl("http://127.0.0.1:8787/")).toBe("http://127.0.0.1:8787");
    const bad = [
      () => parseBytes("0"),
      () => parseBudget("0"),
      () => parseBudget("100"),
      () => parseBudget("112"),
      () => parseBytes("1.5G"),
      () => parseBytes("9999999999G"),
      () => parseInteger({ min: 2, max: 3 })("1"),
      () => parseInteger({ min: 2, max: 3 })("-2"),
      () => parseInteger({ min: 0, max: 3 })("1e0"),
      () => parseHttpUrl("ftp://x"),
      () => parseHttpUrl("localhost:1"),
    ];
    for (const parse of bad) expect(parse).toThrow(UsageError);
  });
});

describe("a word that is none", () => {
  const names = ["port", "engine-port", "pool-bytes", "host-pool-mib", "policy", "data"];

  it.each([
    ["prot", "port"],
    ["ports", "port"],
    ["prt", "port"],
    ["enginePort", "engine-port"],
    ["pool_bytes", "pool-bytes"],
    ["hostpoolmb", "host-pool-mib"],
    ["polciy", "policy"],
    ["date", "data"],
    ["xy", undefined],
    ["a", undefined],
    ["verbose", undefined],
    ["", undefined],
  ])("%j is near to %j", (word, name) => expect(nearestName(word, names)).toBe(name));
});

describe("the data folder", () => {
  it("keeps its secrets across openings, readable by nobody else", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "data");
      const first = await openDataFolder(path);
      await first.release();
      await chmod(join(path, "secrets.json"), 0o644);
      const second = await openDataFolder(path);
      await second.release();
      expect(second.secrets).toEqual(first.secrets);
      expect(new Set(Object.values(first.secrets)).size).toBe(6);
      expect((await stat(join(path, "secrets.json"))).mode & 0o777).toBe(0o600);
      expect((await stat(path)).mode & 0o777).toBe(0o700);
      const other = await openDataFolder(join(folder, "other"));
      await other.release();
      for (const value of Object.values(other.secrets)) expect(Object.values(first.secrets)).not.toContain(value);
    }));

  it("from before there were operators gets a key for them, and keeps the rest", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "data");
      const first = await openDataFolder(path);
      await first.release();
      const { operatorKey: _, ...old } = first.secrets;
      await writeFile(join(path, "secrets.json"), JSON.stringify(old));
      const second = await openDataFolder(path);
      await second.release();
      expect(second.secrets).toMatchObject(old);
      expect(second.secrets.operatorKey).toMatch(/^qk-[\w-]{43}$/);
      const third = await openDataFolder(path);
      await third.release();
      expect(third.secrets).toEqual(second.secrets);
    }));

  it("needs a disk that is not full, and takes one that tells no size", () => {
    const left = (mib: number) => ({ blocks: 1_000_000, bavail: mib * 256, bsize: 4096 });
    expect(() => checkRoom("d", left(31))).toThrow(
      new UsageError(
        "the disk of data folder d has 31.0 MiB left, 32.0 MiB are needed; make room or choose another with --data",
      ),
    );
    expect(() => checkRoom("d", left(32))).not.toThrow();
    expect(() => checkRoom("d", { blocks: 0, bavail: 0, bsize: 4096 })).not.toThrow();
  });

  it("belongs to one living process; a dead one's lock is taken over", () =>
    withTempFolder(async (folder) => {
      const holder = spawn(process.execPath, ["--input-type=module", "-e", HOLD_LOCK, import.meta.dirname, folder], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      try {
        await once(holder.stdout, "data");
        const refusal = new RegExp(`is in use by process ${holder.pid}; choose another with --data`);
        await expect(openDataFolder(folder)).rejects.toThrow(refusal);
      } finally {
        holder.kill("SIGKILL");
        await once(holder, "close");
      }
      const data = await openDataFolder(folder);
      expect(await readFile(join(folder, "lock"), "utf8")).toBe(String(process.pid));
      await expect(openDataFolder(folder)).rejects.toThrow(`is in use by process ${process.pid}`);
      await data.release();
      await expect(stat(join(folder, "lock"))).rejects.toThrow("ENOENT");
    }));

  it("of a version that locked by a process number alone can be opened", () =>
    withTempFolder(async (folder) => {
      await writeFile(join(folder, "lock"), String(process.ppid));
      const data = await openDataFolder(folder);
      await data.release();
    }));

  it.skipIf(!existsSync("/dev/full"))("that cannot be written is refused in one line, and leaves no lock behind", () =>
    withTempFolder(async (folder) => {
      await symlink("lock.db", join(folder, "lock.db"));
      await expect(openDataFolder(folder)).rejects.toThrow(/^data folder \S+ cannot be written \(.+\)$/);
      await rm(join(folder, "lock.db"));
      await symlink("/dev/full", join(folder, `secrets.json.${process.pid}.tmp`));
      await expect(openDataFolder(folder)).rejects.toThrow(/^data folder \S+ cannot be written \(ENOSPC\)$/);
      await expect(stat(join(folder, "lock"))).rejects.toThrow("ENOENT");
    }),
  );

  it("never makes secrets anew where there are some that cannot be read", () =>
    withTempFolder(async (folder) => {
      await symlink("secrets.json", join(folder, "secrets.json"));
      await expect(openDataFolder(folder)).rejects.toThrow(/secrets\.json cannot be read \(ELOOP\)$/);
      expect((await lstat(join(folder, "secrets.json"))).isSymbolicLink()).toBe(true);
    }));

  it("refuses damaged secrets and leaves no lock behind", () =>
    withTempFolder(async (folder) => {
      await writeFile(join(folder, "secrets.json"), '{"apiKey":');
      await expect(openDataFolder(folder)).rejects.toThrow(/secrets\.json is damaged/);
      await expect(stat(join(folder, "lock"))).rejects.toThrow("ENOENT");
    }));
});

describe("a warning of an engine", () => {
  it("is shown as its event and its error, without the hashes that name things", () => {
    const lines: string[] = [];
    const log = jsonLog(
      (line) => lines.push(line.trimEnd()),
      () => new Date(0),
    );
    const hash = "d124d0829302d7a4f99833ef8dda0753";
    log("persist.commit-failed", {
      sessionKey: `${hash}/s-1`,
      error: `StoreError: PUT kv/${hash}/tail/${hash}-1 was aborted`,
    });
    log("attach.tail-lost", { objectKey: hash });
    expect(lines.map(shortWarning)).toEqual([
      "persist.commit-failed: StoreError: PUT kv/d124d082.../tail/d124d082...-1 was aborted",
      "attach.tail-lost",
    ]);
    for (const line of ["quire: loading weights: 39 %", "null", "[1]", "TypeError: x is not a function"]) {
      expect(shortWarning(line)).toBe(line);
    }
  });
});

describe("a store command that takes long", () => {
  it("says how far it is every five seconds", () => {
    let nowMs = 100;
    const lines: string[] = [];
    const progress = progressReport(
      (line) => lines.push(line),
      () => nowMs,
    );
    for (let read = 1; read <= 12; read++) {
      nowMs += 1_000;
      progress(() => `${read} read`);
    }
    expect(lines).toEqual(["quire: 5 read so far\n", "quire: 10 read so far\n"]);
  });
});

describe("the edge's settings", () => {
  const secrets = {
    apiKey: "qk-a",
    operatorKey: "qk-o",
    engineKey: "e",
    tenantSalt: "t",
    s3AccessKeyId: "id",
    s3SecretAccessKey: "sec",
  };

  it("are the repository's with an absolute entry and this folder's key", async () => {
    const config = await readFile(new URL("../../wrangler.toml", import.meta.url), "utf8");
    const local = localConfig(config, secrets);
    expect(local).toMatch(/^main = "\/.*workers\/index\.ts"$/m);
    expect(local).toMatch(/^accessKeyId = "id"$/m);
    expect(local).toMatch(/^secretAccessKey = "sec"$/m);
    const changed = local.split("\n").filter((line, index) => line !== config.split("\n")[index]);
    expect(changed).toHaveLength(3);
    expect(() => localConfig("name = 1", secrets)).toThrow("exactly one line main");
  });

  it("hold the hash of the key, not the key", () => {
    const text = devVars(secrets, {});
    // sha256sum of "qk-a"
    expect(text).toContain(`'{"40d680aa741d67ec026f402f97ee0226bd6f4ac9a0257479cb4cda7b06cbf14e":{"tenant":"dev"},`);
    expect(text).toContain('{"tenant":"operators","scopes":["keys"]}');
    expect(text).not.toMatch(/qk-[ao]/);
    expect(text).not.toContain("QUIRE_SELECTION");
    expect(devVars(secrets, { policy: "quest", budgetTokens: 512, exact: true })).toContain(
      `QUIRE_SELECTION='{"policy":"quest","budget_tokens":512,"exact":true}'`,
    );
  });
});

describe("the model folder", () => {
  const houseConfig = readFileSync("weights/house-0/config.json", "utf8");
  const whole = {
    "config.json": houseConfig,
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "model.safetensors": "x",
  };
  const folderWith = async (parent: string, files: Record<string, string>): Promise<string> => {
    const path = join(parent, "tiny");
    await rm(path, { recursive: true, force: true });
    await mkdir(path);
    for (const [name, text] of Object.entries(files)) await writeFile(join(path, name), text);
    return path;
  };

  it("is taken when it is whole; generation_config.json may be missing", () =>
    withTempFolder(async (parent) => {
      const model = await openModelFolder(await folderWith(parent, whole));
      expect(model.modelId).toBe("tiny");
      expect(model.edgeFiles).toEqual(["config.json", "tokenizer.json", "tokenizer_config.json"]);
      const more = await openModelFolder(await folderWith(parent, { ...whole, "generation_config.json": "{}" }));
      expect(more.edgeFiles).toContain("generation_config.json");
    }));

  it("takes its chat template from chat_template.jinja where there is one", () =>
    withTempFolder(async (parent) => {
      const config = JSON.stringify({ bos_token: "<s>", chat_template: "old" });
      const folder = await folderWith(parent, {
        ...whole,
        "tokenizer_config.json": config,
        "chat_template.jinja": "new",
      });
      const model = await openModelFolder(folder);
      expect(model.edgeFiles).not.toContain("chat_template.jinja");
      const bytes = await model.readEdgeFile("tokenizer_config.json");
      expect(JSON.parse(new TextDecoder().decode(bytes))).toEqual({ bos_token: "<s>", chat_template: "new" });
    }));

  it("is refused in one line otherwise", () =>
    withTempFolder(async (parent) => {
      for (const name of Object.keys(whole)) {
        const { [name as keyof typeof whole]: _, ...rest } = whole;
        await expect(openModelFolder(await folderWith(parent, rest))).rejects.toThrow(`has no ${name}`);
      }
      const broken = await folderWith(parent, { ...whole, "tokenizer.json": "{" });
      await expect(openModelFolder(broken)).rejects.toThrow("tokenizer.json is not JSON");
      const mamba = JSON.stringify({ ...JSON.parse(houseConfig), model_type: "mamba" });
      const other = await folderWith(parent, { ...whole, "config.json": mamba });
      await expect(openModelFolder(other)).rejects.toThrow('model_type: "mamba" is not supported, only "llama"');
    }));

  it("may be a GGUF file, alone or in a folder: the edge's files come out of it", () =>
    withTempFolder(async (parent) => {
      const file = "test/models/vectors/fixtures/llama-mixed.gguf";
      const folder = join(parent, "a-model");
      await mkdir(folder);
      await copyFile(file, join(folder, "weights.gguf"));
      const models = [await openModelFolder(file), await openModelFolder(folder)];
      expect(models.map(({ modelId }) => modelId)).toEqual(["llama-mixed", "a-model"]);
      for (const model of models) {
        expect(model.edgeFiles).toEqual(["config.json", "tokenizer.json", "tokenizer_config.json"]);
        const read = async (name: string) => JSON.parse(new TextDecoder().decode(await model.readEdgeFile(name)));
        expect(await read("config.json")).toEqual({ model_type: "llama", bos_token_id: 258, eos_token_id: [259, 262] });
        const { tokenizer } = openTokenizer({
          tokenizerJson: await read("tokenizer.json"),
          tokenizerConfig: await read("tokenizer_config.json"),
        });
        expect(tokenizer.encode("the", { special: false })).toEqual([116, 257]);
      }
      await writeFile(join(folder, "weights.gguf"), "GGUF");
      await expect(openModelFolder(folder)).rejects.toThrow(/^model .*: weights\.gguf: is truncated/);
    }));
});

describe("small parts", () => {
  it("reports loading every two seconds, and nothing that is faster", () => {
    const lines: string[] = [];
    let nowMs = 100;
    const report = loadReport(
      (line) => lines.push(line),
      () => nowMs,
    );
    for (const [atMs, loadedCount] of [
      [200, 1e6],
      [2_099, 2e6],
      [2_100, 50e6],
      [4_000, 60e6],
      [5_100, 199.9e6],
    ] as const) {
      nowMs = atMs;
      report({ tensor: "t", loadedCount, totalCount: 200e6 });
    }
    expect(lines).toEqual([
      "quire: loading weights: 25 % of 200 million after 2 s\n",
      "quire: loading weights: 99 % of 200 million after 5 s\n",
    ]);
  });

  it("finds a free port and says which address cannot be used", async () => {
    const port = await findPort({ host: "127.0.0.1", port: 0, flag: "--port" });
    expect(port).toBeGreaterThan(1_023);
    expect(port, "no outgoing connection can take it meanwhile").toBeLessThan(32_768);
    await expect(findPort({ host: "192.0.2.1", port: 0, flag: "--port" })).rejects.toThrow(
      "192.0.2.1 is no address of this machine (EADDRNOTAVAIL); choose another with --host",
    );
  });

  it("takes two signals at once for one request, and a later one for insistence", async () => {
    const source = new EventEmitter();
    let nowMs = 0;
    const stop = listenForStop(source, () => nowMs);
    let insisted = false;
    void stop.insisted.then(() => {
      insisted = true;
    });
    source.emit("SIGINT");
    nowMs = 300;
    source.emit("SIGINT");
    expect(await stop.requested).toBe("SIGINT");
    await new Promise(setImmediate);
    expect(insisted).toBe(false);
    nowMs = 1_000;
    source.emit("SIGTERM");
    await stop.insisted;
  });

  it("prints a curl line that a shell splits into the arguments it means", () => {
    const line = curlLine({ url: "http://127.0.0.1:1", apiKey: "qk-key", modelId: "house-0" });
    const script = `curl() { printf '%s\\n' "$@"; }; ${line}`;
    const args = execFileSync("sh", ["-c", script], { encoding: "utf8" }).trimEnd().split("\n");
    expect(args.slice(0, 7)).toEqual([
      "-sS",
      "http://127.0.0.1:1/v1/chat/completions",
      "-H",
      "authorization: Bearer qk-key",
      "-H",
      "content-type: application/json",
      "-d",
    ]);
    const body = JSON.parse(args[7] ?? "") as { model: string; messages: { content: string }[] };
    expect(body.model).toBe("house-0");
    expect(body.messages[0]?.content).toMatch(/The code of \w+ is \d{4}\..* What is the code of \w+\?$/);
  });
});
