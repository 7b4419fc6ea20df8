/** Checkpoints cut into several safetensors files: `model.safetensors.index.json` maps tensor names to files. */
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import { openSafetensors } from "./safetensors.ts";
import type { RowRange, TensorSource } from "./tensor-source.ts";
import { failFile } from "./weights-file.ts";

/** Name of the index in a model folder. */
export const SHARD_INDEX = "model.safetensors.index.json";
/** A checkpoint of the largest models has a few hundred. */
const SHARDS_MAX = 1024;

/**
 * Opens every shard of the index in `folder` and checks that index and shards name the same tensors, each in one place.
 * The caller closes it.
 * @throws {QuireError} `invalid_request`, one line with the file's name and what is wrong with it.
 */
export async function openShardedSafetensors(folder: string): Promise<TensorSource> {
  const shardOf = await readIndex(folder);
  const files = [...new Set(shardOf.values())].sort();
  if (files.length > SHARDS_MAX) failFile(SHARD_INDEX, `names more than ${SHARDS_MAX} files`);
  const shards = new Map<string, TensorSource>();
  try {
    for (const file of files) shards.set(file, await openSafetensors(join(folder, file)));
    checkIndex(shardOf, shards);
    return new ShardedTensors(shardOf, shards);
  } catch (thrown) {
    await closeAll(shards);
    throw thrown;
  }
}

async function readIndex(folder: string): Promise<Map<string, string>> {
  let json: unknown;
  try {
    json = JSON.parse(await readFile(join(folder, SHARD_INDEX), "utf8"));
  } catch (cause) {
    throw new QuireError("invalid_request", `${SHARD_INDEX}: cannot be read or is not JSON`, { cause });
  }
  const map = (json as { weight_map?: unknown } | null)?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) failFile(SHARD_INDEX, "has no weight_map");
  const entries = Object.entries(map);
  if (entries.length === 0) failFile(SHARD_INDEX, "its weight_map is empty");
  for (const [tensor, file] of entries) {
    // The name is somebody's text: it must not lead out of the folder.
    if (typeof file !== "string" || !file.endsWith(".safetensors") || basename(file) !== file || file.includes("\\")) {
      failFile(SHARD_INDEX, `tensor ${tensor.slice(0, 120)} is not in a safetensors file of the folder`);
    }
  }
  return new Map(entries);
}

function checkIndex(shardOf: ReadonlyMap<string, string>, shards: ReadonlyMap<string, TensorSource>): void {
  for (const [tensor, file] of shardOf) {
    if (shards.get(file)?.shape(tensor) === undefined) failFile(file, `tensor ${tensor.slice(0, 120)} is missing`);
  }
  for (const [file, shard] of shards) {
    const stray = shard.names.find((name) => shardOf.get(name) !== file);
    if (stray !== undefined) failFile(file, `tensor ${stray.slice(0, 120)} is not what the index says`);
  }
}

async function closeAll(shards: ReadonlyMap<string, TensorSource>): Promise<void> {
  await Promise.all([...shards.values()].map((shard) => shard.close()));
}

class ShardedTensors implements TensorSource {
  readonly #shardOf: ReadonlyMap<string, string>;
  readonly #shards: ReadonlyMap<string, TensorSource>;

  constructor(shardOf: ReadonlyMap<string, string>, shards: ReadonlyMap<string, TensorSource>) {
    this.#shardOf = shardOf;
    this.#shards = shards;
  }

  get names(): string[] {
    return [...this.#shardOf.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#shards.get(this.#shardOf.get(name) ?? "")?.shape(name);
  }

  async read(name: string): Promise<Float32Array> {
    return this.#shard(name).read(name);
  }

  async readRows(name: string, rows: RowRange): Promise<Float32Array> {
    return this.#shard(name).readRows(name, rows);
  }

  close(): Promise<void> {
    return closeAll(this.#shards);
  }

  #shard(name: string): TensorSource {
    return this.#shards.get(this.#shardOf.get(name) ?? "") ?? failFile(SHARD_INDEX, `tensor ${name} is missing`);
  }
}
