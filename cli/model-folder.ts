/** The model as a user hands it over, a HF folder or a GGUF file: checked before anything starts. */
import { readFile, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { openGguf } from "../models/gguf.ts";
import { readGgufConfig } from "../models/gguf-model.ts";
import { ggufTokenizer } from "../models/gguf-tokenizer.ts";
import { locateModel, readModelConfig } from "../models/model-files.ts";
import { QuireError } from "../protocol/errors.ts";
import { UsageError } from "./usage-error.ts";

/** What a model needs is there. */
export interface ModelFolder {
  /** Absolute: the folder, or the GGUF file. */
  path: string;
  /** How requests name the model: the folder's name, or the file's without `.gguf`. */
  modelId: string;
  /** Files that the edge needs, as they will lie in the object store. */
  edgeFiles: string[];
  /** The contents of one of `edgeFiles`. */
  readEdgeFile(name: string): Promise<Uint8Array>;
}

const requiredEdgeFiles = ["config.json", "tokenizer.json", "tokenizer_config.json"];
const optionalEdgeFiles = ["generation_config.json"];

/**
 * Checks a HF model folder or a GGUF file: the files are there, the JSON ones parse, and the engine supports the configuration.
 * @throws {UsageError} one line naming the folder or file and what is wrong with it.
 */
export async function openModelFolder(folder: string): Promise<ModelFolder> {
  const path = resolve(folder);
  const modelId = basename(path).replace(/\.gguf$/, "");
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(modelId)) {
    throw new UsageError(`model folder ${folder}: its name is the model's id and may only hold letters, digits, . _ -`);
  }
  if (!(await isThere(path))) throw new UsageError(`model folder ${folder} is not there; name one with --model`);
  try {
    const files = (await isGguf(path)) ? await openGgufFiles(path) : await openFolderFiles(folder, path);
    return { path, modelId, ...files };
  } catch (error) {
    if (error instanceof QuireError) throw new UsageError(`model ${folder}: ${error.message}`);
    throw error;
  }
}

type EdgeFiles = Pick<ModelFolder, "edgeFiles" | "readEdgeFile">;

/** A folder with tokenizer.json is a HF folder, whatever else is missing. */
async function isGguf(path: string): Promise<boolean> {
  if (path.endsWith(".gguf")) return true;
  if (await isThere(join(path, "tokenizer.json"))) return false;
  const location = await locateModel(path).catch(() => undefined);
  return location?.format === "gguf";
}

async function openFolderFiles(folder: string, path: string): Promise<EdgeFiles> {
  for (const name of requiredEdgeFiles) {
    if (!(await isThere(join(path, name)))) throw new UsageError(`model folder ${folder} has no ${name}`);
  }
  const optional = await Promise.all(optionalEdgeFiles.map(async (name) => [name, await isThere(join(path, name))]));
  const edgeFiles = [...requiredEdgeFiles, ...optional.filter(([, there]) => there).map(([name]) => String(name))];
  for (const name of edgeFiles) await checkJson(folder, join(path, name), name);
  await readModelConfig(path);
  const template = await readFile(join(path, "chat_template.jinja"), "utf8").catch(() => undefined);
  const readEdgeFile = async (name: string): Promise<Uint8Array> => {
    const bytes = await readFile(join(path, name));
    return name === "tokenizer_config.json" && template !== undefined ? withChatTemplate(bytes, template) : bytes;
  };
  return { edgeFiles, readEdgeFile };
}

/** Checkpoints that recent versions of transformers saved keep their template in a file of its own, which goes before the configuration's. */
function withChatTemplate(tokenizerConfig: Uint8Array, template: string): Uint8Array {
  const config: unknown = JSON.parse(new TextDecoder().decode(tokenizerConfig));
  return new TextEncoder().encode(JSON.stringify({ ...(config as object), chat_template: template }));
}

/** The edge reads what a folder would hold. */
async function openGgufFiles(path: string): Promise<EdgeFiles> {
  const file = await openGguf((await locateModel(path)).path);
  try {
    const config = await readGgufConfig(file);
    const { tokenizerJson, tokenizerConfig } = ggufTokenizer(file);
    const { modelType, bosTokenId, eosTokenIds } = config;
    const files: Readonly<Record<string, object>> = {
      "config.json": { model_type: modelType, bos_token_id: bosTokenId ?? null, eos_token_id: eosTokenIds },
      "tokenizer.json": tokenizerJson,
      "tokenizer_config.json": tokenizerConfig,
    };
    const readEdgeFile = async (name: string) => new TextEncoder().encode(JSON.stringify(files[name]));
    return { edgeFiles: Object.keys(files), readEdgeFile };
  } finally {
    await file.close();
  }
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}

async function checkJson(folder: string, path: string, name: string): Promise<void> {
  try {
    JSON.parse(await readFile(path, "utf8"));
  } catch {
    throw new UsageError(`model folder ${folder}: ${name} is not JSON`);
  }
}
