/** What the edge needs of a model, put where the edge looks for it. */
import type { PageStore } from "../storage/contract.ts";
import { TOKENIZER_TABLES_NAME } from "../tokenizer/open.ts";
import { compileTokenizerFile } from "./compile-tokenizer.ts";
import type { ModelFolder } from "./model-folder.ts";

/**
 * Uploads tokenizer (also compiled, where it can be), template and configurations to `models/<modelId>/` of the bucket; objects
 * that are there are replaced.
 * @throws {UsageError} one line, for a tokenizer that is not supported: nothing is uploaded then.
 */
export async function uploadModelAssets(store: PageStore, model: ModelFolder, signal: AbortSignal): Promise<void> {
  const keyOf = (name: string): string => `models/${model.modelId}/${name}`;
  const tables = compileTokenizerFile(model.path, await model.readEdgeFile("tokenizer.json"));
  // The edge prefers compiled tables, so those of an earlier vocabulary go before the new one comes.
  await store.delete([keyOf(TOKENIZER_TABLES_NAME)]);
  for (const name of model.edgeFiles) await store.put(keyOf(name), await model.readEdgeFile(name), { signal });
  if (tables !== undefined) await store.put(keyOf(TOKENIZER_TABLES_NAME), tables, { signal });
}
