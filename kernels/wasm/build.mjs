// Compiles kernels/wasm/assembly to quire-kernels.wasm and writes its SHA-256 beside it.
// `node kernels/wasm/build.mjs [--out FOLDER]`; the same sources and compiler give the same bytes.
import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import asc from "assemblyscript/asc";

const here = fileURLToPath(new URL(".", import.meta.url));

/**
 * Builds the module into `folder` and returns its SHA-256 (lower-case hex).
 * @param {string} folder
 * @returns {Promise<string>}
 */
export async function buildKernels(folder) {
  await mkdir(folder, { recursive: true });
  const out = join(folder, "quire-kernels.wasm");
  const { error, stderr } = await asc.main(
    [
      "index.ts",
      "--baseDir",
      join(here, "assembly"),
      "--outFile",
      out,
      "--runtime",
      "stub",
      "--optimizeLevel",
      "3",
      "--shrinkLevel",
      "0",
      "--converge",
      "--noAssert",
      "--importMemory",
      "--sharedMemory",
      "--initialMemory",
      "1",
      "--maximumMemory",
      "65536",
      "--noExportMemory",
      "--zeroFilledMemory",
      "--enable",
      "simd",
      "--enable",
      "threads",
      "--enable",
      "bulk-memory",
      "--use",
      "abort=",
    ],
    { writeFile: (name, contents) => writeFile(name, contents), readFile: readSource, listFiles: () => [] },
  );
  if (error) throw new Error(`asc: ${error.message}\n${stderr.toString()}`);
  const hash = createHash("sha256")
    .update(await readFile(out))
    .digest("hex");
  await writeFile(`${out}.sha256`, `${hash}  quire-kernels.wasm\n`);
  return hash;
}

/** asc asks for many paths that do not exist: null says so. */
async function readSource(name, baseDir) {
  try {
    return await readFile(join(baseDir, name), "utf8");
  } catch {
    return null;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { out: { type: "string", default: here } } });
  console.log(`quire-kernels.wasm sha256 ${await buildKernels(values.out)}`);
}
