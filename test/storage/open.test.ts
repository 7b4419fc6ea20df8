import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openStore } from "../../storage/open.ts";

const CREDENTIALS = { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret" };

describe("openStore", () => {
  it("opens each kind of store by its address", async () => {
    const folder = await mkdtemp(join(tmpdir(), "quire-open-"));
    const fs = await openStore(`fs:${join(folder, "a", "b")}`, {});
    expect(fs.name).toBe("fs");
    await fs.close();
    await rm(folder, { recursive: true });
    expect((await openStore("memory:", {})).name).toBe("memory");
    expect((await openStore("s3://bucket?endpoint=http://127.0.0.1:1&region=auto", CREDENTIALS)).name).toBe("s3");
    expect((await openStore("s3://bucket?region=eu-west-1", CREDENTIALS)).name).toBe("s3");
  });

  it("says in one line what is wrong, and repeats no secret", async () => {
    const cases: [string, Record<string, string>, RegExp][] = [
      ["", {}, /memory:, fs:PATH or s3:/],
      ["/var/lib/quire", {}, /memory:, fs:PATH or s3:/],
      ["fs:", {}, /needs a folder/],
      ["s3://bucket?endpoint=http://x", {}, /AWS_ACCESS_KEY_ID/],
      ["s3://bucket?endpoint=http://x", { AWS_ACCESS_KEY_ID: "id" }, /AWS_SECRET_ACCESS_KEY/],
      ["s3://bucket", CREDENTIALS, /endpoint=URL/],
      ["s3://bucket?endpoint=ftp://x", CREDENTIALS, /http or https/],
      ["s3://bucket?endpoint=nonsense", CREDENTIALS, /http or https/],
      ["s3://", CREDENTIALS, /s3:/],
      ["s3://B?endpoint=http://x", CREDENTIALS, /name of a bucket/],
      ["s3://bucket/path?endpoint=http://x", CREDENTIALS, /without a path/],
      ["s3://bucket?endpoint=http://x&key=1", CREDENTIALS, /not key/],
      ["s3://id:hunter2@bucket?endpoint=http://x", CREDENTIALS, /environment/],
    ];
    for (const [address, env, message] of cases) {
      const opening = openStore(address, env);
      await expect(opening, address).rejects.toMatchObject({ code: "invalid_request", param: "store" });
      await expect(opening, address).rejects.toThrow(message);
      await expect(opening, address).rejects.not.toThrow(/\n|hunter2/);
    }
  });
});
