/** A checkpoint in shards, as HF's `save_pretrained` wrote it, and what an index may not say. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { locateModel, openModelFiles } from "../../models/model-files.ts";
import { openShardedSafetensors, SHARD_INDEX } from "../../models/sharded-safetensors.ts";
import { compute, type FamilyCase, worstError } from "./families.ts";

const FIXTURES = "test/models/vectors/fixtures";
const FOLDER = `${FIXTURES}/sharded`;

describe("sharded safetensors", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  it("computes what HF computes from the same folder", async () => {
    const expected: FamilyCase = JSON.parse(await readFile(`${FIXTURES}/sharded.json`, "utf8"));
    expect((await readdir(FOLDER)).filter((name) => name.endsWith(".safetensors")).length).toBeGreaterThan(1);
    expect(await locateModel(FOLDER)).toEqual({ format: "sharded-safetensors", path: FOLDER });
    const { config, source } = await openModelFiles(FOLDER);
    try {
      const computed = await compute(device, expected, { config, source });
      expect(worstError(computed, expected)).toBeLessThan(1e-4);
    } finally {
      await source.close();
    }
  });

  describe("refuses in one line", () => {
    let folder: string;
    let index: { weight_map: Record<string, string> };
    beforeEach(async () => {
      folder = await mkdtemp(join(tmpdir(), "quire-shards-"));
      await cp(FOLDER, folder, { recursive: true });
      index = JSON.parse(await readFile(join(folder, SHARD_INDEX), "utf8"));
    });
    afterEach(() => rm(folder, { recursive: true, force: true }));

    const norm = "model.norm.weight";
    const broken: [what: string, change: () => unknown, message: RegExp][] = [
      ["an index without a map", () => ({ metadata: {} }), /has no weight_map/],
      ["an empty map", () => ({ weight_map: {} }), /is empty/],
      [
        "a file outside of the folder",
        () => withNorm("../model.safetensors"),
        /not in a safetensors file of the folder/,
      ],
      ["a file that is no text", () => withNorm(7), /not in a safetensors file of the folder/],
      ["a shard that is not there", () => withNorm("model-9.safetensors"), /model-9\.safetensors: cannot be opened/],
      ["a tensor in another shard", () => withNorm(otherShard()), /model\.norm\.weight is (missing|not what)/],
      ["a tensor that the index does not know", () => without(norm), /model\.norm\.weight is not what the index says/],
    ];
    const withNorm = (file: unknown) => ({ weight_map: { ...index.weight_map, [norm]: file } });
    const otherShard = () => Object.values(index.weight_map).find((file) => file !== index.weight_map[norm]);
    const without = (name: string) => {
      const { [name]: _, ...rest } = index.weight_map;
      return { weight_map: rest };
    };
    it.each(broken)("%s", async (_, change, message) => {
      await writeFile(join(folder, SHARD_INDEX), JSON.stringify(change()));
      await expect(openShardedSafetensors(folder)).rejects.toMatchObject({
        code: "invalid_request",
        message: expect.stringMatching(message),
      });
    });

    it("an index that is not JSON, and a truncated shard", async () => {
      const shard = join(folder, index.weight_map[norm]!);
      const bytes = await readFile(shard);
      await writeFile(shard, bytes.subarray(0, bytes.length - 1));
      await expect(openShardedSafetensors(folder)).rejects.toThrow(/is truncated/);
      await writeFile(join(folder, SHARD_INDEX), "{");
      await expect(openShardedSafetensors(folder)).rejects.toThrow(/cannot be read or is not JSON/);
    });
  });
});
