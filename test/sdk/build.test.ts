import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { delta, ending, type MisbehavingServer, openServer, streams } from "./misbehaving-server.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const run = promisify(execFile);
/** A project that has the built package installed. */
let project: string;
let server: MisbehavingServer;

beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), "quire-sdk-"));
  server = await openServer();
  const out = join(project, "node_modules/quire");
  await run(join(root, "node_modules/.bin/tsc"), ["-p", "sdk/tsconfig.json", "--outDir", out], { cwd: root });
  await run(process.execPath, ["sdk/write-package.mjs", out], { cwd: root });
}, 60_000);
afterAll(async () => {
  await server.close();
  await rm(project, { recursive: true });
});

it("npm run build:sdk: a package of JavaScript for a Node without types and without Promise.withResolvers", async () => {
  server.scripts.push(streams(delta("Hel"), delta("lo"), ending()));
  const script = `
    delete Promise.withResolvers;
    const { Quire } = await import("quire/sdk");
    const session = new Quire({ baseUrl: ${JSON.stringify(server.baseUrl)}, apiKey: "key" }).session();
    for await (const text of session.send("Hi")) console.log(text);`;
  const flags = ["--no-experimental-strip-types", "--input-type=module", "--eval", script];
  expect((await run(process.execPath, flags, { cwd: project, timeout: 30_000 })).stdout).toBe("Hel\nlo\n");
}, 60_000);

it("works in a page that came over plain http, whose crypto has no randomUUID", async () => {
  server.scripts.push(streams(delta("Hello"), ending()));
  const script = `
    delete Crypto.prototype.randomUUID;
    const { Quire } = await import("quire/sdk");
    const quire = new Quire({ baseUrl: ${JSON.stringify(server.baseUrl)}, apiKey: "key" });
    console.log(quire.session().id, await quire.session().send("Hi").text());`;
  const flags = ["--input-type=module", "--eval", script];
  const { stdout } = await run(process.execPath, flags, { cwd: project, timeout: 30_000 });
  expect(stdout).toMatch(/^s-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12} Hello\n$/);
}, 60_000);

it("has types that a strict program of an older library compiles against", async () => {
  const use = join(project, "use.mts");
  await writeFile(
    use,
    `import { Quire } from "quire/sdk";
     const reply = new Quire({ baseUrl: "http://x", apiKey: "k" }).session().send("Hi");
     export const text: Promise<string> = reply.text();
     // @ts-expect-error a message is text
     new Quire({ baseUrl: "http://x", apiKey: "k" }).session().send(7);`,
  );
  const flags = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"];
  await run(join(root, "node_modules/.bin/tsc"), [...flags, "--types", "", use], { cwd: project });
}, 60_000);

it.each(["README.md", "docs/api.md"])(
  "is what the examples of %s are written for",
  async (name) => {
    const fences = (await readFile(join(root, name), "utf8")).matchAll(/^```ts\n([\s\S]*?)^```$/gm);
    const examples = [...fences].map(([, code = ""]) => code).filter((code) => code.includes('"quire/sdk"'));
    expect(examples.length).toBeGreaterThan(0);
    const given =
      "declare const apiKey: string, signal: AbortSignal, process: { stdout: { write(text: string): unknown } };\n";
    const files = examples.map((_, index) => join(project, `example-${index}.mts`));
    await Promise.all(files.map((file, index) => writeFile(file, given + examples[index])));
    const flags = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"];
    await run(join(root, "node_modules/.bin/tsc"), [...flags, "--types", "", ...files], { cwd: project });
  },
  60_000,
);
