/**
 * `--ablation scores`: which score finds what the heads of the house model attend to, for which bytes. Scorers are fitted to half of the documents and
 * judged on the others: on the rows that read a question and answer it densely, and by what the model makes of its dense reply when heads choose so.
 */
import { UsageError } from "../../../cli/usage-error.ts";
import type { ModelConfig } from "../../../models/contract.ts";
import type { BenchContext } from "../../bench.ts";
import { best, divergenceOf, logSoftmax } from "../../distribution.ts";
import { isRight, type RecallCase } from "../../recall/cases.ts";
import { type Estimate, estimate, groupBy, meanOf } from "../statistics.ts";
import type { LabBench, ReadQuestion, Reply } from "./lab-bench.ts";
import type { RowView, Rule } from "./rule.ts";
import { type HeadRows, panelOf, type RowScore } from "./score-panel.ts";
import { keysOf, queriesOf, scoreRule, valuesOf } from "./score-rule.ts";
import type { HeadSample, Scorer } from "./scorer.ts";
import { scorersFor } from "./scorer-catalogue.ts";

/** The heads that choose in selection A of docs/selection-results.md; the house model's other four stream there. */
const HEADS = [
  { layer: 0, kvHead: 0 },
  { layer: 0, kvHead: 1 },
  { layer: 1, kvHead: 0 },
  { layer: 2, kvHead: 0 },
] as const;
/** The one that copies. */
const COPYING = 2;
const SHARES = [0.1, 0.15, 0.2, 0.5];
/** Every so many tokens' key is in the sample. */
const SAMPLE_STRIDE = 13;

/** Shares of the four heads' bytes in a layout. */
type Shares = readonly [number, number, number, number];

/**
 * What the model answers under: scorers by name, the copying head alone while all others see everything, or all four while the others stream. `quest`
 * first has the bytes that A reads.
 */
const LAYOUTS: readonly ({ scorer: string; alone: number } | { scorer: string; shares: Shares })[] = [
  { scorer: "quest", alone: 0.49 },
  { scorer: "quest", alone: 0.2 },
  { scorer: "8 codes of 16, the best token's", alone: 0.2 },
  { scorer: "8 codes of 16: tokens", alone: 0.15 },
  { scorer: "keys themselves, for nothing: tokens", alone: 0.15 },
  { scorer: "quest", shares: [0.1, 0.19, 0.49, 0.145] },
  { scorer: "quest", shares: [0.1, 0.19, 0.3, 0.145] },
  { scorer: "8 codes of 16, the best token's", shares: [0.1, 0.19, 0.3, 0.145] },
  { scorer: "8 codes of 16, the best token's", shares: [0.065, 0.155, 0.2, 0.112] },
  { scorer: "16 codes of 16, the best token's", shares: [0.1, 0.19, 0.25, 0.145] },
  { scorer: "16 codes of 16, the best token's", shares: [0.1, 0.19, 0.2, 0.145] },
  { scorer: "signs, rotated", shares: [0.1, 0.19, 0.25, 0.145] },
  { scorer: "8 codes of 16: tokens", shares: [0.08, 0.12, 0.15, 0.1] },
  { scorer: "16 codes of 16: tokens", shares: [0.1, 0.15, 0.15, 0.12] },
];

/** One scorer on the rows of one head. */
export interface PanelFigures {
  ablation: "scores";
  layer: number;
  kvHead: number;
  rows: "question" | "answer";
  scorer: string;
  bytesPerToken: number;
  /** Of dense's bytes of the head, what the scorer reads counted. */
  share: number;
  rowCount: number;
  /** Means over rows, and the worst row's. */
  mass: number;
  massLeast: number;
  outputError: number;
  /** Share of the rows in which the heaviest candidate was taken; see `RowScore`. */
  hasBest: number;
}

