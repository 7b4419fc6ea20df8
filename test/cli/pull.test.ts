import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { HubClient } from "../../cli/pull/hub-client.ts";
import type { HubFile } from "../../cli/pull/hub-files.ts";
import { PullError } from "../../cli/pull/pull-error.ts";
import { type PullObserver, type PullResult, pullModel } from "../../cli/pull/pull-model.ts";
import type { Patience } from "../../cli/pull/retry.ts";
import { type HostileHub, hubCommit, listFile, type Misbehaviour, serve, serveShort, startHub } from "./hostile-hub.ts";

const weights = "model.safetensors";
const token = "hf_secretOfThisTest";
const patience: Patience = { attemptsMax: 4, delayMs: 1, delayMsMax: 5, headMsMax: 20_000, stallMsMax: 20_000 };
const mebibyte = 1 << 20;

let hub: HostileHub;
let out: string;

beforeEach(async () => {
  hub = await startHub();
  out = join(mkdtempSync(join(tmpdir(), "quire-pull-")), "model");
  hub.files.set("config.json", Buffer.from("{}"));
  hub.files.set("tokenizer.json", Buffer.from('{"é":1}'));
  hub.files.set(weights, randomBytes(3 * mebibyte + 17));
  hub.files.set("pytorch_model.bin", Buffer.from("never"));
});

afterEach(async () => {
  await hub.close();
  rmSync(join(out, ".."), { recursive: true, force: true });
});

interface Options {
  signal?: AbortSignal;
  revision?: string;
  include?: string;
  /** Of the head and between pieces; tests that do not stall wait for a busy machine. */
  deadlineMs?: number;
  onProgress?: (file: HubFile, bytes: number) => void;
}

const retries: string[] = [];

function pull({ signal, revision = "main", include, deadlineMs, onProgress }: Options = {}): Promise<PullResult> {
  const observer: PullObserver = {
    onStart: () => undefined,
    onProgress: onProgress ?? (() => undefined),
    onDone: () => undefined,
    onRetry: (message) => retries.push(message),
  };
  const strict = deadlineMs === undefined ? {} : { headMsMax: deadlineMs, stallMsMax: deadlineMs };
  const client = new HubClient({ endpoint: hub.url, token, patience: { ...patience, ...strict }, fetch });
  return pullModel(
    { repo: "owner/name", revision, out, include, concurrency: 2 },
    { hub: client, patience, signal: signal ?? new AbortController().signal, random: () => 1, observer },
  );
}

/** The one line of a pull that fails; the folder then holds no model. */
async function refusal(options: Options = {}): Promise<string> {
  const error = await pull(options).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(PullError);
  const { message } = error as PullError;
  expect(message).not.toMatch(/\n/);
  expect(message).not.toContain(token);
  expect(existsSync(out) ? readdirSync(out).filter((name) => name !== ".pull") : []).toEqual([]);
  return message;
}

function expectPulled(names: readonly string[] = ["config.json", weights, "tokenizer.json"]): void {
  expect(readdirSync(out).sort()).toEqual([...names, "quire-pull.json"].sort());
  for (const name of names) expect(readFileSync(join(out, name)).equals(hub.files.get(name)!), name).toBe(true);
}

const failing =
  (status: number, headers: Record<string, string> = {}): Misbehaviour =>
  (_request, response) => {
    response.writeHead(status, headers).end("no");
  };

