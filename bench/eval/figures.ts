/** What a run's results say: means over texts with their intervals, paired differences over questions. */
import { wilsonInterval } from "../recall/report.ts";
import { type ContinuationFigure, continuationFigures } from "./continuation-figures.ts";
import type { EvalRun } from "./run.ts";
import {
  bootstrapEstimate,
  type Estimate,
  estimate,
  estimateShare,
  groupBy,
  mapEstimate,
  meanOf,
  type PairedAnswer,
  pairedDifference,
} from "./statistics.ts";
import type { TaskResult } from "./tasks.ts";
import type { Window, WindowResult } from "./window.ts";

/** A window with where it was taken. */
export interface PlacedWindow extends Window {
  document: number;
  contextTokens: number;
}

/** One selection at one budget and context. */
export interface FidelityFigure {
  name: string;
  budgetTokens: number;
  contextTokens: number;
  /** Something was left out: below its budget a selection is dense. */
  isActive: boolean;
  /** Per token, all layers and heads. */
  kvBytes: number;
  metadataBytes: number;
  /** Both, over the bytes of a dense step. */
  bytesShare: number;
  pagesShare: number;
  mass: Estimate;
  oracleMass: Estimate;
  pageRecall: Estimate;
  outputError: Estimate;
  /** Absent for baselines. */
  text?: {
    /** exp(loss - dense loss) - 1. */
    perplexityGrowth: Estimate;
    divergence: Estimate;
    topAgreement: Estimate;
    /** Milliseconds of a step, this machine's; median of the windows' medians. */
    stepMs: number;
    denseStepMs: number;
  };
  /** Means over windows, `[layer][head]`. */
  massByHead: number[][];
  errorByHead: number[][];
}

/** One selection's answers to one kind of question at one length. */
export interface TaskFigure {
  kind: string;
  lengthTokens: number;
  name: string;
  budgetTokens: number;
  cases: number;
  right: number;
  denseRight: number;
  /** What dense makes of such questions: too few are right, or no more than chance explains (Wilson's 95 % interval); absent: it can answer them. */
  beyondDense?: "by chance" | "below half";
  /** Which questions were answered rightly, under the selection and densely, and about which document each was. */
  pairs: PairedAnswer[];
  /** Share of right answers minus dense's, over the same questions. */
  difference: Estimate;
  /** Bytes of the steps that read the question and answered, over dense's. */
  bytesShare: number;
}

/** Right answers by where in the passage the answer stands. */
export interface DepthFigure {
  lengthTokens: number;
  name: string;
  budgetTokens: number;
  /** Fifths of the passage, 0 to 4. */
  depth: number;
  cases: number;
  right: number;
  denseRight: number;
}

/** Everything that reports show. */
export interface Figures {
  fidelity: FidelityFigure[];
  tasks: TaskFigure[];
  depths: DepthFigure[];
  continuations: ContinuationFigure[];
}

/** Kinds of questions of which dense answers less than this share say nothing about a selection. */
const DENSE_SHARE_MIN = 0.5;

/** Works out the figures. Windows of one text are one value each: intervals are over texts, but over rows where there is one text and its rows are known. */
export function figuresOf({
  candidates,
  windows,
  tasks,
  continuations,
}: Pick<EvalRun, "candidates" | "windows" | "tasks" | "continuations">): Figures {
  const contexts = [...new Set(windows.map(({ contextTokens }) => contextTokens))].sort((a, b) => a - b);
  return {
    fidelity: contexts.flatMap((contextTokens) => {
      const here = windows.filter((window) => window.contextTokens === contextTokens);
      return candidates.map((_, index) => fidelityFigure(contextTokens, here, index));
    }),
    tasks: taskFigures(tasks),
    depths: depthFigures(tasks),
    continuations: continuationFigures(continuations),
  };
}

