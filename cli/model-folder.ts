/** The model folder as a user hands it over: checked before anything starts. */
import { readFile, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { UsageError } from "./usage-error.ts";

/** A folder that holds what a model needs. */
export interface ModelFolder {
  /** Absolute. */
  path: string;
  /** How requests name the model: the folder's name. */
  modelId: string;
  /** Files of the folder that the edge needs, as they will lie in the object store. */
  edgeFiles: string[];
}

const requiredFiles = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const optionalEdgeFiles = ["generation_config.json"];

/**
 * Checks a HF model folder: the files are there, the JSON ones parse, the configuration is a Llama's.
 * @throws {UsageError} one line naming the folder and what is wrong with it.
 */
export async function openModelFolder(folder: string): Promise<ModelFolder> {
  const path = resolve(folder);
  const modelId = basename(path);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(modelId)) {
    throw new UsageError(`model folder ${folder}: its name is the model's id and may only hold letters, digits, . _ -`);
  }
  if (!(await isThere(path))) throw new UsageError(`model folder ${folder} is not there; name one with --model`);
  for (const name of requiredFiles) {
    if (!(await isThere(join(path, name)))) throw new UsageError(`model folder ${folder} has no ${name}`);
  }
  const optional = await Promise.all(optionalEdgeFiles.map(async (name) => [name, await isThere(join(path, name))]));
  const edgeFiles = [
    ...requiredFiles.filter((name) => name.endsWith(".json")),
    ...optional.filter(([, there]) => there).map(([name]) => String(name)),
  ];
  for (const name of edgeFiles) await readJson(folder, join(path, name), name);
  const config = (await readJson(folder, join(path, "config.json"), "config.json")) as { model_type?: unknown };
  if (config.model_type !== "llama") {
    throw new UsageError(`model folder ${folder}: model_type is ${JSON.stringify(config.model_type)}, not "llama"`);
  }
  return { path, modelId, edgeFiles };
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}

async function readJson(folder: string, path: string, name: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch {
    throw new UsageError(`model folder ${folder}: ${name} is not JSON`);
  }
}