describe("quire pull from an honest hub", () => {
  it("brings what an engine needs and nothing else, and records commit and hashes", async () => {
    const result = await pull();
    expect(result).toMatchObject({ commit: hubCommit, downloadedCount: 3 });
    expectPulled();
    const record = JSON.parse(readFileSync(join(out, "quire-pull.json"), "utf8"));
    expect(record).toMatchObject({ repo: "owner/name", revision: "main", commit: hubCommit, complete: true });
    const listed = listFile(weights, hub.files.get(weights)!) as { lfs: { sha256: string } };
    expect(record.files[weights].hash).toEqual({ kind: "sha256", hex: listed.lfs.sha256 });
    expect(record.files["config.json"].hash.kind).toBe("git-sha1");
    expect(hub.downloads.every(({ path }) => path.startsWith(`/owner/name/resolve/${hubCommit}/`))).toBe(true);
  });

  it("downloads nothing the second time, and asks nobody for a commit that is there", async () => {
    await pull();
    const count = hub.downloads.length;
    expect(await pull()).toMatchObject({ downloadedCount: 0 });
    expect(hub.downloads.length).toBe(count);
    rmSync(join(out, "quire-pull.json"));
    expect(await pull(), "without its record the files are read").toMatchObject({ downloadedCount: 0 });
    const allCount = hub.seen.length;
    expect(allCount).toBe(count + 3);
    expect(await pull({ revision: hubCommit })).toMatchObject({ downloadedCount: 0 });
    expect(hub.seen.length).toBe(allCount);
  });

  it("brings of a newer revision what has changed, and takes away what it no longer has", async () => {
    hub.files.set("generation_config.json", Buffer.from("{}"));
    await pull();
    hub.commit = "f".repeat(40);
    hub.files.delete("generation_config.json");
    hub.files.set("config.json", Buffer.from('{"new":1}'));
    expect(await pull()).toMatchObject({ commit: hub.commit, downloadedCount: 1 });
    expectPulled();
  });

  it("goes on when it was killed between moving one file and the next", async () => {
    await pull();
    const before = JSON.parse(readFileSync(join(out, "quire-pull.json"), "utf8"));
    hub.commit = "f".repeat(40);
    hub.files.set("config.json", Buffer.from("[]"));
    hub.files.set("tokenizer.json", Buffer.from("[]"));
    const moved = Object.fromEntries(
      Object.entries(before.files).map(([path, file]) => [path, { ...Object(file), mtimeMs: 0 }]),
    );
    writeFileSync(
      join(out, "quire-pull.json"),
      JSON.stringify({ ...before, commit: hub.commit, complete: false, files: moved }),
    );
    writeFileSync(join(out, "tokenizer.json"), "[]");
    mkdirSync(join(out, ".pull"));
    expect(await pull()).toMatchObject({ commit: hub.commit, downloadedCount: 1 });
    expectPulled();
    mkdirSync(join(out, ".pull"));
    expect(await pull()).toMatchObject({ downloadedCount: 0 });
    expectPulled();
  });

  it("never replaces a file that is not its own", async () => {
    await pull();
    writeFileSync(join(out, "config.json"), "[]");
    await expect(pull()).rejects.toThrow(/config\.json is there and is not the hub's/);
    expect(readFileSync(join(out, "config.json"), "utf8")).toBe("[]");
  });

  it("brings as many files at a time as it is told to", async () => {
    const names = ["config.json", "tokenizer.json", weights];
    const open = new Set<string>();
    let openMost = 0;
    const second = Promise.withResolvers<void>();
    // Whoever asks for one file at a time waits here for ever; a third one asked for at once is here before a later request.
    const gate = second.promise.then(() => fetch(`${hub.url}/nothing`));
    for (const name of names) {
      hub.misbehaviours.set(name, async (request, response, { body }) => {
        open.add(name);
        openMost = Math.max(openMost, open.size);
        response.on("finish", () => open.delete(name));
        if (open.size === 2) second.resolve();
        await gate;
        serve(request, response, body);
      });
    }
    await pull();
    expectPulled();
    expect(openMost).toBe(2);
    expect(names.map((name) => hub.requestsOf(name).length)).toEqual([1, 1, 1]);
  });

  it("takes one GGUF file of several where a pattern says which", async () => {
    hub.files.delete(weights);
    hub.files.set("m-q4.gguf", randomBytes(100));
    hub.files.set("m-q8.gguf", randomBytes(100));
    expect(await refusal()).toMatch(/choose one with --include: m-q4\.gguf, m-q8\.gguf/);
    expect(await pull({ include: "*q8*" })).toMatchObject({ paths: ["m-q8.gguf"] });
    expectPulled(["m-q8.gguf"]);
  });
});

describe("quire pull from a hub that cuts and stalls", () => {
  it("goes on where the connection was cut, with ranges of the same content", async () => {
    hub.misbehaviours.set(weights, (request, response, { body }) => serve(request, response, body, mebibyte));
    await pull();
    expectPulled();
    const requests = hub.requestsOf(weights);
    const starts = requests.map(({ range }) => Number(/^bytes=(\d+)-$/.exec(range ?? "bytes=0-")![1]));
    expect(starts.length).toBeGreaterThanOrEqual(4);
    // How much of a cut body arrives is up to the sockets; none of it comes twice.
    starts.forEach((start, index) => {
      if (index > 0) expect(start).toBeGreaterThan(starts[index - 1]!);
    });
    expect(starts[1]).toBeLessThanOrEqual(mebibyte);
    expect(requests.slice(1).every(({ ifRange }) => ifRange?.startsWith('"'))).toBe(true);
  });

  it("starts over where ranges are ignored, and where another range comes", async () => {
    hub.misbehaviours.set(weights, (request, response, { body, count }) => {
      if (count === 0) return serveShort(response, body, mebibyte);
      delete request.headers.range;
      return serve(request, response, body);
    });
    hub.misbehaviours.set("tokenizer.json", (request, response, { body, count }) => {
      if (count === 0) return serveShort(response, body, 3);
      if (count > 1) return serve(request, response, body);
      const rest = body.subarray(1);
      const range = `bytes 1-${body.length - 1}/${body.length}`;
      return response.writeHead(206, { "content-range": range, "content-length": rest.length }).end(rest);
    });
    await pull();
    expectPulled();
    expect(hub.requestsOf(weights).map(({ status }) => status)).toEqual([200, 200]);
    expect(hub.requestsOf("tokenizer.json").map(({ range }) => range)).toEqual([undefined, "bytes=3-", undefined]);
  });

  it("starts over once when a resumed file is wrong", async () => {
    hub.misbehaviours.set(weights, (request, response, { body, count }) => {
      if (count === 0) return serveShort(response, Buffer.alloc(body.length), mebibyte);
      // A server that goes by the range alone.
      delete request.headers["if-range"];
      return serve(request, response, body);
    });
    await pull();
    expectPulled();
    expect(hub.requestsOf(weights).map(({ range }) => range)).toEqual([undefined, `bytes=${mebibyte}-`, undefined]);
  });

  it("drops a stalled body and one that never begins", async () => {
    hub.misbehaviours.set(weights, (request, response, { body, count }) => {
      if (count > 0) return serve(request, response, body);
      response.writeHead(200, { "content-length": body.length });
      return response.write(body.subarray(0, 100));
    });
    hub.misbehaviours.set("config.json", (request, response, { body, count }) => {
      if (count > 0) serve(request, response, body);
    });
    retries.length = 0;
    await pull({ deadlineMs: 500 });
    expectPulled();
    expect(retries.join("\n")).toMatch(/model\.safetensors: .* stalled for 0.5 s/);
    expect(retries.join("\n")).toMatch(/config\.json: no answer from .* within 0.5 s/);
    expect(hub.requestsOf(weights)[1]).toMatchObject({ range: "bytes=100-", status: 206 });
  });

  it("waits out 429 and 5xx, of the listing too, and gives up on a hub that stays away", async () => {
    hub.misbehaviour = (request, response, { body, count }) =>
      count < 2
        ? failing(count === 0 ? 500 : 429, { "retry-after": "0" })(request, response, { body, count })
        : serve(request, response, body);
    hub.misbehaviours.set(weights, failing(503));
    expect(await refusal()).toMatch(/^model\.safetensors: 127\.0\.0\.1:\d+ answered 503 \(gave up after 4 attempts\)$/);
    expect(hub.requestsOf(weights)).toHaveLength(4);
    hub.misbehaviours.clear();
    const count = hub.requestsOf("config.json").length;
    await pull();
    expectPulled();
    expect(hub.requestsOf("config.json"), "what was checked stays").toHaveLength(count);
  });

  it("ends when a file creeps, however often it is tried", async () => {
    hub.misbehaviours.set(weights, (request, response, { body }) => serve(request, response, body, 10));
    expect(await refusal()).toMatch(/^model\.safetensors: cut by .*gave up after 4 attempts/);
  });

  it("stops when it is told to, and goes on from there", async () => {
    const stop = new AbortController();
    const onProgress = (file: HubFile, bytes: number) => {
      if (file.path === weights && bytes >= mebibyte) stop.abort("Ctrl-C");
    };
    hub.misbehaviours.set(weights, (_request, response, { body }) => {
      response.writeHead(200, { "content-length": body.length, etag: '"e"' });
      response.write(body.subarray(0, mebibyte));
    });
    await expect(pull({ signal: stop.signal, onProgress })).rejects.toBe("Ctrl-C");
    expect(existsSync(join(out, weights))).toBe(false);
    hub.misbehaviours.clear();
    hub.seen.length = 0;
    await pull();
    expectPulled();
    expect(hub.requestsOf(weights)[0]).toMatchObject({ range: `bytes=${mebibyte}-`, ifRange: '"e"' });
  });
});

describe("quire pull and its token", () => {
  it("sends it to the endpoint only: a redirect to another host goes without it", async () => {
    const other = await startHub();
    try {
      for (const [name, body] of hub.files) other.files.set(name, body);
      hub.misbehaviours.set(weights, failing(302, { location: `${other.url}/cdn/${weights}?X-Amz-Signature=s` }));
      hub.misbehaviours.set("config.json", failing(307, { location: "/cdn/config.json" }));
      await pull();
      expectPulled();
      expect(other.seen).toMatchObject([{ path: `/cdn/${weights}`, authorization: undefined, status: 200 }]);
      expect(hub.seen.length).toBe(5);
      expect(hub.seen.every(({ authorization }) => authorization === `Bearer ${token}`)).toBe(true);
    } finally {
      await other.close();
    }
  });

  it("takes no way from https to http, and another port for another host", async () => {
    const asked: [string, string | null][] = [];
    const answer = (location: string): typeof fetch => {
      return async (input, init) => {
        const headers = new Headers(init?.headers as Record<string, string>);
        asked.push([String(input), headers.get("authorization")]);
        return asked.length > 1 ? new Response("there") : new Response(null, { status: 302, headers: { location } });
      };
    };
    const get = (location: string) => {
      asked.length = 0;
      const client = new HubClient({ endpoint: "https://hub.test/base", token, patience, fetch: answer(location) });
      return client.get("/x", { what: "x", signal: new AbortController().signal });
    };
    await expect(get("http://hub.test/y")).rejects.toThrow(/redirects to http:\/\/hub\.test: refused/);
    expect(asked).toEqual([["https://hub.test/base/x", `Bearer ${token}`]]);
    await (await get("https://hub.test:444/y")).discard();
    expect(asked.at(-1)).toEqual(["https://hub.test:444/y", null]);
    await (await get("https://user:key@hub.test/y")).discard();
    expect(asked.at(-1)).toEqual(["https://hub.test/y", `Bearer ${token}`]);
  });

  it("asks the endpoint for a new address when a signed one has run out, and says no signature", async () => {
    const other = await startHub();
    try {
      other.files.set(weights, hub.files.get(weights)!);
      hub.misbehaviours.set(weights, failing(302, { location: `${other.url}/cdn/${weights}?signature=s` }));
      other.misbehaviours.set(`/cdn/${weights}`, failing(403));
      const message = await refusal();
      expect(message).toMatch(/^model\.safetensors: 127\.0\.0\.1:\d+ answered 403 \(gave up/);
      expect(message).not.toContain("signature");
      expect(hub.requestsOf(weights)).toHaveLength(4);
    } finally {
      await other.close();
    }
  });
});

describe("quire pull from a hub that lies", () => {
  it("refuses wrong contents, and keeps none of them", async () => {
    const body = Buffer.from(hub.files.get(weights)!);
    body[5]! ^= 1;
    hub.misbehaviours.set(weights, (request, response) => serve(request, response, body));
    expect(await refusal()).toMatch(/^model\.safetensors: its SHA-256 is not the one the hub announces$/);
    expect(hub.requestsOf(weights)).toHaveLength(1);
    rmSync(out, { recursive: true });
    hub.misbehaviours.delete(weights);
    hub.misbehaviours.set("config.json", (request, response) => serve(request, response, Buffer.from("[]")));
    expect(await refusal()).toMatch(/^config\.json: its git hash is not/);
  });

  it("refuses other sizes than announced, longer and shorter", async () => {
    const body = hub.files.get(weights)!;
    hub.misbehaviours.set(weights, (request, response) => serve(request, response, body.subarray(1)));
    expect(await refusal()).toMatch(/the server sends 3145744 bytes, the hub announces 3145745/);
    hub.misbehaviours.set(weights, (_request, response) => {
      response.writeHead(200);
      response.write(body);
      response.end("more");
    });
    expect(await refusal()).toMatch(/sends more than the 3145745 bytes/);
    hub.misbehaviours.set(weights, (_request, response) => {
      response.writeHead(200).end(body.subarray(0, 10));
    });
    expect(await refusal()).toMatch(/ended after 10 of 3145745 bytes|another range/);
  });

  it.each(["../evil.json", "/etc/passwd", "a/../../b", "a\\..\\b", "C:x", "a//b", "."])(
    "refuses a file named %j",
    async (name) => {
      hub.listed.set(name, { rfilename: name, size: 1, blobId: "0".repeat(40) });
      expect(await refusal()).toContain(JSON.stringify(name));
      expect(hub.downloads).toEqual([]);
    },
  );

  it("refuses what has no size, no hash, or no room on the disk, before it downloads anything", async () => {
    hub.listed.set(weights, { rfilename: weights, blobId: "0".repeat(40) });
    expect(await refusal()).toMatch(/gives no size or hash for model\.safetensors/);
    hub.listed.set(weights, { rfilename: weights, size: 1 });
    expect(await refusal()).toMatch(/gives no size or hash/);
    hub.listed.set(weights, { rfilename: weights, lfs: { sha256: "a".repeat(64), size: 2 ** 52 } });
    expect(await refusal()).toMatch(/the disk has .* free, .* are needed/);
    hub.listed.clear();
    hub.listed.set("tokenizer.json", { rfilename: "tokenizer.json", size: 2 ** 40, blobId: "0".repeat(40) });
    expect(await refusal()).toMatch(/tokenizer\.json has 1099511627776 bytes/);
    expect(hub.downloads).toEqual([]);
  });

  it.each<[string, Misbehaviour, RegExp]>([
    ["401", failing(401), /answered 401 \(it refuses the token in HF_TOKEN\)/],
    ["403", failing(403), /answered 403 \(the account of HF_TOKEN has no access/],
    [
      "404",
      failing(404),
      /^owner\/name at main: 127.* answered 404 \(there is no such repository, revision or file\)$/,
    ],
    [
      "endless redirects",
      (request, response) =>
        failing(302, { location: request.url! })(request, response, { body: Buffer.of(), count: 0 }),
      /more than 8 redirects/,
    ],
    ["a redirect to a file", failing(302, { location: "file:///etc/passwd" }), /redirects to file:.*: refused/],
    ["a redirect to nowhere", failing(302), /redirects to no address/],
    ["a page", (_request, response) => response.end("<html>"), /did not answer with JSON: is it a hub/],
    ["other JSON", (_request, response) => response.end('{"sha":"main"}'), /did not answer with a model's revision/],
  ])("ends in one line for %s", async (_name, misbehaviour, message) => {
    hub.misbehaviour = misbehaviour;
    expect(await refusal()).toMatch(message);
  });
});
