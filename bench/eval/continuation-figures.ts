/** What long generations say: where selections part with dense's text, and how they agree behind that. */
import type { Continuation, ContinuationResult } from "./continuation.ts";
import { type Estimate, estimate, estimateShare, groupBy, mapEstimate, meanOf } from "./statistics.ts";

/** A continuation with where it was taken. */
export interface PlacedContinuation extends Continuation {
  /** Continuations of one text are not independent. */
  document: number;
  contextTokens: number;
}

/** One selection at one budget and context; intervals are over texts. */
export interface ContinuationFigure {
  name: string;
  budgetTokens: number;
  contextTokens: number;
  cases: number;
  /** Tokens of each text: no divergence is seen behind them. */
  tokenCount: number;
  /** Step of the first difference, {@link tokenCount} where there was none. */
  divergedAt: Estimate;
  /** As `divergedAt`; absent where more than half of the texts never differ. */
  divergedAtMedian?: number;
  /** Share of the texts without a difference. */
  same: Estimate;
  agreement: Estimate;
  /** Nats. */
  divergence: Estimate;
  bytesShare: number;
  /** Mean share of runs of four tokens of dense's texts that are there for the first time. */
  freshShare: number;
}

/** In the order in which the selections were measured, by context. */
export function continuationFigures(continuations: readonly PlacedContinuation[]): ContinuationFigure[] {
  const each = continuations.flatMap((placed) => placed.results.map((result) => ({ placed, result })));
  const groups = groupBy(each, ({ placed, result }) =>
    [placed.contextTokens, result.name, result.budgetTokens].join("/"),
  );
  return groups.map((cases) => {
    const [{ placed, result }] = cases as [(typeof cases)[number]];
    const { tokenCount, contextTokens } = placed;
    const texts = groupBy(cases, (one) => String(one.placed.document));
    const perText = (of: (result: ContinuationResult) => number): number[] =>
      texts.map((mine) => meanOf(mine.map((one) => of(one.result))));
    const steps = cases.map((one) => one.result.divergedAt ?? tokenCount).sort((a, b) => a - b);
    const median = steps[Math.floor((steps.length - 1) / 2)] as number;
    return {
      ...{ name: result.name, budgetTokens: result.budgetTokens, contextTokens, cases: cases.length, tokenCount },
      divergedAt: notNegative(perText(({ divergedAt = tokenCount }) => divergedAt)),
      ...(median === tokenCount ? {} : { divergedAtMedian: median }),
      same: estimateShare(perText(({ divergedAt }) => Number(divergedAt === undefined))),
      agreement: estimateShare(perText(({ agreement }) => agreement)),
      divergence: notNegative(perText(({ divergence }) => divergence)),
      bytesShare: meanOf(cases.map((one) => one.result.bytes)) / meanOf(cases.map((one) => one.placed.denseBytes)),
      freshShare: meanOf(cases.map((one) => one.placed.freshShare)),
    };
  });
}

function notNegative(values: readonly number[]): Estimate {
  return mapEstimate(estimate(values), (value) => Math.max(0, value));
}
