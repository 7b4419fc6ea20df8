import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { SeededWeights } from "../../bench/make-shape/seeded-weights.ts";
import { shapeConfig } from "../../bench/shapes.ts";
import { openGguf } from "../../models/gguf.ts";
import { ggufTokenizer } from "../../models/gguf-tokenizer.ts";
import { openModelFiles } from "../../models/model-files.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { runBench } from "./run-bench.ts";

describe("make-shape", () => {
  it("writes a folder and a GGUF file that hold the same values, those of the seed", async () => {
    await withTempFolder(async (folder) => {
      const run = await runBench(["make-shape", "--shape=tiny", "--seed=7", `--out=${folder}`]);
      expect(run).toMatchObject({ code: 0, err: "" });
      expect(run.out).toMatch(/tiny, seed 7: 0\.1 M parameters\n.*model\.safetensors {2}0\.2 MB\n.*tiny\.gguf/);
      const ours = await openModelFiles(folder);
      const gguf = await openModelFiles(join(folder, "tiny.gguf"));
      const seeded = new SeededWeights(shapeConfig("tiny"), 7);
      try {
        expect(ours.config).toEqual(shapeConfig("tiny"));
        // GGUF keeps the norm's epsilon as f32.
        expect({ ...gguf.config, normEps: 1e-5 }).toEqual(ours.config);
        expect(ours.source.names.toSorted()).toEqual(gguf.source.names.toSorted());
        expect(ours.source.names).toHaveLength(2 * 9 + 2);
        for (const name of ours.source.names) {
          const values = await ours.source.read(name);
          expect(await gguf.source.read(name), name).toEqual(values);
          expect(await seeded.read(name), name).toEqual(values);
          expect(new Set(values).size, name).toBeGreaterThan(10);
        }
      } finally {
        await ours.source.close();
        await gguf.source.close();
      }
    });
  });

  it("has the same bytes for the same seed, others for another, and blocks that int8 holds exactly", async () => {
    await withTempFolder(async (folder) => {
      const bytes: Buffer[] = [];
      for (const seed of [1, 1, 2]) {
        await runBench(["make-shape", "--shape=tiny", `--seed=${seed}`, `--out=${folder}`]);
        bytes.push(await readFile(join(folder, "model.safetensors")), await readFile(join(folder, "tiny.gguf")));
      }
      expect(bytes[2]?.equals(bytes[0]!)).toBe(true);
      expect(bytes[3]?.equals(bytes[1]!)).toBe(true);
      expect(bytes[4]?.equals(bytes[0]!)).toBe(false);
    });
    const name = "model.layers.1.mlp.down_proj.weight";
    const values = await new SeededWeights(shapeConfig("tiny"), 3).read(name);
    for (let at = 0; at < values.length; at += 32) {
      const block = values.subarray(at, at + 32);
      const scale = Math.fround(Math.max(...block.map(Math.abs)) / 127);
      expect(block.every((value) => Number.isInteger(value / scale))).toBe(true);
    }
  });

  it("brings a vocabulary that opens", async () => {
    await withTempFolder(async (folder) => {
      await runBench(["make-shape", "--shape=tiny", `--out=${folder}`]);
      const file = await openGguf(join(folder, "tiny.gguf"));
      try {
        expect(file.metadata.get("tokenizer.ggml.tokens")).toHaveLength(512);
        expect(ggufTokenizer(file).tokenizerConfig).toMatchObject({ bos_token: "<s>", eos_token: "</s>" });
      } finally {
        await file.close();
      }
    });
  });

  it("needs a folder", async () => {
    expect(await runBench(["make-shape"])).toMatchObject({ code: 1, err: "bench: --out DIR is needed\n" });
  });
});
