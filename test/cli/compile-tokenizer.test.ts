import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { main } from "../../cli/main.ts";
import { uploadModelAssets } from "../../cli/model-assets.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { repositoryRoot } from "../style/source-tree.ts";
import { withTempFolder } from "./run-quire.ts";

const house = join(repositoryRoot, "weights/house-0");
const unigram = { model: { type: "Unigram", vocab: [["a", 0]] }, decoder: { type: "Fuse" } };

afterEach(() => vi.restoreAllMocks());

async function run(args: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const code = await main(args);
  return { code, stdout: stdout.mock.calls.join(""), stderr: stderr.mock.calls.join("") };
}

describe("quire compile-tokenizer", () => {
  it("writes a file that opens to the same tokenizer", async () => {
    await withTempFolder(async (folder) => {
      const out = join(folder, "words.tables");
      const { code, stdout } = await run(["compile-tokenizer", house, "--out", out]);
      expect(code).toBe(0);
      const file = readFileSync(out);
      expect(stdout).toContain(`${out}: ${file.length} bytes`);
      const tokenizerTables = new Uint8Array(file).buffer;
      const { tokenizer } = openTokenizer({ tokenizerTables, tokenizerConfig: {} });
      expect(tokenizer.encode("é<|end|>", { special: true })).toEqual([0xc3, 0xa9, tokenizer.idOf("<|end|>")]);
    });
  });

  it("takes a tokenizer.json, and writes beside it", async () => {
    await withTempFolder(async (folder) => {
      writeFileSync(join(folder, "tokenizer.json"), readFileSync(join(house, "tokenizer.json")));
      expect((await run(["compile-tokenizer", join(folder, "tokenizer.json")])).code).toBe(0);
      expect(existsSync(join(folder, "tokenizer.tables"))).toBe(true);
    });
  });

  it("refuses in one line", async () => {
    await withTempFolder(async (folder) => {
      const path = join(folder, "tokenizer.json");
      const refusal = async (json: string): Promise<string> => {
        writeFileSync(path, json);
        const { code, stderr } = await run(["compile-tokenizer", path]);
        vi.restoreAllMocks();
        expect(code).toBe(1);
        return stderr;
      };
      expect(await refusal("{")).toBe(`quire: model ${path}: tokenizer.json is not JSON\n`);
      expect(await refusal(JSON.stringify(unigram))).toContain("no byte-pair encoding");
      expect(await refusal('{"model":{"type":"BPE","vocab":{},"merges":[]},"decoder":{"type":"CTC"}}')).toBe(
        `quire: model ${path}: tokenizer.json: decoder CTC is not supported\n`,
      );
    });
    expect((await run(["compile-tokenizer"])).stderr).toContain("needs a model");
  });
});

describe("uploading a model's words", () => {
  const { signal } = new AbortController();

  it("puts the compiled tokenizer beside the JSON, and takes an old one away where there is none", async () => {
    const store = new MemoryStore();
    const folder = await openModelFolder(house);
    await uploadModelAssets(store, folder, signal);
    const key = "models/house-0/tokenizer.tables";
    const tables = (await store.get(key, { signal }))?.bytes;
    const { tokenizer } = openTokenizer({
      tokenizerTables: new Uint8Array(tables as Uint8Array).buffer,
      tokenizerConfig: {},
    });
    expect(tokenizer.decode(tokenizer.encode("Badoru"))).toBe("Badoru");
    expect(await store.get("models/house-0/tokenizer.json", { signal })).toBeDefined();

    const readEdgeFile = async (name: string) =>
      name === "tokenizer.json" ? new TextEncoder().encode(JSON.stringify(unigram)) : folder.readEdgeFile(name);
    await uploadModelAssets(store, { ...folder, readEdgeFile }, signal);
    expect(await store.get(key, { signal })).toBeUndefined();
  });

  it.each([
    [
      "tokenizer.json",
      { ...unigram, normalizer: { type: "Guess" } },
      "tokenizer.json: this normalizer is not supported",
    ],
    ["tokenizer_config.json", { chat_template: "{% if %}" }, "chat template: does not parse"],
  ])("uploads nothing of a model whose %s the edge could not open", async (broken, content, problem) => {
    const store = new MemoryStore();
    const folder = await openModelFolder(house);
    const readEdgeFile = async (name: string) =>
      name === broken ? new TextEncoder().encode(JSON.stringify(content)) : folder.readEdgeFile(name);
    const upload = uploadModelAssets(store, { ...folder, readEdgeFile }, signal);
    await expect(upload).rejects.toThrow(new UsageError(`model ${folder.path}: ${problem}`));
    expect((await store.list("models/", {})).keys).toEqual([]);
  });
});
