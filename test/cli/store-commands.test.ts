import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { describe, expect, it, vi } from "vitest";
import { main } from "../../cli/main.ts";
import { readTar, TAR_END, tarEntry } from "../../cli/store/tar.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { endSession } from "../../storage/end-session.ts";
import { FsStore } from "../../storage/fs-store.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { parseObjectKey } from "../../storage/keys.ts";
import { loadManifest } from "../../storage/manifest.ts";
import { segmentBytes } from "../../storage/segment.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { noise } from "../storage/random.ts";
import { storeWholeSession } from "../storage/whole-session.ts";
import { quirePath, runProgram, withTempFolder } from "./run-quire.ts";

const NO_DATA = { QUIRE_STORE_KEYS: "", QUIRE_DATA: "/nowhere", QUIRE_STORE: "", QUIRE_TENANT_SALT: "salt" };

/** The command in this process: a process for each would take a minute in all. The pipe below has processes. */
async function quire(args: readonly string[], env: NodeJS.ProcessEnv) {
  const [stdout, stderr]: [string[], string[]] = [[], []];
  const into = (lines: string[]) => (bytes: string | Uint8Array) => {
    lines.push(typeof bytes === "string" ? bytes : Buffer.from(bytes).toString("latin1"));
    return true;
  };
  vi.spyOn(process.stdout, "write").mockImplementation(into(stdout));
  vi.spyOn(process.stderr, "write").mockImplementation(into(stderr));
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
  try {
    return { code: await main(args), stdout: stdout.join(""), stderr: stderr.join("") };
  } finally {
    vi.restoreAllMocks();
    vi.unstubAllEnvs();
  }
}

const LISTED = '<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"e"</ETag><Size>1</Size>';

const keysOf = ({ keys }: { keys: readonly { key: string }[] }) => keys.map(({ key }) => key);

/** A store in a folder with two sessions of one tenant and one of another. */
async function withStore(
  use: (world: { folder: string; store: string; acme: string }) => Promise<void>,
): Promise<void> {
  await withTempFolder(async (folder) => {
    const acme = await namespaceOf("acme", "salt");
    const store = await FsStore.open(join(folder, "pages"));
    await storeWholeSession(store, { sessionId: "first", namespace: acme, updatedMs: Date.now() - 3_600_000 });
    await storeWholeSession(store, { sessionId: "second", namespace: acme, updatedMs: Date.now() });
    await storeWholeSession(store, { sessionId: "first", namespace: "ab02", updatedMs: Date.now() - 40 * 86_400_000 });
    await store.close();
    await use({ folder, store: `--store=fs:${join(folder, "pages")}`, acme });
  });
}

