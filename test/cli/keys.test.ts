import { createHash } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { edgeKeys } from "../../cli/keys/edge-keys.ts";
import { fileKeys } from "../../cli/keys/file-keys.ts";
import { parseScopes, parseSpan } from "../../cli/keys/flags.ts";
import { tableOf } from "../../cli/keys.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { readKeyTable } from "../../workers/auth/key-record.ts";
import { runQuire, withTempFolder } from "./run-quire.ts";

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

describe("quire keys --file", () => {
  it("keeps every key that is made and none that is ended, by several at once", () =>
    withTempFolder(async (folder) => {
      const path = join(folder, "keys.json");
      const someone = () => fileKeys(path, () => 1_700_000_000);
      const record = (tenant: string) => ({ tenant, scopes: ["generate" as const] });
      const first = await someone().add(sha256("first"), record("first"));
      const tenants = Array.from({ length: 12 }, (_, index) => `tenant-${index}`);
      await Promise.all([
        ...tenants.map((tenant) => someone().add(sha256(tenant), record(tenant))),
        someone().revoke(first.id),
      ]);
      const kept = (await someone().list(undefined)).map(({ tenant }) => tenant);
      expect(kept.sort()).toEqual([...tenants].sort());
    }));

  it(
    "makes a key that is kept as its hash, replaces it, ends it",
    () =>
      withTempFolder(async (folder) => {
        const file = join(folder, "keys.json");
        const limits = ["--requests-per-minute=7", "--turns-concurrent=2"];
        const args = [
          "keys",
          "create",
          "--tenant=acme",
          "--scopes=generate",
          "--expires-in=2h",
          "--label=it's",
          ...limits,
        ];
        const made = await runQuire([...args, `--file=${file}`]);
        expect(made.code).toBe(0);
        expect(made.stdout).toMatch(/^qk-[\w-]{43}\n$/);
        const key = made.stdout.trim();
        expect((await stat(file)).mode & 0o777).toBe(0o600);
        expect((await stat(file)).size).toBeLessThan(5_000 / 16);
        const text = await readFile(file, "utf8");
        expect(text).not.toContain(key.slice(3, 20));
        const record = readKeyTable(text).get(sha256(key));
        expect(record).toMatchObject({ tenant: "acme", scopes: ["generate"], label: "it's" });
        expect(record?.limits).toEqual({ requestsPerMinute: 7, tokensPerMinute: undefined, turnsConcurrent: 2 });
        const lifeS = (record?.expiresS ?? 0) - Date.now() / 1000;
        expect(lifeS).toBeGreaterThan(7_100);
        expect(lifeS).toBeLessThanOrEqual(7_200);
        const id = `key_${sha256(key).slice(0, 12)}`;

        const rotated = await runQuire(["keys", "rotate", id, "--overlap=30m", `--file=${file}`]);
        expect(rotated.code).toBe(0);
        const table = readKeyTable(await readFile(file, "utf8"));
        const next = table.get(sha256(rotated.stdout.trim()));
        expect(next).toMatchObject({ tenant: "acme", scopes: ["generate"], expiresS: record?.expiresS });
        expect((table.get(sha256(key))?.expiresS ?? 0) - Date.now() / 1000).toBeLessThanOrEqual(1_800);

        const listed = await runQuire(["keys", "list", `--file=${file}`]);
        expect(listed.stdout).toContain(id);
        expect(listed.stdout).not.toContain(sha256(key));
        expect((await runQuire(["keys", "revoke", id, `--file=${file}`])).code).toBe(0);
        expect(readKeyTable(await readFile(file, "utf8")).size).toBe(1);
        const again = await runQuire(["keys", "revoke", id, `--file=${file}`]);
        expect(again).toMatchObject({ code: 1, stdout: "", stderr: `quire: there is no key ${id}\n` });
      }),
    30_000,
  );

  it("does not replace a key that has ended: the new one would have ended, too", () =>
    withTempFolder(async (folder) => {
      const file = join(folder, "keys.json");
      await fileKeys(file, () => 5).add(sha256("a"), { tenant: "t", scopes: ["generate"], expiresS: 6 });
      const before = await readFile(file, "utf8");
      const id = `key_${sha256("a").slice(0, 12)}`;
      const rotated = await runQuire(["keys", "rotate", id, `--file=${file}`]);
      expect(rotated).toMatchObject({ code: 1, stdout: "" });
      expect(rotated.stderr).toBe(`quire: ${id} ended at 1970-01-01T00:00:06Z: make a new key with keys create\n`);
      expect(await readFile(file, "utf8")).toBe(before);
    }));

  it("leaves a file alone that is no table, and one that would become none", () =>
    withTempFolder(async (folder) => {
      const file = join(folder, "keys.json");
      const keys = fileKeys(file, () => 5);
      await keys.add(sha256("a"), { tenant: "t", scopes: ["generate"] });
      const before = await readFile(file, "utf8");
      await expect(keys.add(sha256("b"), { tenant: "no/path", scopes: ["generate"] })).rejects.toThrow(UsageError);
      expect(await readFile(file, "utf8")).toBe(before);
      await writeFile(file, "{");
      await expect(keys.list(undefined)).rejects.toThrow(/is no table of keys/);
    }));

  it.each([
    [["keys"], "keys needs an action"],
    [["keys", "make"], "keys needs an action"],
    [["keys", "create"], "keys create needs --tenant"],
    [["keys", "revoke", "me"], "keys revoke needs a key's id"],
    [["keys", "create", "--tenant=a", "--scopes=root"], "--scopes: must be some of generate"],
    [["keys", "create", "--tenant=a", "--expires-in=soon"], "--expires-in: must be a time such as"],
    [["keys", "list", "--data=/nowhere"], "/nowhere holds no operator's key"],
  ])("explains %j", async (args, message) => {
    const result = await runQuire(args);
    expect(result).toMatchObject({ code: 1, stdout: "" });
    expect(result.stderr).toContain(message);
    expect(result.stderr.trimEnd()).not.toContain("\n");
  });
});

