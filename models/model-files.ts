/** A model on disk, whatever its format: a HF folder (one safetensors file or shards with an index) or a GGUF file. */
import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import { readConfig } from "./config.ts";
import type { ModelConfig } from "./contract.ts";
import { openGguf } from "./gguf.ts";
import { GgufTensors, readGgufConfig } from "./gguf-model.ts";
import { openSafetensors } from "./safetensors.ts";
import { openShardedSafetensors, SHARD_INDEX } from "./sharded-safetensors.ts";
import type { TensorSource } from "./tensor-source.ts";
import { type FileIdentity, identifyFiles } from "./weight-cache.ts";

/** Where a model's parts lie. */
export interface ModelLocation {
  format: "safetensors" | "sharded-safetensors" | "gguf";
  /** The folder, or the GGUF file. */
  path: string;
}

const WEIGHTS = "model.safetensors";

/**
 * Finds the weights: a `.gguf` file, or a folder with `model.safetensors`, with the index of its shards, or with one `.gguf` file.
 * @throws {QuireError} `invalid_request`, one line, when there is none.
 */
export async function locateModel(path: string): Promise<ModelLocation> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) throw new QuireError("invalid_request", `${path}: is not there`);
  if (!found.isDirectory()) {
    if (path.endsWith(".gguf")) return { format: "gguf", path };
    throw new QuireError("invalid_request", `${basename(path)}: is neither a model folder nor a .gguf file`);
  }
  const names = await readdir(path);
  if (names.includes(WEIGHTS)) return { format: "safetensors", path };
  if (names.includes(SHARD_INDEX)) return { format: "sharded-safetensors", path };
  const ggufNames = names.filter((name) => name.endsWith(".gguf"));
  if (ggufNames.length === 1) return { format: "gguf", path: join(path, ggufNames[0]!) };
  const problem = ggufNames.length > 1 ? `has ${ggufNames.length} .gguf files, name one` : `has no ${WEIGHTS}`;
  throw new QuireError("invalid_request", `${path}: ${problem}`);
}

/** The configuration alone. @throws {QuireError} `invalid_request`, one line, for what is missing, broken or unsupported. */
export async function readModelConfig(path: string): Promise<ModelConfig> {
  const location = await locateModel(path);
  if (location.format !== "gguf") return readConfig(location.path);
  const file = await openGguf(location.path);
  try {
    return await readGgufConfig(file);
  } finally {
    await file.close();
  }
}

/** A model's files, open. */
export interface ModelFiles {
  config: ModelConfig;
  /** The caller closes it. */
  source: TensorSource;
  /** The files that hold tensors, as they were before they were opened. */
  weightFiles: FileIdentity[];
  /** Where files derived from this model belong: append a suffix. */
  cachePrefix: string;
}

/** Configuration and tensors. @throws {QuireError} as {@link readModelConfig}. */
export async function openModelFiles(path: string): Promise<ModelFiles> {
  const location = await locateModel(path);
  if (location.format === "gguf") return openGgufModel(location.path);
  const folder = location.path;
  const config = await readConfig(folder);
  const isWhole = location.format === "safetensors";
  const names = isWhole ? [WEIGHTS] : (await readdir(folder)).filter((name) => name.endsWith(".safetensors")).sort();
  const weightFiles = await identifyFiles(names.map((name) => join(folder, name)));
  const source = isWhole ? await openSafetensors(join(folder, WEIGHTS)) : await openShardedSafetensors(folder);
  return { config, source, weightFiles, cachePrefix: join(folder, "quire-cache") };
}

async function openGgufModel(path: string): Promise<ModelFiles> {
  const weightFiles = await identifyFiles([path]);
  const file = await openGguf(path);
  try {
    const config = await readGgufConfig(file);
    const source = new GgufTensors(file, config);
    return { config, source, weightFiles, cachePrefix: `${path}.quire-cache` };
  } catch (thrown) {
    await file.close();
    throw thrown;
  }
}
