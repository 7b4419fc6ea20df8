/** What loading takes of memory beside the weights themselves: little, whatever the model's size. */
import { execFileSync } from "node:child_process";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseConfig } from "../../models/config.ts";
import { weightBytes } from "../../models/plan-memory.ts";
import type { LoadingMemory } from "./loading-process.ts";
import { tensorShapes } from "./seeded-tensors.ts";

const mebibyte = 2 ** 20;
/** 184 million parameters, nearly all of them in one tensor. */
const json = {
  model_type: "llama",
  vocab_size: 180_000,
  hidden_size: 1024,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 1,
  head_dim: 32,
  tie_word_embeddings: true,
};
const config = parseConfig(json);
/** Pieces of 16 MiB until they are collected, measured 114 MiB: less than the tensor once more in any form. */
const SPARE_BYTES = 165 * mebibyte;

/** Zeros in bf16: a file with a hole takes no disk. */
async function writeCheckpoint(folder: string): Promise<void> {
  await writeFile(join(folder, "config.json"), JSON.stringify(json));
  let end = 0;
  const entries = tensorShapes(config).map(([name, shape]) => {
    const begin = end;
    end += shape.reduce((a, b) => a * b, 2);
    return [name, { dtype: "BF16", shape, data_offsets: [begin, end] }] as const;
  });
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  const file = await open(join(folder, "model.safetensors"), "w");
  await file.writeFile(Buffer.concat([size, header]));
  await file.truncate(8 + header.length + end);
  await file.close();
}

describe.skipIf(process.platform !== "linux")("the memory that loading takes (Linux)", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "quire-loading-"));
    await writeCheckpoint(folder);
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it("is the packed weights, once, and pieces", { timeout: 120_000 }, () => {
    const program = new URL("./loading-process.ts", import.meta.url).pathname;
    const output = execFileSync(process.execPath, [program, folder], { encoding: "utf8" });
    const { beforeBytes, peakBytes }: LoadingMemory = JSON.parse(output);
    const packedBytes = weightBytes(config, "int8");
    const grownBytes = peakBytes - beforeBytes;
    expect(packedBytes).toBeGreaterThan(SPARE_BYTES);
    expect(grownBytes).toBeGreaterThan(packedBytes * 0.9);
    expect(grownBytes).toBeLessThan(packedBytes + SPARE_BYTES);
  });
});
