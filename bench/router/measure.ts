/** `npm run bench -- router-data`: what the house model answers to the router's prompts under every choice, and what each reads. */
import { appendFile } from "node:fs/promises";
import { engineFlags } from "../../cli/engine-flags.ts";
import { type FlagValues, parseInteger, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { SelectionPlan } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { assert } from "../../protocol/assert.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { converse, REPLY_TOKENS_MAX, type Subject, splitPrompt } from "../recall/ask.ts";
import { isRight } from "../recall/cases.ts";
import { openSubject } from "../recall/recall.ts";
import { answersLine, type ChoiceAnswer, readAnswers } from "./answers.ts";
import { ROUTER_CHOICES } from "./choices.ts";
import { PROMPT_LENGTHS, passageMaker, type RouterPrompt, readCaseFiles, routerPrompts } from "./prompts.ts";

const { device, threads, weights, kv } = engineFlags;

const flags = {
  out: {
    help: "file of results, added to; prompts that it holds are not asked again",
    placeholder: "FILE",
    parse: parseText,
  },
  cases: {
    help: "prompts to ask, of the order that is always the same; without it all",
    placeholder: "COUNT",
    fallback: "100000",
    parse: parseInteger({ min: 1, max: 100_000 }),
  },
  from: {
    help: "first prompt of that order",
    placeholder: "INDEX",
    fallback: "0",
    parse: parseInteger({ min: 0, max: 100_000 }),
  },
  model: { help: "model that is asked", placeholder: "DIR", fallback: "weights/house", parse: parseText },
  device,
  threads,
  weights,
  kv,
} as const;

/** The benchmark. */
export const routerDataBench = defineBench({
  summary:
    "Makes the data that the prompt router is trained on: each prompt is read densely, once; every choice then reads its question and\n" +
    "answers. A line per prompt: for each choice whether the reply was the dense one, whether it was right, and bytes read.",
  flags,
  run: measureAll,
});

async function measureAll(values: FlagValues<typeof flags>, context: BenchContext): Promise<BenchResult> {
  const { out, from, cases } = values;
  if (out === undefined) throw new UsageError("--out: a file for the results is needed");
  await appendFile(out, "");
  const known = new Set((await readAnswers(out)).map(({ id }) => id));
  const files = await readCaseFiles();
  const prompts = routerPrompts(files).slice(from, from + cases);
  const policies = ROUTER_CHOICES.map(({ policy }) => policy);
  const options = { ...values, lengths: PROMPT_LENGTHS, policy: policies };
  const { device: opened, subject } = await openSubject(options, 4 * REPLY_TOKENS_MAX);
  let asked = 0;
  try {
    const passage = passageMaker(files, (text) => subject.tokenizer.encode(text).length);
    for (const prompt of prompts) {
      if (known.has(prompt.id)) continue;
      if (context.signal.aborted) break;
      const answers = await askPrompt(subject, { prompt, passage: passage(prompt), signal: context.signal });
      await appendFile(out, `${answersLine({ id: prompt.id, answers })}\n`);
      asked += 1;
      if (asked % 50 === 0) context.progress(`${asked} prompts`);
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
  } finally {
    await opened.close();
  }
  context.print(`${asked} prompts asked, ${known.size} known before`);
  return { ok: true, data: { asked, known: known.size, choices: ROUTER_CHOICES } };
}

/** Answers of one prompt under every choice, all from the same dense KV of the passage. */
async function askPrompt(
  subject: Subject,
  { prompt, passage, signal }: { prompt: RouterPrompt; passage: string; signal: AbortSignal },
): Promise<ChoiceAnswer[]> {
  const { question } = prompt;
  const { kept, rest } = splitPrompt(subject, question, passage);
  subject.sequence.rewind(0);
  await subject.sequence.read(kept, signal);
  const expect = question.turns.at(-1)?.expect ?? [];
  const replies: { text: string; bytes: number; tokens: number }[] = [];
  for (const { policy, budgetTokens } of ROUTER_CHOICES) {
    const plan: SelectionPlan = policyNamed(policy).plan(budgetTokens);
    subject.sequence.rewind(kept.length);
    const text = await converse(subject, { question, passage, plan, rest, signal });
    const { kvBytes, metadataBytes } = subject.sequence.traffic;
    replies.push({ text, bytes: kvBytes + metadataBytes, tokens: subject.sequence.length - kept.length });
  }
  const dense = replies.at(-1);
  assert(dense !== undefined && ROUTER_CHOICES.at(-1)?.policy === "dense", "the last choice is dense");
  return replies.map(({ text, bytes, tokens }) => ({
    isSame: text === dense.text,
    isRight: expect.length > 0 && isRight(text, expect),
    bytes,
    tokens,
  }));
}
