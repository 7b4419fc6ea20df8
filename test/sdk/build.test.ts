import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { delta, ending, type MisbehavingServer, openServer, streams } from "./misbehaving-server.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const run = promisify(execFile);
let out: string;
let server: MisbehavingServer;

beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), "quire-sdk-"));
  server = await openServer();
  await run(join(root, "node_modules/.bin/tsc"), ["-p", "sdk/tsconfig.json", "--outDir", out], { cwd: root });
}, 60_000);
afterAll(async () => {
  await server.close();
  await rm(out, { recursive: true });
});

it("npm run build:sdk: JavaScript that a Node without types and without Promise.withResolvers speaks", async () => {
  server.scripts.push(streams(delta("Hel"), delta("lo"), ending()));
  const script = `
    delete Promise.withResolvers;
    const { Quire } = await import(${JSON.stringify(join(out, "sdk/index.js"))});
    const session = new Quire({ baseUrl: ${JSON.stringify(server.baseUrl)}, apiKey: "key" }).session();
    for await (const text of session.send("Hi")) console.log(text);`;
  const flags = ["--no-experimental-strip-types", "--input-type=module", "--eval", script];
  expect((await run(process.execPath, flags, { timeout: 30_000 })).stdout).toBe("Hel\nlo\n");
}, 60_000);

it("has types that a strict program of an older library compiles against", async () => {
  const use = join(out, "use.ts");
  await writeFile(
    use,
    `import { Quire } from "./sdk/index.js";
     const reply = new Quire({ baseUrl: "http://x", apiKey: "k" }).session().send("Hi");
     export const text: Promise<string> = reply.text();
     // @ts-expect-error a message is text
     new Quire({ baseUrl: "http://x", apiKey: "k" }).session().send(7);`,
  );
  const flags = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"];
  await run(join(root, "node_modules/.bin/tsc"), [...flags, "--types", "", use], { cwd: out });
}, 60_000);