function fidelityFigure(contextTokens: number, windows: readonly PlacedWindow[], index: number): FidelityFigure {
  const results = windows.map((window) => window.results[index] as WindowResult);
  const { name, budgetTokens } = results[0] as WindowResult;
  const mean = (f: (result: WindowResult) => number): number => meanOf(results.map(f));
  const cells = (key: "mass" | "oracleMass" | "pageRecall" | "outputError"): Estimate => {
    const [alone, ...more] = results.map((result) => meanOf(result[key].flat())) as [number, ...number[]];
    const rows = more.length === 0 ? results[0]?.rows?.map((row) => row[key]) : undefined;
    if (rows !== undefined) return bootstrapEstimate(rows);
    return key === "outputError" ? estimate([alone, ...more]) : estimateShare([alone, ...more]);
  };
  const byHead = (key: "mass" | "outputError"): number[][] =>
    (results[0] as WindowResult)[key].map((row, layer) =>
      row.map((__, head) => mean((r) => r[key][layer]?.[head] as number)),
    );
  const [kvBytes, metadataBytes] = [mean((r) => r.kvBytes), mean((r) => r.metadataBytes)];
  const pagesShare = mean((result) => result.pagesShare);
  const texts = results.flatMap(({ text }) => text ?? []);
  return {
    name,
    budgetTokens,
    contextTokens,
    isActive: pagesShare < 1,
    kvBytes,
    metadataBytes,
    bytesShare: (kvBytes + metadataBytes) / meanOf(windows.map(({ denseBytes }) => denseBytes)),
    pagesShare,
    mass: cells("mass"),
    oracleMass: cells("oracleMass"),
    pageRecall: cells("pageRecall"),
    outputError: cells("outputError"),
    ...(texts.length === 0
      ? {}
      : {
          text: {
            perplexityGrowth: mapEstimate(estimate(texts.map((t) => t.loss - t.denseLoss)), Math.expm1),
            divergence: estimate(texts.map((t) => t.divergence)),
            topAgreement: estimateShare(texts.map((t) => t.topAgreement)),
            stepMs: medianOf(windows.map(({ stepMs }) => stepMs?.[index] as number)),
            denseStepMs: medianOf(windows.map(({ denseStepMs }) => denseStepMs as number)),
          },
        }),
    massByHead: byHead("mass"),
    errorByHead: byHead("outputError"),
  };
}

interface Answer {
  task: TaskResult;
  name: string;
  budgetTokens: number;
  isRight: boolean;
  bytes: number;
}

function answersOf(tasks: readonly TaskResult[]): Answer[] {
  return tasks.flatMap((task) => task.replies.map((reply) => ({ task, ...reply })));
}

function taskFigures(tasks: readonly TaskResult[]): TaskFigure[] {
  const groups = groupBy(answersOf(tasks), ({ task, name, budgetTokens }) =>
    [task.lengthTokens, task.kind, name, budgetTokens].join("/"),
  );
  return groups.map((answers) => {
    const { task, name, budgetTokens } = answers[0] as Answer;
    const pairs = answers.map(({ isRight, task: { denseRight, document } }) => {
      return { ours: isRight, theirs: denseRight, cluster: document };
    });
    const denseRight = pairs.filter(({ theirs }) => theirs).length;
    const beyondDense = beyond(denseRight, answers.length, task.chance);
    return {
      kind: task.kind,
      lengthTokens: task.lengthTokens,
      name,
      budgetTokens,
      cases: answers.length,
      right: pairs.filter(({ ours }) => ours).length,
      denseRight,
      ...(beyondDense === undefined ? {} : { beyondDense }),
      pairs,
      difference: pairedDifference(pairs),
      bytesShare: meanOf(answers.map(({ bytes }) => bytes)) / meanOf(answers.map((answer) => answer.task.denseBytes)),
    };
  });
}

function beyond(right: number, cases: number, chance: number): TaskFigure["beyondDense"] {
  if (chance > 0 && wilsonInterval(right, cases).min <= chance) return "by chance";
  return right < DENSE_SHARE_MIN * cases ? "below half" : undefined;
}

function depthFigures(tasks: readonly TaskResult[]): DepthFigure[] {
  const placed = answersOf(tasks).filter(({ task }) => task.depth !== undefined);
  const fifth = ({ task }: Answer): number => Math.min(4, Math.floor((task.depth as number) * 5));
  const groups = groupBy(placed, (answer) =>
    [answer.task.lengthTokens, answer.name, answer.budgetTokens, fifth(answer)].join("/"),
  );
  return groups.map((answers) => {
    const first = answers[0] as Answer;
    return {
      lengthTokens: first.task.lengthTokens,
      name: first.name,
      budgetTokens: first.budgetTokens,
      depth: fifth(first),
      cases: answers.length,
      right: answers.filter(({ isRight }) => isRight).length,
      denseRight: answers.filter(({ task }) => task.denseRight).length,
    };
  });
}

function medianOf(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;
}