describe("quire sessions", () => {
  it("lists, shows, and deletes one", () =>
    withStore(async ({ store, acme }) => {
      const all = await quire(["sessions", "ls", store], NO_DATA);
      expect(all).toMatchObject({ code: 0, stderr: "" });
      const [heading, ...rows] = all.stdout.trimEnd().split("\n");
      expect(heading).toMatch(/^SESSION +TOKENS +SIZE +COMMITTED +NAMESPACE +MODEL/);
      expect(rows.map((row) => row.split(/\s+/).slice(0, 2))).toEqual([
        ["second", "582"],
        ["first", "582"],
        ["first", "582"],
      ]);
      const own = await quire(["sessions", "ls", store, "--tenant=acme", "--json"], NO_DATA);
      const listed = JSON.parse(own.stdout) as { sessionId: string; namespace: string; objectCount: number }[];
      expect(listed.map(({ sessionId }) => sessionId)).toEqual(["second", "first"]);
      expect(listed[0]).toMatchObject({ namespace: acme, objectCount: 9, tokenCount: 582 });

      const ambiguous = await quire(["sessions", "show", "first", store], NO_DATA);
      expect(ambiguous.code).toBe(1);
      expect(ambiguous.stderr).toContain(`--namespace ${acme}`);
      const shown = await quire(["sessions", "show", "first", store, "--tenant=acme"], NO_DATA);
      expect(shown.stdout).toMatch(/summaries, min-max +2/);
      expect(shown.stdout).toMatch(/attended +to 582 dense/);

      expect((await quire(["sessions", "rm", "first", store, "--tenant=acme"], NO_DATA)).code).toBe(0);
      const gone = await quire(["sessions", "show", "first", store, "--tenant=acme"], NO_DATA);
      expect(gone).toMatchObject({ code: 1, stdout: "" });
      expect(gone.stderr).toBe('quire: no session "first" is stored here\n');
    }));

  it("carries one from store to store through a pipe or a file", () =>
    withStore(async ({ folder, store }) => {
      const archive = join(folder, "s.tar");
      const out = await quire(["sessions", "export", "second", store, `--out=${archive}`], NO_DATA);
      expect(out).toMatchObject({ code: 0, stdout: "" });
      const nowhere = await quire(["sessions", "export", "second", store, "--out=weights/none/s.tar"], NO_DATA);
      expect(nowhere).toMatchObject({ code: 1, stdout: "" });
      expect(nowhere.stderr).toMatch(/^quire: weights\/none\/s\.tar cannot be written \(ENOENT\)\n$/);
      const names = await runProgram("tar", ["tf", archive]);
      expect(names.stdout.split("\n")[0]).toBe("manifest");
      expect(names.stdout.trimEnd().split("\n")).toHaveLength(10);

      const target = `--store=fs:${join(folder, "elsewhere")}`;
      const command = `${process.execPath} bin/quire.mjs sessions`;
      const piped = await runProgram(
        "bash",
        ["-c", `${command} export second ${store} | ${command} import ${target} --namespace=ff --as=third`],
        NO_DATA,
      );
      expect(piped.code).toBe(0);
      const leaver = `${command} export second ${store} | true; echo "${"$"}{PIPESTATUS[0]}"`;
      const left = await runProgram("bash", ["-c", leaver], NO_DATA);
      expect({ stdout: left.stdout, stderr: left.stderr }).toEqual({ stdout: "141\n", stderr: "" });
      const twice = await quire(["sessions", "import", target, "--namespace=ff", `--in=${archive}`], NO_DATA);
      expect(twice.code).toBe(0);
      const again = await quire(["sessions", "import", target, "--namespace=ff", `--in=${archive}`], NO_DATA);
      expect(again.code).toBe(1);
      expect(again.stderr).toMatch(/^quire: there is a session of that id already.*--replace\n$/);
      const verified = await quire(["verify", target], NO_DATA);
      expect(verified).toMatchObject({ code: 0, stdout: "2 sessions with 18 objects read: all whole\n" });

      await writeFile(archive, (await readFile(archive)).subarray(0, 9000));
      const cut = await quire(["sessions", "import", target, "--namespace=fe", `--in=${archive}`], NO_DATA);
      expect(cut).toMatchObject({ code: 1, stderr: "quire: the archive is cut short\n" });
    }));
});

it("an export that finds no room says so in one line, and leaves nothing of its file", () =>
  withStore(async ({ folder, store }) => {
    const out = join(folder, "s.tar");
    // Files of this process may have 8 KiB: the first block of pages is more.
    const limited = ["-c", 'ulimit -f 8; exec "$0" "$@"', process.execPath, quirePath, "sessions", "export", "second"];
    const refused = await runProgram("bash", [...limited, store, `--out=${out}`], NO_DATA);
    expect(refused).toMatchObject({ code: 1, stdout: "", stderr: `quire: ${out} cannot be written (EFBIG)\n` });
    expect((await readdir(folder)).filter((name) => name.startsWith("s.tar"))).toEqual([]);
  }));

