/** `quire publish`: what an edge needs of a model, put into its bucket. `quire start` does this by itself. */
import type { Command } from "./command.ts";
import { describeFlags, parseWithOperand } from "./flags.ts";
import { uploadModelAssets } from "./model-assets.ts";
import { openModelFolder } from "./model-folder.ts";
import { openPlace, storeFlags } from "./store/flags.ts";
import { UsageError } from "./usage-error.ts";

/** A bucket that has not taken everything within this time is not waited for; a vocabulary is a few megabytes. */
const uploadMsMax = 120_000;

/** The command. */
export const publishCommand: Command = {
  help: () =>
    "Usage: quire publish MODEL [flags]\n\n" +
    "Puts tokenizer (also compiled), chat template and configurations of MODEL (a HF folder or a GGUF file) into the bucket " +
    `of an edge. Objects of the same model are replaced. Weights stay where they are.\n\n${describeFlags(storeFlags)}\n`,
  run: runPublish,
};

async function runPublish(args: readonly string[]): Promise<number> {
  const missing = "publish needs a model folder or GGUF file";
  const { operand, values } = parseWithOperand(storeFlags, args, { env: process.env, missing });
  if (values.store?.startsWith("fs:")) throw new UsageError("--store: an edge reads its bucket, and no folder");
  const model = await openModelFolder(operand);
  const store = await openPlace(values, process.env, { plain: true });
  try {
    const names = await uploadModelAssets(store, model, AbortSignal.timeout(uploadMsMax));
    process.stdout.write(`models/${model.modelId}/: ${names.join(", ")}\n`);
    return 0;
  } finally {
    await store.close();
  }
}
