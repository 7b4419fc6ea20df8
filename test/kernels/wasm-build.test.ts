import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const COMMITTED = fileURLToPath(new URL("../../kernels/wasm/", import.meta.url));
const BUILD = new URL("../../kernels/wasm/build.mjs", import.meta.url).href;

describe("quire-kernels.wasm", () => {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "quire-wasm-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("is what its committed hash says", async () => {
    const bytes = await readFile(join(COMMITTED, "quire-kernels.wasm"));
    const line = await readFile(join(COMMITTED, "quire-kernels.wasm.sha256"), "utf8");
    expect(line).toBe(`${createHash("sha256").update(bytes).digest("hex")}  quire-kernels.wasm\n`);
  });

  it("is what its sources compile to, byte for byte", { timeout: 60_000 }, async () => {
    const { buildKernels } = (await import(BUILD)) as { buildKernels(folder: string): Promise<string> };
    await buildKernels(folder);
    const built = await readFile(join(folder, "quire-kernels.wasm"));
    const committed = await readFile(join(COMMITTED, "quire-kernels.wasm"));
    expect(built.equals(committed), "run `npm run build:wasm` and commit the result").toBe(true);
    const hash = await readFile(join(folder, "quire-kernels.wasm.sha256"), "utf8");
    expect(hash).toBe(await readFile(join(COMMITTED, "quire-kernels.wasm.sha256"), "utf8"));
  });
});
