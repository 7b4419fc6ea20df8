/** Which files of a repository an engine needs. */
import { PullError } from "./pull-error.ts";

/** Of these, all that are there; small ones come with safetensors weights only: a GGUF file holds its own. */
const companionNames = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
];
const requiredNames = ["config.json", "tokenizer.json"];
const shardIndex = "model.safetensors.index.json";
const shardName = /^model-\d+-of-\d+\.safetensors$/;
const listedMax = 12;

/**
 * Chooses from the names of a repository. Weights are `model.safetensors`, or its shards with their index, else the one `.gguf` file;
 * `include`, a pattern in which `*` stands for any run of characters and `?` for one, chooses weights instead. Pickled weights are never
 * chosen: to open such a file is to run it.
 * @throws {PullError} when there is nothing to choose, or too much; names what there is.
 */
export function selectFiles(paths: readonly string[], include: string | undefined): string[] {
  const weights = include === undefined ? usualWeights(paths) : includedWeights(paths, include);
  if (weights.every((path) => path.endsWith(".gguf"))) return weights;
  const missing = requiredNames.filter((name) => !paths.includes(name));
  if (missing.length > 0)
    throw new PullError(`the repository has no ${missing.join(" and no ")}, which an engine needs`);
  return [...companionNames.filter((name) => paths.includes(name)), ...weights];
}

function usualWeights(paths: readonly string[]): string[] {
  if (paths.includes("model.safetensors")) return ["model.safetensors"];
  if (paths.includes(shardIndex)) {
    const shards = paths.filter((path) => shardName.test(path));
    if (shards.length > 0) return [shardIndex, ...shards];
  }
  const ggufFiles = paths.filter((path) => path.endsWith(".gguf"));
  if (ggufFiles.length === 1) return ggufFiles;
  if (ggufFiles.length > 1) {
    throw new PullError(`the repository has several GGUF files, choose one with --include: ${list(ggufFiles)}`);
  }
  throw new PullError(`the repository has no model.safetensors, no shards with an index, and no GGUF file`);
}

function includedWeights(paths: readonly string[], include: string): string[] {
  const weights = paths.filter((path) => /\.(safetensors|gguf)$/.test(path));
  const chosen = weights.filter((path) => matchesPattern(path, include));
  if (chosen.length === 0) {
    const there = weights.length === 0 ? "it has no safetensors or GGUF files" : `there are ${list(weights)}`;
    throw new PullError(`no weights of the repository match --include ${include}: ${there}`);
  }
  const ggufCount = chosen.filter((path) => path.endsWith(".gguf")).length;
  if (ggufCount > 0 && ggufCount < chosen.length) {
    throw new PullError(`--include ${include} matches safetensors and GGUF files; choose one kind: ${list(chosen)}`);
  }
  const hasShards = chosen.some((path) => shardName.test(path));
  return hasShards && paths.includes(shardIndex) ? [shardIndex, ...chosen] : chosen;
}

function matchesPattern(path: string, pattern: string): boolean {
  const source = pattern
    .replace(/[\\^$.+()[\]{}|]/g, "\\$&")
    .replace(/\*+/g, ".*")
    .replaceAll("?", ".");
  return new RegExp(`^${source}$`, "su").test(path);
}

/** Names as they go into one line. */
function list(paths: readonly string[]): string {
  const names = paths.slice(0, listedMax).map((path) => path.replace(/[\p{Cc}\p{Cf}]/gu, "?"));
  return names.join(", ") + (paths.length > listedMax ? ` and ${paths.length - listedMax} more` : "");
}
