/** `quire publish`, told to a bucket's server that remembers what it was sent. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { expect, it, onTestFinished } from "vitest";
import { buildModelAssets } from "../../workers/model-assets.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { runQuire } from "./run-quire.ts";

const CREDENTIALS = { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret", QUIRE_STORE: "", QUIRE_STORE_KEYS: "" };
const house = join(repositoryRoot, "weights/house-0");

/** Objects by key, and the address of the bucket that holds them. */
async function bucket() {
  const objects = new Map<string, Buffer>();
  const server = createServer(async (request, response) => {
    const body = await buffer(request);
    if (request.method === "PUT") objects.set((request.url ?? "").replace("/quire-pages/", ""), body);
    response.writeHead(200, { etag: '"e"', "content-type": "application/xml" });
    response.end(request.method === "POST" ? "<DeleteResult></DeleteResult>" : "");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { objects, address: `s3://quire-pages?endpoint=${endpoint}` };
}

it("puts all that an edge opens a model with into its bucket, and says what", async () => {
  const { objects, address } = await bucket();
  // Objects of tenants are encrypted where there are keys; these are no tenant's, and an edge has none.
  const keys = Buffer.alloc(32, 1).toString("base64");
  const done = await runQuire(["publish", house, "--store", address], { ...CREDENTIALS, QUIRE_STORE_KEYS: keys });
  expect(done).toMatchObject({
    ...{ code: 0, stderr: "" },
    stdout:
      "models/house-0/: config.json, tokenizer.json, tokenizer_config.json, generation_config.json, tokenizer.tables\n",
  });
  const of = (name: string) => JSON.parse(objects.get(`models/house-0/${name}`)?.toString("utf8") ?? "null");
  const tables = objects.get("models/house-0/tokenizer.tables") ?? Buffer.alloc(0);
  const assets = buildModelAssets({
    tokenizerTables: Uint8Array.from(tables).buffer,
    tokenizerConfig: of("tokenizer_config.json"),
    config: of("config.json"),
    generationConfig: of("generation_config.json"),
  });
  expect(assets.tokenizer.decode(assets.tokenizer.encode("Badoru"))).toBe("Badoru");
  expect(objects.size).toBe(5);
});

it("says in one line what it cannot do", async () => {
  const line = async (args: string[], env: NodeJS.ProcessEnv = CREDENTIALS) => {
    const { code, stdout, stderr } = await runQuire(["publish", ...args], env);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    return stderr;
  };
  expect(await line([])).toBe("quire: publish needs a model folder or GGUF file\n");
  expect(await line([house, "--store", "fs:pages"])).toBe("quire: --store: an edge reads its bucket, and no folder\n");
  expect(await line(["weights/none", "--store", "s3://b"])).toContain("model folder weights/none is not there");
  const { address } = await bucket();
  expect(await line([house, "--store", address], { ...CREDENTIALS, AWS_ACCESS_KEY_ID: "" })).toContain(
    "needs AWS_ACCESS_KEY_ID",
  );
});
