/** What a way of choosing keeps and costs on a set of prompts. */
import { bestChoice } from "../../workers/prompt-router/decide.ts";
import { seededRandom } from "../random.ts";
import type { ChoiceAnswer } from "./answers.ts";

/** One prompt as it was measured: an entry per choice, the last one dense. */
export interface Outcome {
  kind: string;
  lengthTokens: number;
  kept: readonly boolean[];
  right: readonly boolean[];
  /** KV and summary bytes read per token of question and reply. */
  bytesPerToken: readonly number[];
}

/** A share of prompts and a mean cost. */
export interface Score {
  /** Prompts whose answer was that of dense attention. */
  kept: number;
  /** Prompts that were answered rightly. */
  right: number;
  bytesPerToken: number;
}

/** The outcome of a measured prompt. An answer is kept that is dense's word for word, or right where dense's is. */
export function outcomeOf(prompt: { kind: string; lengthTokens: number }, answers: readonly ChoiceAnswer[]): Outcome {
  const dense = answers.at(-1);
  return {
    kind: prompt.kind,
    lengthTokens: prompt.lengthTokens,
    kept: answers.map(({ isSame, isRight }) => isSame || (isRight && dense?.isRight === true)),
    right: answers.map(({ isRight }) => isRight),
    bytesPerToken: answers.map(({ bytes, tokens }) => bytes / Math.max(1, tokens)),
  };
}

/** What comes of taking `choices[i]` for prompt i. */
export function scoreOf(outcomes: readonly Outcome[], choices: readonly number[]): Score {
  const mean = (value: (outcome: Outcome, choice: number) => number): number =>
    outcomes.reduce((sum, outcome, at) => sum + value(outcome, choices[at] as number), 0) /
    Math.max(1, outcomes.length);
  return {
    kept: mean(({ kept }, choice) => Number(kept[choice])),
    right: mean(({ right }, choice) => Number(right[choice])),
    bytesPerToken: mean(({ bytesPerToken }, choice) => bytesPerToken[choice] as number),
  };
}

/** A prompt as the router sees it, with what is expected of each choice. */
export interface Forecast {
  chances: ArrayLike<number>;
  bytes: readonly number[];
}

/** What is chosen for each at a price. */
export function choicesAt(forecasts: readonly Forecast[], price: number): number[] {
  return forecasts.map(({ chances, bytes }) => bestChoice(chances, bytes, price));
}

const PRICE_MAX = 100;
const PRICE_STEP = 0.93;
const PRICE_STEP_COUNT = 160;

/** The highest price at which `value` reaches `least`; 0, which is always dense, if none does. */
export function priceFor(
  outcomes: readonly Outcome[],
  forecasts: readonly Forecast[],
  target: { value: (score: Score) => number; least: number },
): number {
  for (let step = 0; step < PRICE_STEP_COUNT; step++) {
    const price = PRICE_MAX * PRICE_STEP ** step;
    if (target.value(scoreOf(outcomes, choicesAt(forecasts, price))) >= target.least) return price;
  }
  return 0;
}

/** Cost of keeping a share by drawing between two fixed choices: the lower hull of the fixed choices' scores. */
export function mixtureCost(fixed: readonly Score[], value: (score: Score) => number, least: number): number {
  let best = Number.POSITIVE_INFINITY;
  for (const a of fixed) {
    for (const b of fixed) {
      const [low, high] = [value(a), value(b)];
      if (high < least || low > high) continue;
      const share = high === low ? 1 : Math.min(1, Math.max(0, (least - low) / (high - low)));
      best = Math.min(best, a.bytesPerToken + share * (b.bytesPerToken - a.bytesPerToken));
    }
  }
  return best;
}

/** 95 % interval of `value` over prompts drawn again with replacement. */
export function bootstrap(
  count: number,
  value: (drawn: readonly number[]) => number,
  options: { draws: number; seed: number },
): { min: number; max: number } {
  const random = seededRandom(options.seed);
  const values = Array.from({ length: options.draws }, () =>
    value(Array.from({ length: count }, () => Math.floor(random() * count))),
  ).sort((a, b) => a - b);
  const at = (share: number): number => values[Math.floor(share * (values.length - 1))] ?? Number.NaN;
  return { min: at(0.025), max: at(0.975) };
}
