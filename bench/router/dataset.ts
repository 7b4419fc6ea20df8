/** The measured prompts with the features that the Worker would compute of them. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../../cli/usage-error.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { promptFeatures } from "../../workers/prompt-router/features.ts";
import type { RecallCase } from "../recall/cases.ts";
import { readAnswers } from "./answers.ts";
import { ROUTER_CHOICES } from "./choices.ts";
import { type Outcome, outcomeOf } from "./judge.ts";
import { type Split, trainVariants } from "./phrasings.ts";
import { messagesOf, passageMaker, type RouterPrompt, readCaseFiles, routerPrompts } from "./prompts.ts";

/** The committed measurements: `npm run bench -- router-data --out FILE`, then `gzip -9n`. */
export const ANSWERS_FILE = "bench/router/answers.jsonl.gz";

/** One prompt. */
export interface RoutedExample {
  prompt: RouterPrompt;
  features: Float32Array;
  /** Of a train prompt: features in all other words that may be trained on. */
  variants: readonly Float32Array[];
  outcome: Outcome;
}

/** Examples by what they are for. */
export type Dataset = Readonly<Record<Split, readonly RoutedExample[]>>;

/**
 * Builds the prompts of a file of measurements again.
 * @throws {UsageError} for a file that is none, or that measured other prompts or choices.
 */
export async function readDataset(path: string, model = "weights/house"): Promise<Dataset> {
  const files = await readCaseFiles();
  const prompts = new Map(routerPrompts(files).map((prompt) => [prompt.id, prompt]));
  const readJson = async (name: string) => JSON.parse(await readFile(join(model, name), "utf8"));
  const { tokenizer } = openTokenizer({
    tokenizerJson: await readJson("tokenizer.json"),
    tokenizerConfig: await readJson("tokenizer_config.json"),
  });
  const passage = passageMaker(files, (text) => tokenizer.encode(text).length);
  const examples = (await readAnswers(path)).map(({ id, answers }): RoutedExample => {
    const prompt = prompts.get(id);
    if (prompt === undefined || answers.length !== ROUTER_CHOICES.length) {
      throw new UsageError(`answers ${path}: ${id} is no prompt of these case files and choices`);
    }
    const { question, lengthTokens } = prompt;
    const text = passage(prompt);
    const featuresOf = (asked: RecallCase) => promptFeatures(messagesOf(asked, text));
    const variants = prompt.split === "train" ? trainVariants(prompt.original).map(featuresOf) : [];
    return {
      prompt,
      features: featuresOf(question),
      variants,
      outcome: outcomeOf({ kind: question.kind, lengthTokens }, answers),
    };
  });
  const of = (split: Split) => examples.filter(({ prompt }) => prompt.split === split);
  return { train: of("train"), validation: of("validation"), test: of("test") };
}