/** The model's own distributions when heads choose by a scorer. */
export interface LayoutFigures {
  ablation: "scores";
  rule: string;
  /** Of all heads' bytes, behind the passage. */
  share: number;
  cases: number;
  /** Replies that are right, by dense and here. */
  denseRight: number;
  right: number;
  /** KL(dense, rule) of the next token over the rows that make the reply, in nats; over questions. */
  divergence: Estimate;
}

/** A question with the passage it is about. */
export interface Asked {
  question: RecallCase;
  passage: string;
}

/** Every second of `asked` of a kind is judged, the others are what scorers are fitted to; what was measured until the signal fired is returned. */
export async function runScoreAblation(
  bench: LabBench,
  asked: readonly Asked[],
  { layerCount, kvHeadCount, headDim }: Pick<ModelConfig, "layerCount" | "kvHeadCount" | "headDim">,
  context: BenchContext,
): Promise<(PanelFigures | LayoutFigures)[]> {
  if (layerCount !== 4 || kvHeadCount !== 2 || headDim % 16 !== 0) {
    throw new UsageError("--ablation scores: knows the heads of the house model only");
  }
  if (asked.some(({ question }) => question.turns.length !== 1 || question.turns[0]?.choices !== undefined)) {
    throw new UsageError("--kinds: --ablation scores takes questions of one turn, answered freely");
  }
  const { fitted, judged } = halvesOf(asked);
  const results: Judged[] = [];
  let scorers: Scorer[][] = [];
  let rules: LayoutRule[] = [];
  try {
    scorers = (await samplesOf(bench, fitted, context)).map((sample) => scorersFor(sample, headDim));
    rules = LAYOUTS.map((layout) => ruleOf(layout, scorers));
    for (const each of judged) {
      results.push(await judge(bench, each, { scorers, rules, signal: context.signal }));
      context.progress(`${results.length} of ${judged.length} questions under ${rules.length} rules`);
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
  }
  if (results.length === 0) return [];
  return [
    ...panelFigures(
      HEADS.map((_, at) => results.flatMap(({ panels }) => panels[at] ?? [])),
      scorers,
    ),
    ...rules.map((rule, at) =>
      layoutFigures(
        rule,
        results.map(({ followed }) => followed[at] as Followed),
      ),
    ),
  ];
}

/** Every second question of each kind is judged; those in rounds over the kinds, so that a run that is stopped has asked of all. */
function halvesOf(asked: readonly Asked[]): { fitted: Asked[]; judged: Asked[] } {
  const perKind = groupBy(asked, ({ question }) => question.kind);
  const judged = perKind.flatMap((own) =>
    own.filter((_, index) => index % 2 === 1).map((each, round) => ({ each, round })),
  );
  return {
    fitted: perKind.flatMap((own) => own.filter((_, index) => index % 2 === 0)),
    judged: judged.sort((a, b) => a.round - b.round).map(({ each }) => each),
  };
}

/** Of each of {@link HEADS} what scorers are fitted to. */
async function samplesOf(bench: LabBench, fitted: readonly Asked[], context: BenchContext): Promise<HeadSample[]> {
  const samples: HeadSample[][] = HEADS.map(() => []);
  for (const [index, each] of fitted.entries()) {
    const { heads } = await observe(bench, each, context.signal);
    for (const [at, head] of heads.entries()) samples[at]?.push(sampleOf(head));
    context.progress(`fitted to ${index + 1} of ${fitted.length} questions`);
  }
  return samples.map(joined);
}

/** What came of one question under one layout. */
interface Followed {
  divergence: number;
  isRight: boolean;
  denseRight: boolean;
}

/** What came of one question: of each head every row under every scorer, and what came of each layout. */
interface Judged {
  panels: RowScore[][];
  followed: Followed[];
}

async function judge(
  bench: LabBench,
  asked: Asked,
  { scorers, rules, signal }: { scorers: readonly Scorer[][]; rules: readonly LayoutRule[]; signal: AbortSignal },
): Promise<Judged> {
  const { read, heads, dense } = await observe(bench, asked, signal);
  const expect = asked.question.turns[0]?.expect ?? [];
  const denseLogs = dense.logits.map(logSoftmax);
  const followed: Followed[] = [];
  for (const { rule } of rules) {
    const { logits } = await bench.reply(read, { rule: rule.start(), given: dense.ids }, signal);
    const logs = logits.map(logSoftmax);
    // Where it would have said every token of dense's reply itself, that is its reply.
    const isSame = logs.every((row, place) => best(row) === dense.ids[place]);
    const { text } = isSame ? dense : await bench.reply(read, { rule: rule.start() }, signal);
    const divergence = meanOf(logs.map((row, place) => divergenceOf(denseLogs[place] as Float64Array, row)));
    followed.push({ divergence, isRight: isRight(text, expect), denseRight: isRight(dense.text, expect) });
  }
  return { panels: heads.map((head, at) => panelOf(head, scorers[at] as Scorer[], SHARES)), followed };
}

/** Reads a passage and answers densely: the reply, and what each of {@link HEADS} saw on the way, from the question's first token on. */
async function observe(
  bench: LabBench,
  { question, passage }: Asked,
  signal: AbortSignal,
): Promise<{ read: ReadQuestion; heads: HeadRows[]; dense: Reply }> {
  const read = await bench.read(question, passage, signal);
  const answerStart = read.kept.length + read.rest.length - 1;
  const questionStart = answerStart - bench.countTokens(question.turns[0]?.ask ?? "");
  const last = new Map<number, RowView>();
  const rows: HeadRows["rows"][number][][] = HEADS.map(() => []);
  const look = (row: RowView): undefined => {
    last.set(row.layer, row);
    if (row.position < questionStart) return;
    for (const [at, { layer, kvHead }] of HEADS.entries()) {
      if (layer !== row.layer) continue;
      const queries = queriesOf(row, kvHead).map((query) => query.slice());
      rows[at]?.push({ position: row.position, isAnswer: row.position >= answerStart, queries });
    }
  };
  const dense = await bench.reply(read, { rule: look }, signal);
  const heads = HEADS.map(({ layer, kvHead }, at): HeadRows => {
    const { blocks, position, headDim } = last.get(layer) as RowView;
    const seen = blocks(kvHead);
    const [keys, values] = [keysOf(seen, position + 1, headDim), valuesOf(seen, position + 1, headDim)];
    return { headDim, keys, values, rows: rows[at] ?? [] };
  });
  return { read, heads, dense };
}

function sampleOf({ keys, rows, headDim }: HeadRows): HeadSample {
  const tokens = Array.from(
    { length: Math.floor(keys.length / headDim / SAMPLE_STRIDE) },
    (_, at) => at * SAMPLE_STRIDE,
  );
  const taken = tokens.map((token) => keys.subarray(token * headDim, (token + 1) * headDim));
  return { keys: concatenated(taken), queries: concatenated(rows.flatMap(({ queries }) => queries)) };
}

function joined(samples: readonly HeadSample[]): HeadSample {
  return {
    keys: concatenated(samples.map(({ keys }) => keys)),
    queries: concatenated(samples.map(({ queries }) => queries)),
  };
}

function concatenated(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/**
 * A layout's rule. `share`: of the bytes of all heads, each weighted alike, whatever rows it had: the last layer skips those of a prompt that nothing
 * is sampled from.
 */
interface LayoutRule {
  rule: Rule;
  share: () => number;
}

function ruleOf(layout: (typeof LAYOUTS)[number], scorers: readonly Scorer[][]): LayoutRule {
  const isAlone = "alone" in layout;
  const shares: readonly (number | undefined)[] = isAlone
    ? HEADS.map((_, at) => (at === COPYING ? layout.alone : undefined))
    : layout.shares;
  const taken = new Map<string, number[]>();
  const percents = shares.flatMap((share) => (share === undefined ? [] : `${(share * 100).toFixed(1)} %`));
  const name = `${layout.scorer}, ${percents.join(", ")} of ${isAlone ? "the copying head, all else dense" : "four heads, the others stream"}`;
  const rule = scoreRule(
    name,
    (layer, kvHead) => {
      const at = HEADS.findIndex((head) => head.layer === layer && head.kvHead === kvHead);
      const share = shares[at];
      if (share === undefined) return isAlone ? "everything" : "streams";
      const scorer = scorers[at]?.find((each) => each.name === layout.scorer) as Scorer;
      return { scorer, share };
    },
    (share, layer, kvHead) => {
      const head = `${layer}/${kvHead}`;
      const own = taken.get(head) ?? [];
      own.push(share);
      taken.set(head, own);
    },
  );
  return { rule, share: () => meanOf([...taken.values()].map(meanOf)) };
}

function panelFigures(rows: readonly RowScore[][], scorers: readonly Scorer[][]): PanelFigures[] {
  return HEADS.flatMap(({ layer, kvHead }, at) =>
    (["question", "answer"] as const).flatMap((kind) =>
      (scorers[at] ?? []).flatMap(({ name, bytesPerToken }) =>
        SHARES.flatMap((share): PanelFigures[] => {
          const own = (rows[at] ?? []).filter(
            (row) => row.scorer === name && row.share === share && row.isAnswer === (kind === "answer"),
          );
          if (own.length === 0) return [];
          return [
            {
              ...{ ablation: "scores", layer, kvHead, rows: kind, scorer: name, bytesPerToken, share },
              rowCount: own.length,
              mass: meanOf(own.map(({ mass }) => mass)),
              massLeast: Math.min(...own.map(({ mass }) => mass)),
              outputError: meanOf(own.map(({ outputError }) => outputError)),
              hasBest: own.filter(({ hasBest }) => hasBest).length / own.length,
            },
          ];
        }),
      ),
    ),
  );
}

function layoutFigures({ rule, share }: LayoutRule, own: readonly Followed[]): LayoutFigures {
  return {
    ...{ ablation: "scores", rule: rule.name, share: share(), cases: own.length },
    denseRight: own.filter(({ denseRight }) => denseRight).length,
    right: own.filter((each) => each.isRight).length,
    divergence: estimate(own.map(({ divergence }) => divergence)),
  };
}

/** One line for every scorer, head and kind of rows, at all shares; then one for every layout. */
export function scoreLines(figures: readonly (PanelFigures | LayoutFigures)[]): string[] {
  const percent = (value: number) => (value * 100).toFixed(1);
  const panel = figures.filter((each): each is PanelFigures => "scorer" in each);
  const lines = panel
    .filter(({ share }) => share === SHARES[0])
    .map((first) => {
      const { layer, kvHead, rows, scorer, bytesPerToken } = first;
      const own = panel.filter(
        (each) => each.layer === layer && each.kvHead === kvHead && each.rows === rows && each.scorer === scorer,
      );
      const each = own.map(
        ({ share, mass, massLeast, outputError, hasBest }) =>
          `${percent(share)} %: ${percent(mass)}, least ${percent(massLeast)}, error ${percent(outputError)}, best ${percent(hasBest)}`,
      );
      return `scores: layer ${layer}, KV head ${kvHead}, ${rows} rows, ${scorer} (${bytesPerToken} B a token): ${each.join("; ")}`;
    });
  const layouts = figures.filter((each): each is LayoutFigures => "divergence" in each);
  return [
    ...lines,
    ...layouts.map(({ rule, share, cases, denseRight, right, divergence: { mean, low, high } }) => {
      const interval = [low, high].map((value) => (value ?? Number.NaN).toExponential(1)).join(" to ");
      return `scores: ${rule}: ${percent(share)} % of the bytes, KL ${mean.toExponential(1)} (${interval}), ${right} of ${cases} right (dense ${denseRight})`;
    }),
  ];
}
