/** What the edge needs of a model, put where the edge looks for it. */
import type { PageStore } from "../storage/contract.ts";
import type { ModelFolder } from "./model-folder.ts";

/** Uploads tokenizer, template and configurations to `models/<modelId>/` of the bucket; objects that are there are replaced. */
export async function uploadModelAssets(store: PageStore, model: ModelFolder, signal: AbortSignal): Promise<void> {
  for (const name of model.edgeFiles) {
    await store.put(`models/${model.modelId}/${name}`, await model.readEdgeFile(name), { signal });
  }
}
