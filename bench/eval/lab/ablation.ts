/**
 * Ablations of published methods: rules of the laboratory answer questions of the case file. A passage is read densely on the CPU device; the question
 * and the answer are then read row by row, in f32, by the model's own forward pass with the rule in the place of selection.
 */
import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import type { BenchContext } from "../../bench.ts";
import { casesOf, isRight, kindsOf, type RecallCase, type RecallDocument, readCases } from "../../recall/cases.ts";
import type { EvalValues } from "../flags.ts";
import { type Estimate, meanOf, pairedDifference } from "../statistics.ts";
import { type EvalSubject, openSubject } from "../subject.ts";
import { passagesOf } from "../tasks.ts";
import type { AblationName } from "./ablation-names.ts";
import { LabBench } from "./lab-bench.ts";
import { meanRule, questRule } from "./page-rules.ts";
import type { Rule } from "./rule.ts";
import { runRule } from "./run-rules.ts";
import { type Asked, type LayoutFigures, type PanelFigures, runScoreAblation, scoreLines } from "./score-ablation.ts";
import { reuseRule, voteRule } from "./token-rules.ts";

/** Every row, `reuse(4)`, and `reuse` under a threshold. */
const RUNS = [
  { runTokens: 1, cosineMin: -1 },
  { runTokens: 4, cosineMin: -1 },
  ...[0.95, 0.9, 0.8, 0.7].map((cosineMin) => ({ runTokens: 4, cosineMin })),
  ...[0.9, 0.7].map((cosineMin) => ({ runTokens: 16, cosineMin })),
];

/** An ablation whose rules answer questions. */
type RuleAblation = Exclude<AblationName, "scores">;

/** What came of an ablation. */
export type AnyFigures = AblationFigures | PanelFigures | LayoutFigures;

/** One rule over all questions. */
export interface AblationFigures {
  ablation: RuleAblation;
  rule: string;
  contextTokens: number;
  budgetTokens: number;
  cases: number;
  right: number;
  denseRight: number;
  /** Share of right answers, minus dense's. */
  difference: Estimate;
  /** Means over rows and layers where the rule chose; see `RowMeasure`. */
  mass: number;
  outputError: number;
  /** Rows and layers that took over an earlier choice; absent where the rule never does. */
  reusedShare?: number;
}

/** A rule, and what is counted while it runs. */
interface Variant {
  ablation: RuleAblation;
  rule: Rule;
  reused: { count: number; of: number };
}

interface Answer {
  isRight: boolean;
  mass: number[];
  outputError: number[];
}

/** Runs ablations at the first of `--contexts` and the first of `--budgets`; what was measured until the signal fired is returned. */
export async function runAblations(
  names: readonly AblationName[],
  values: EvalValues,
  context: BenchContext,
): Promise<AnyFigures[]> {
  const contextTokens = values.contexts[0] as number;
  const budgetTokens = values.budgets[0] as number;
  const subject = await openSubject({ ...values, weights: "f32", kv: "f32", contexts: [contextTokens] }, []);
  const reference = await openDevice({ kind: "reference" });
  try {
    const bench = await LabBench.open(subject, { model: values.model, reference, contextTokens });
    const ruled = names.filter((name): name is RuleAblation => name !== "scores");
    const variants = ruled.flatMap((name) => variantsOf(name, { contextTokens, budgetTokens }, subject));
    const figures: AnyFigures[] = [];
    if (variants.length > 0) {
      const answers = await answersUnder(bench, await askedOf(subject, values, values.cases), variants, context);
      figures.push(...variants.map((variant) => figuresOf(variant, answers, { contextTokens, budgetTokens })));
    }
    if (names.includes("scores")) {
      // One half of the questions is what scorers are fitted to.
      const asked = await askedOf(subject, values, values.cases * 2);
      figures.push(...(await runScoreAblation(bench, asked, subject.runner.config, context)));
    }
    return figures;
  } finally {
    await subject.device.close();
    await reference.close();
  }
}

/** Every question's replies under every rule, and densely (`undefined`). */
async function answersUnder(
  bench: LabBench,
  asked: readonly Asked[],
  variants: readonly Variant[],
  context: BenchContext,
): Promise<Map<Rule | undefined, Answer[]>> {
  const answers = new Map<Rule | undefined, Answer[]>(
    [undefined, ...variants.map(({ rule }) => rule)].map((rule) => [rule, []]),
  );
  for (const [index, { question, passage }] of asked.entries()) {
    if (context.signal.aborted) break;
    const read = await bench.read(question, passage, context.signal);
    const wanted = question.turns.at(-1)?.expect ?? [];
    for (const [rule, list] of answers) {
      const text = await bench.answer(read, rule?.start(), context.signal);
      const { measures } = bench;
      list.push({
        isRight: isRight(text, wanted),
        mass: measures.map(({ mass }) => mass),
        outputError: measures.map(({ outputError }) => outputError),
      });
    }
    context.progress(`${index + 1} of ${asked.length} questions under ${variants.length} rules and densely`);
  }
  return answers;
}