describe("quire keys --edge", () => {
  it("sends hashes, follows pages and shows the edge's refusals", async () => {
    const seen: { method: string; url: string; authorization: string; body: string }[] = [];
    const ids = Array.from({ length: 3 }, (_, index) => `key_00000000000${index}`);
    const server = createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request) body += String(chunk);
      const { method = "", url = "" } = request;
      seen.push({ method, url, authorization: request.headers.authorization ?? "", body });
      const after = new URL(url, "http://x").searchParams.get("after");
      const next = after === null ? 0 : ids.indexOf(after) + 1;
      const record = (id: string) => ({ object: "key", id, tenant: "t", scopes: ["generate"], created_s: 1 });
      if (method === "GET") {
        response.end(JSON.stringify({ data: ids.slice(next, next + 2).map(record), has_more: next + 2 < ids.length }));
      } else if (method === "DELETE") {
        response.writeHead(404).end(JSON.stringify({ error: { message: "no such key" } }));
      } else response.end(JSON.stringify(record("key_aaaaaaaaaaaa")));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      const keys = edgeKeys({ url, operatorKey: "op", fetch });
      expect((await keys.list("t")).map(({ id }) => id)).toEqual(ids);
      const hash = sha256("x");
      const limits = { requestsPerMinute: 5 };
      expect(await keys.add(hash, { tenant: "t", scopes: ["generate"], limits })).toMatchObject({
        id: "key_aaaaaaaaaaaa",
      });
      expect(JSON.parse(seen.at(-1)?.body ?? "")).toEqual({
        hash,
        tenant: "t",
        scopes: ["generate"],
        limits: { requests_per_minute: 5 },
      });
      expect(new Set(seen.map(({ authorization }) => authorization))).toEqual(new Set(["Bearer op"]));
      await expect(keys.revoke("key_bbbbbbbbbbbb")).rejects.toThrow(/answered 404: no such key/);
    } finally {
      server.close();
      server.closeAllConnections();
    }
    await expect(edgeKeys({ url, operatorKey: "op", fetch }).list(undefined)).rejects.toThrow(
      /cannot be asked \([A-Z_]+\); without one, use --file/,
    );
  });
});

describe("parts", () => {
  it("read times and scopes", () => {
    expect(["0m", "30m", "24h", "90d"].map(parseSpan)).toEqual([0, 1_800, 86_400, 7_776_000]);
    for (const bad of ["", "5", "-1h", "1w", "1.5h"]) expect(() => parseSpan(bad)).toThrow(UsageError);
    expect(parseScopes("sessions:read,generate")).toEqual(["generate", "sessions:read"]);
    for (const bad of ["", "generate,", "generate,generate"]) expect(() => parseScopes(bad)).toThrow(UsageError);
  });

  it("lay a list out in columns", () => {
    const record = { id: "key_000000000000", tenant: "acme", scopes: ["keys"], createdS: 0, expiresS: 60 } as const;
    expect(tableOf([record], 59).split("\n")[1]).toBe(
      "key_000000000000  acme    keys    -        1970-01-01T00:01:00Z",
    );
    expect(tableOf([record], 60).split("\n")[1]).toContain("expired");
  });
});
