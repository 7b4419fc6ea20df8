/** `npm run bench -- recall`: what share of questions a model answers rightly, by kind, length and selection policy. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { openDevice } from "../../kernels/open.ts";
import { readConfig } from "../../models/config.ts";
import { openModel } from "../../models/open.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { poolFormOf } from "../../storage/block-encoding.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { askDocument, REPLY_TOKENS_MAX, type Subject } from "./ask.ts";
import { documentsOfKind, kindsOf, passageOf, type RecallDocument, readCases } from "./cases.ts";
import { type RecallValues, recallFlags } from "./flags.ts";
import { type RecallCount, type RecallRow, recallLines, recallRow } from "./report.ts";
import { poolCounts, Sequence } from "./sequence.ts";

const rowsMax = 256;

/** The benchmark. */
export const recallBench = defineBench({
  summary:
    "Asks a model about passages of held-out books with facts in them. The passage is read densely, once; each policy then\n" +
    "reads the question and answers. A reply is right when it holds what was asked for. Nothing but the model and its kernels runs:\n" +
    "no engine, no edge, no store. What the figures mean: bench/README.md.",
  flags: recallFlags,
  run: runRecall,
});

async function runRecall(values: RecallValues, context: BenchContext): Promise<BenchResult> {
  const { sentences, documents, cases } = await readCases(values["case-file"]);
  const kinds = kindsOf(documents, values.kinds);
  // A reply may be longer than the answer that its passage left room for.
  const repliesTokensMax = Math.max(...cases.map(({ turns }) => turns.length)) * REPLY_TOKENS_MAX;
  const { device, subject } = await openSubject(values, repliesTokensMax);
  try {
    const sentenceTokens = sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
    const count = (text: string): number => subject.tokenizer.encode(text).length;
    const rows: RecallRow[] = [];
    for (const lengthTokens of values.lengths) {
      for (const kind of kinds) {
        const asked = documentsOfKind(documents, kind, values.cases);
        const passages = asked.map((each) =>
          passageOf(each, sentences, { tokens: lengthTokens, sentenceTokens, count }),
        );
        const counts = await askAll(subject, values, asked, passages, context.signal);
        if (counts === undefined) break;
        for (const [policy, each] of counts) rows.push(recallRow({ kind, lengthTokens, policy }, each));
        context.progress(recallLines(rows.slice(-counts.size)).slice(1).join("\n"));
      }
    }
    for (const line of recallLines(rows)) context.print(line);
    const { model, weights, kv, budget } = values;
    const settings = { model, weights, kv, budget, cases: values.cases, device: device.report.description };
    return { ok: true, data: { settings, interrupted: context.signal.aborted, rows } };
  } finally {
    await device.close();
  }
}

/**
 * Opens the model that is asked; the caller closes the device. `repliesTokensMax`: what replies may add to the longest length.
 * @throws {UsageError} for a length that the model does not reach.
 */
export async function openSubject(
  values: Pick<RecallValues, "model" | "device" | "threads" | "weights" | "kv" | "lengths" | "policy">,
  repliesTokensMax: number,
) {
  const folder = (await openModelFolder(values.model)).path;
  const config = await readConfig(folder);
  const longest = Math.max(...values.lengths);
  if (longest > config.contextTokensMax) {
    throw new UsageError(`--lengths: ${longest} is more than the model's context of ${config.contextTokensMax} tokens`);
  }
  const readJson = async (name: string) => JSON.parse(await readFile(join(folder, name), "utf8"));
  const words = openTokenizer({
    tokenizerJson: await readJson("tokenizer.json"),
    tokenizerConfig: await readJson("tokenizer_config.json"),
  });
  const device = await openDevice({
    kind: values.device,
    ...(values.threads === undefined ? {} : { threads: values.threads }),
  });
  const contextTokens = Math.min(longest + repliesTokensMax, config.contextTokensMax);
  let logits: Float32Array = new Float32Array(0);
  const summaryKinds = values.policy.flatMap((name) => policyNamed(name).summary ?? []);
  const runner = await openModel({
    folder,
    device,
    encoding: values.weights,
    kv: {
      ...poolFormOf(values.kv),
      summaryKinds: [...new Set(summaryKinds)],
      ...poolCounts({ layerCount: config.layerCount, contextTokens, rowsMax }),
    },
    rowsMax,
    observe: ({ stage, values: seen }) => {
      if (stage === "logits") logits = seen;
    },
  });
  const sequence = new Sequence(runner, contextTokens);
  return { device, subject: { runner, sequence, logits: () => logits, ...words } satisfies Subject };
}

/** Counts of each policy over `asked`; undefined if the run was stopped before the last case. */
async function askAll(
  subject: Subject,
  values: RecallValues,
  asked: readonly RecallDocument[],
  passages: readonly string[],
  signal: AbortSignal,
): Promise<Map<SelectionConfiguration, RecallCount> | undefined> {
  const counts = new Map<SelectionConfiguration, RecallCount>(
    values.policy.map((policy) => [policy, { answers: [], pagesSelected: 0, pagesInContext: 0 }]),
  );
  try {
    const plans = values.policy.map(policyNamed).map(({ plan, groupTokens }) => {
      return { plan: plan(values.budget), groupTokens };
    });
    for (const [index, document] of asked.entries()) {
      const questions = await askDocument(subject, { document, passage: passages[index] as string, plans, signal });
      for (const [at, { isRight, traffic }] of questions.flatMap((replies) => [...replies.entries()])) {
        const count = counts.get(values.policy[at] as SelectionConfiguration) as RecallCount;
        count.answers.push({ isRight, document: index });
        count.pagesSelected += traffic.pagesSelected;
        count.pagesInContext += traffic.pagesInContext;
      }
    }
    return counts;
  } catch (error) {
    if (signal.aborted) return undefined;
    throw error;
  }
}