/** Up to `count` questions of every kind, with their passages. */
async function askedOf(subject: EvalSubject, values: EvalValues, count: number): Promise<Asked[]> {
  const files = await readCases(values["case-file"]);
  const questions = questionsOf(files.documents, { ...values, cases: count });
  const sentenceTokens = files.sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
  const lengthTokens = values.contexts[0] as number;
  const passages = passagesOf(subject, questions, { ...files, sentenceTokens, lengthTokens });
  return questions.map((question, index) => ({ question, passage: passages[index] as string }));
}

/** One question of each document: no two of them are about the same passage. */
function questionsOf(documents: readonly RecallDocument[], values: EvalValues): RecallCase[] {
  const firsts = documents.flatMap((document) => casesOf(document).slice(0, 1));
  return kindsOf(documents, values.kinds ?? ["multi-key"]).flatMap((wanted) =>
    firsts.filter(({ kind }) => kind === wanted).slice(0, values.cases),
  );
}

function variantsOf(
  ablation: RuleAblation,
  { contextTokens, budgetTokens }: { contextTokens: number; budgetTokens: number },
  { runner }: EvalSubject,
): Variant[] {
  const plain = (rules: readonly Rule[]) => rules.map((rule) => ({ ablation, rule, reused: { count: 0, of: 0 } }));
  if (ablation === "votes")
    return plain((["raw", "hard", "soft"] as const).map((vote) => voteRule(vote, budgetTokens)));
  if (ablation === "page-size") return plain([1, 4].map((groupPages) => questRule(groupPages, budgetTokens)));
  const counted = (make: (note: (isReused: boolean) => void) => Rule): Variant => {
    const reused = { count: 0, of: 0 };
    const note = (isReused: boolean): void => {
      reused.of += 1;
      if (isReused) reused.count += 1;
    };
    return { ablation, rule: make(note), reused };
  };
  if (ablation === "threshold") {
    const cosines = [undefined, 0.95, 0.9, 0.85, 0.8, 0.6];
    return cosines.map((cosineMin) => counted((note) => reuseRule(cosineMin, budgetTokens, note)));
  }
  if (ablation === "runs") return RUNS.map((run) => counted((note) => runRule(run, budgetTokens, note)));
  // An int8 mean value of each page left out, in tokens of int8 K and V: what the estimate reads more than the means that chose.
  const { headDim } = runner.config;
  const estimatedPages = (contextTokens - budgetTokens) / PAGE_TOKENS;
  const tokens = (estimatedPages * (headDim + 4)) / (2 * headDim + 4);
  const equalBytes = budgetTokens + Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS;
  return plain([meanRule(budgetTokens, false), meanRule(budgetTokens, true), meanRule(equalBytes, false)]);
}

function figuresOf(
  { ablation, rule, reused }: Variant,
  answers: ReadonlyMap<Rule | undefined, Answer[]>,
  place: { contextTokens: number; budgetTokens: number },
): AblationFigures {
  const own = answers.get(rule) ?? [];
  // A run that is stopped within a question has dense's answer and not yet all others.
  const dense = (answers.get(undefined) ?? []).slice(0, own.length);
  const count = (list: readonly Answer[]) => list.filter((answer) => answer.isRight).length;
  return {
    ...{ ablation, rule: rule.name, ...place, cases: own.length, right: count(own), denseRight: count(dense) },
    difference: pairedDifference(
      own.map((answer, cluster) => ({ ours: answer.isRight, theirs: dense[cluster]?.isRight ?? false, cluster })),
    ),
    mass: meanOf(own.flatMap(({ mass }) => mass)),
    outputError: meanOf(own.flatMap(({ outputError }) => outputError)),
    ...(reused.of === 0 ? {} : { reusedShare: reused.count / reused.of }),
  };
}

/** One line for every rule, and those of the scores. */
export function ablationLines(figures: readonly AnyFigures[]): string[] {
  const percent = (value: number) => `${(value * 100).toFixed(1)} %`;
  const scored = figures.filter((each): each is PanelFigures | LayoutFigures => each.ablation === "scores");
  const ruled = figures.filter((each): each is AblationFigures => each.ablation !== "scores");
  const lines = ruled.map((each) => {
    const { ablation, rule, cases, right, denseRight, mass, outputError, reusedShare } = each;
    const reused = reusedShare === undefined ? "" : `, kept in ${percent(reusedShare)} of the rows`;
    const interval = `${percent(each.difference.low ?? Number.NaN)} to ${percent(each.difference.high ?? Number.NaN)}`;
    return `${ablation}: ${rule}: ${right} of ${cases} right (dense ${denseRight}; difference ${interval}), mass ${percent(mass)}, output error ${percent(outputError)}${reused}`;
  });
  return [...lines, ...scoreLines(scored)];
}
