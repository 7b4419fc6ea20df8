/** What the edge needs of a model, put where the edge looks for it. */
import { QuireError } from "../protocol/errors.ts";
import type { PageStore } from "../storage/contract.ts";
import { openTokenizer, TOKENIZER_TABLES_NAME, type TokenizerFiles } from "../tokenizer/open.ts";
import { compileTokenizerFile } from "./compile-tokenizer.ts";
import type { ModelFolder } from "./model-folder.ts";
import { UsageError } from "./usage-error.ts";

const parse = (json: Uint8Array): unknown => JSON.parse(new TextDecoder().decode(json));

/** What the edge would be told of with every request. */
function tryToOpen(model: string, files: TokenizerFiles): void {
  try {
    openTokenizer(files);
  } catch (error) {
    if (error instanceof QuireError) throw new UsageError(`model ${model}: ${error.message}`);
    throw error;
  }
}

/**
 * Uploads tokenizer (also compiled, where it can be), template and configurations to `models/<modelId>/` of the bucket; objects
 * that are there are replaced.
 * @returns the names of what was put there
 * @throws {UsageError} one line, for a tokenizer or a chat template that is not supported: nothing is uploaded then.
 */
export async function uploadModelAssets(store: PageStore, model: ModelFolder, signal: AbortSignal): Promise<string[]> {
  const keyOf = (name: string): string => `models/${model.modelId}/${name}`;
  const tokenizer = await model.readEdgeFile("tokenizer.json");
  const tables = compileTokenizerFile(model.path, tokenizer);
  const tokenizerConfig = parse(await model.readEdgeFile("tokenizer_config.json"));
  const words = tables === undefined ? { tokenizerJson: parse(tokenizer) } : { tokenizerTables: tables.buffer };
  tryToOpen(model.path, { ...words, tokenizerConfig });
  // The edge prefers compiled tables, so those of an earlier vocabulary go before the new one comes.
  await store.delete([keyOf(TOKENIZER_TABLES_NAME)]);
  for (const name of model.edgeFiles) await store.put(keyOf(name), await model.readEdgeFile(name), { signal });
  if (tables === undefined) return model.edgeFiles;
  await store.put(keyOf(TOKENIZER_TABLES_NAME), tables, { signal });
  return [...model.edgeFiles, TOKENIZER_TABLES_NAME];
}
