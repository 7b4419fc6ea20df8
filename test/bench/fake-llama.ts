/** Stand-ins for peers: a llama-bench that prints what the real one prints, and a node-llama-cpp whose states are of the real layout. */
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** Writes a program that answers as llama-bench does, and returns its path. It fails where the model's name has "broken" in it. */
export async function writeFakeLlamaBench(folder: string): Promise<string> {
  const path = join(folder, "llama-bench");
  const script = `#!${process.execPath}
const args = process.argv.slice(2);
const get = (name) => args[args.indexOf(name) + 1];
if (get("-m").includes("broken")) { console.error("error: failed to load model"); process.exit(1); }
const rows = get("-fa").split(",").map((on) => ({
  n_threads: Number(get("-t")), flash_attn: on === "1", n_prompt: Number(get("-p")), n_gen: Number(get("-n")),
  n_depth: Number(get("-d")), avg_ts: 2, samples_ts: on === "1" ? [2, 4] : [1, 3],
}));
console.log("warning: something\\n" + JSON.stringify(rows));
`;
  await writeFile(path, script);
  await chmod(path, 0o755);
  return path;
}

/** A state of `tokenCount` tokens of one sequence, 2 layers of 3 channels of 2 bytes; with `transposed` values, as without flash attention. */
export function fakeState(tokenCount: number, transposed: boolean): Buffer {
  const parts: Buffer[] = [];
  const words = (...values: number[]) => parts.push(Buffer.from(Uint32Array.from(values).buffer));
  words(0x67677371, 3, tokenCount, ...Array.from({ length: tokenCount }, (_, i) => 100 + i));
  words(1, tokenCount, ...Array.from({ length: tokenCount }, (_, i) => [i, 1, 0]).flat());
  words(transposed ? 1 : 0, 2);
  let byte = 1;
  const fill = (bytes: number) => parts.push(Buffer.from(Array.from({ length: bytes }, () => byte++ % 251)));
  const rows = () => {
    words(1, 6, 0);
    fill(6 * tokenCount);
  };
  for (let layer = 0; layer < 2; layer++) rows();
  for (let layer = 0; layer < 2; layer++) {
    if (!transposed) rows();
    else {
      words(1, 2, 3);
      fill(6 * tokenCount);
    }
  }
  return Buffer.concat(parts);
}

/** Writes a `node_modules` with a node-llama-cpp that loads only states of the size that its context asks for. */
export async function writeFakeNodeLlama(folder: string): Promise<string> {
  const modules = join(folder, "node_modules");
  const dist = join(modules, "node-llama-cpp", "dist");
  await mkdir(dist, { recursive: true });
  await writeFile(join(dist, "..", "package.json"), JSON.stringify({ version: "9.9.9", type: "module" }));
  const states = [false, true].map((on) => fakeState(64, !on).toString("base64"));
  const source = `
import { readFile, writeFile } from "node:fs/promises";
const states = ${JSON.stringify(states)};
export async function getLlama(options) {
  if (options.gpu !== false || options.maxThreads !== 1) throw new Error("unexpected options");
  return { loadModel: async ({ modelPath }) => {
    if (modelPath.includes("broken")) throw new Error("cannot load " + modelPath);
    return { createContext: async (how) => ({ getSequence: () => sequence(how), dispose: async () => {} }), dispose: async () => {} };
  } };
}
function sequence({ contextSize, flashAttention }) {
  let held = 0;
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  return {
    async evaluateWithoutGeneratingNewTokens(tokens) { held += tokens.length; await wait(1); },
    async clearHistory() { held = 0; },
    async saveStateToFile(path) {
      if (held !== 64) throw new Error("state of " + held);
      await writeFile(path, Buffer.from(states[flashAttention ? 1 : 0], "base64"));
    },
    async loadStateFromFile(path) { held = (await readFile(path)).readUInt32LE(8); },
    async *evaluate() {
      if (held > 0 && held % 100 !== 0) throw new Error("error: context of " + held);
      if (held + 8 > contextSize) throw new Error("error: context too small");
      for (let i = 0; ; i++) { await wait(2); yield i; }
    },
  };
}
`;
  await writeFile(join(dist, "index.js"), source);
  return modules;
}
