/** Copy-heavy work for a model with words: passages of books, and their beginning again. A model that can quote goes on with the passage; one that cannot
 * soon repeats itself, which is copying as well. */
import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { openModelFolder } from "../../cli/model-folder.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { readCases } from "../recall/cases.ts";

/** Evaluation cases that lie beside a model; their sentences are of books. */
const CASES_FILE = "eval-cases.jsonl.gz";
/** Of a passage, what stands behind it once more. */
const AGAIN_SHARE = 0.1;

/** `count` prompts of `tokenCount` ids; undefined for a model that no evaluation cases came with. */
export async function passagePrompts(
  model: string | undefined,
  { tokenCount, count }: { tokenCount: number; count: number },
): Promise<number[][] | undefined> {
  if (model === undefined) return undefined;
  const { path } = await openModelFolder(model);
  const isThere = await access(join(path, CASES_FILE)).then(
    () => true,
    () => false,
  );
  if (!isThere) return undefined;
  const read = async (name: string): Promise<unknown> => JSON.parse(await readFile(join(path, name), "utf8"));
  const { tokenizer } = openTokenizer({
    tokenizerJson: await read("tokenizer.json"),
    tokenizerConfig: await read("tokenizer_config.json"),
  });
  const { sentences } = await readCases(join(path, CASES_FILE));
  const againCount = Math.floor(tokenCount * AGAIN_SHARE);
  const passageCount = tokenCount - againCount;
  return Array.from({ length: count }, (_, index) => {
    const passage: number[] = [];
    for (let i = Math.floor((index / count) * sentences.length); passage.length < passageCount; i++)
      passage.push(...tokenizer.encode(sentences[i % sentences.length]!));
    passage.length = passageCount;
    return [...passage, ...passage.slice(0, againCount)];
  });
}