it("an export that is stopped leaves nothing of its file", () =>
  withStore(async ({ folder }) => {
    const pages = await FsStore.open(join(folder, "pages"));
    // A bucket whose second object never comes.
    const server = createServer(async (request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? "/", "http://bucket");
      if (searchParams.has("list-type")) {
        const rows = keysOf(await pages.list(searchParams.get("prefix") ?? ""));
        const contents = rows.map((key) => `<Contents><Key>${key}</Key>${LISTED}</Contents>`).join("");
        response.end(`<ListBucketResult><IsTruncated>false</IsTruncated>${contents}</ListBucketResult>`);
      } else if (pathname.includes("/session/")) {
        const object = await pages.get(decodeURIComponent(pathname.slice("/bucket/".length)));
        response.writeHead(200, { etag: '"e"' }).end(object?.bytes);
      }
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const endpoint = encodeURIComponent(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    const [out, temporary] = [join(folder, "s.tar"), /s\.tar\..*tmp/];
    const args = ["sessions", "export", "second", `--store=s3://bucket?endpoint=${endpoint}`, `--out=${out}`];
    const env = { ...process.env, ...NO_DATA, AWS_ACCESS_KEY_ID: "a", AWS_SECRET_ACCESS_KEY: "b" };
    const child = spawn(process.execPath, [quirePath, ...args], { env, stdio: ["ignore", "ignore", "pipe"] });
    const [ended, said] = [once(child, "close"), text(child.stderr)];
    try {
      await vi.waitFor(async () => expect((await readdir(folder)).join()).toMatch(temporary), { timeout: 20_000 });
      child.kill("SIGINT");
      expect(await ended).toEqual([1, null]);
      expect(await said).toBe("quire: stopped; nothing was written\n");
      expect(await readdir(folder)).toEqual(["pages"]);
    } finally {
      child.kill("SIGKILL");
      server.closeAllConnections();
      server.close();
      await pages.close();
    }
  }));

describe("quire verify", () => {
  it("says what is not whole, drops it when told to, and its exit code says which", () =>
    withStore(async ({ folder, store, acme }) => {
      const pages = await FsStore.open(join(folder, "pages"));
      const lost = keysOf(await pages.list(`kv/${acme}/`)).filter((key) => key.includes("/seg/"))[2]!;
      await pages.delete([lost]);
      const found = await quire(["verify", store], NO_DATA);
      expect(found.code).toBe(1);
      expect(found.stdout).toContain(`${lost}: is not in the store`);
      expect(found.stdout).toMatch(/3 sessions with 27 objects read: 2 not whole\n$/);
      const one = await quire(["verify", store, "--namespace=ab02", "--json"], NO_DATA);
      expect(JSON.parse(one.stdout)).toMatchObject({ sessionId: "first", problems: [], trustedTokens: 582 });
      expect((await quire(["verify", store, "--repair"], NO_DATA)).code).toBe(0);
      expect((await quire(["verify", store], NO_DATA)).code).toBe(0);
      // A session that its client deleted is none any more, though something keeps late commits from its place.
      const other = keysOf(await pages.list("kv/ab02/")).find((key) => parseObjectKey(key)?.kind === "session")!;
      await endSession(pages, other, { sessionId: "first", bornMs: Date.now(), nowMs: Date.now() });
      expect((await quire(["verify", store, "--namespace=ab02"], NO_DATA)).stdout).toBe(
        "0 sessions with 0 objects read: all whole\n",
      );
      expect((await quire(["verify", store, "--namespace=ab02", "--json"], NO_DATA)).stdout).toBe("");
      await pages.close();
    }));
});

describe("quire gc", () => {
  it("says first, then deletes: what nobody names, what is too old, what is beyond a tenant's bytes", () =>
    withStore(async ({ folder, store, acme }) => {
      const dry = await quire(["gc", store, "--ttl=30d", "--dry-run"], NO_DATA);
      expect(dry).toMatchObject({ code: 0, stderr: "" });
      expect(dry.stdout).toMatch(/would delete 1 object \(.*\), 1 session not used for too long; 2 sessions kept/);
      const real = await quire(["gc", store, "--ttl=30d", "--json"], NO_DATA);
      expect(JSON.parse(real.stdout)).toMatchObject({ expiredCount: 1, manifestCount: 2 });
      const tenants = join(folder, "tenants.json");
      await writeFile(tenants, JSON.stringify({ acme: { quota: "1K" }, other: { ttl: "1d" } }));
      const quota = await quire(["gc", store, `--tenants=${tenants}`], NO_DATA);
      expect(quota.stdout).toMatch(/2 sessions beyond a tenant's bytes; 0 sessions kept/);
      const pages = await FsStore.open(join(folder, "pages"));
      const { keys } = await pages.list("kv/");
      // Younger than the grace: they go with a later run.
      expect(keys.filter(({ key }) => key.startsWith(`kv/${acme}/`) && key.includes("/seg/"))).toHaveLength(4);
      expect(await loadManifest(pages, keys[0]!.key.replace(/seg.*/, "session/00"))).toBeUndefined();
      await pages.close();
    }));

  it.each([
    [["gc", "--grace=5m"], /^quire: --grace: must be at least 15m, so that no running turn loses .*, not "5m"\n$/],
    [["gc"], /^quire: --store is needed: \/nowhere is not a data folder of `quire start`\n$/],
    [["gc", "--store=memory:"], /^quire: --store: memory: holds nothing/],
    [["gc", "--quota=many", "--store=fs:x"], /^quire: --quota: must be a size such as 512M or 2G, not "many"\n$/],
    [["gc", "--tenants=/nowhere.json", "--store=fs:x"], /^quire: --tenants: \/nowhere.json cannot be read as JSON/],
    [["verify", "--store=fs:/nowhere/pages"], /^quire: --store: there is no folder \/nowhere\/pages\n$/],
    [["verify", "now"], /^quire: unexpected argument "now"\n$/],
    [["sessions"], /^quire: sessions needs an action: ls, show, rm, export or import\n$/],
    [["sessions", "show"], /^quire: sessions show needs one session's id\n$/],
    [["sessions", "import", "--store=fs:x"], /^quire: sessions import needs --tenant or --namespace/],
    [["sessions", "ls", "--namespace=XY", "--store=fs:x"], /^quire: --namespace: must be 1-64 lower-case hex digits/],
    [
      ["sessions", "ls", "--namespace=ab", "--tenant=acme"],
      /^quire: --tenant and --namespace mean the same: give one\n$/,
    ],
  ])("%j ends with one clear line", async (args, line) => {
    const { code, stdout, stderr } = await quire(args, NO_DATA);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(line);
  });
});

it("says which edge does not answer, and how to name another one", () =>
  withTempFolder(async (data) => {
    await writeFile(join(data, "secrets.json"), JSON.stringify({ s3AccessKeyId: "a", s3SecretAccessKey: "b" }));
    const place = [`--data=${data}`, "--edge=http://127.0.0.1:1"];
    for (const command of [["sessions", "ls"], ["verify"], ["gc", "--dry-run"]]) {
      const { code, stdout, stderr } = await quire([...command, ...place], NO_DATA);
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      expect(stderr).toMatch(
        /^quire: no edge answers at http:\/\/127\.0\.0\.1:1, .*: start it, or say with --edge .*\n$/,
      );
    }
  }));

describe("quire rekey", () => {
  it("encrypts a store and changes its key; the other commands read it with the key and not without", () =>
    withStore(async ({ store }) => {
      const [one, two] = ["ab", "cd"].map((byte) => byte.repeat(32));
      const withKeys = (keys: string) => ({ ...NO_DATA, QUIRE_STORE_KEYS: keys });
      const first = await quire(["rekey", store], withKeys(one!));
      expect(first).toMatchObject({ code: 0, stderr: "" });
      expect(first.stdout).toMatch(
        /^encrypted \d\d objects \([\d.]+ KiB\) under key [0-9a-f]{8}; \d\d objects looked at\n$/,
      );
      expect((await quire(["verify", store], withKeys(one!))).stdout).toContain("all whole");
      const blind = await quire(["gc", store], NO_DATA);
      expect(blind.code).toBe(1);
      expect(blind.stderr).toContain("nothing of its tenant was collected");
      const other = await quire(["verify", store], withKeys(two!));
      expect(other.code).toBe(1);
      expect(other.stderr).toMatch(/^quire: no key [0-9a-f]{8} in QUIRE_STORE_KEYS\n$/);
      expect((await quire(["rekey", store], withKeys(`${two},${one}`))).code).toBe(0);
      expect((await quire(["verify", store], withKeys(two!))).stdout).toContain("all whole");
      const missing = await quire(["rekey", store], NO_DATA);
      expect(missing.stderr).toMatch(/^quire: rekey needs QUIRE_STORE_KEYS/);
    }));
});

describe("tar", () => {
  it("gives back what was put in, however the bytes arrive", async () => {
    const files = [0, 1, 511, 512, 513, 5000].map((bytes, i) => ({
      name: i === 3 ? `${"a".repeat(90)}/${"b".repeat(60)}-${i}` : `seg/${i}`,
      bytes: noise(i, bytes),
    }));
    const whole = Buffer.concat([...files.map(tarEntry), TAR_END]);
    for (const step of [1, 7, 512, 100_000]) {
      async function* chunks() {
        for (let at = 0; at < whole.length; at += step) yield whole.subarray(at, at + step);
      }
      const back: { name: string; bytes: Uint8Array }[] = [];
      for await (const file of readTar(chunks())) back.push(file);
      expect(back.map(({ name }) => name)).toEqual(files.map(({ name }) => name));
      for (const [i, file] of back.entries()) expect(Buffer.compare(file.bytes, files[i]!.bytes)).toBe(0);
    }
  });

  it("takes every object that an engine may write, such as a segment of 32 layers in f32, and no file that claims to be larger", async () => {
    const { writeBehindBytesMax } = LIMITS;
    const shape = { kvHeadCount: 8, headDim: 128, layerCount: 32 } as const;
    const bytes = new Uint8Array(segmentBytes(kvGeometry({ ...shape, encoding: "f32", summaryKinds: [] })));
    expect(bytes.byteLength).toBeLessThan(writeBehindBytesMax);
    const sizesOf = async (chunks: readonly Uint8Array[]) => {
      const sizes: number[] = [];
      for await (const file of readTar(Readable.from(chunks))) sizes.push(file.bytes.byteLength);
      return sizes;
    };
    expect(await sizesOf([tarEntry({ name: "seg/a", bytes }), TAR_END])).toEqual([bytes.byteLength]);
    const header = Buffer.from(tarEntry({ name: "seg/a", bytes: new Uint8Array(0) }));
    const digits = (count: number) => (count.toString(8).match(/./g) ?? []).reduce((sum, d) => sum + Number(d), 0);
    header.write((writeBehindBytesMax + 1).toString(8).padStart(11, "0"), 124, "latin1");
    const checksum = Number.parseInt(header.toString("latin1", 148, 154), 8) + digits(writeBehindBytesMax + 1);
    header.write(checksum.toString(8).padStart(6, "0"), 148, "latin1");
    await expect(sizesOf([header])).rejects.toThrow(`at most ${writeBehindBytesMax} are taken`);
  });

  it("refuses what is no archive", async () => {
    async function* chunks() {
      yield noise(1, 4096);
    }
    const read = async () => {
      for await (const _ of readTar(chunks()));
    };
    await expect(read()).rejects.toThrow("not a session archive");
  });
});
