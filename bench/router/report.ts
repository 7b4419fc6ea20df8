/** The rows of the router's report: fixed choices, chance, the router at several prices, and what nobody can beat. */
import { type Column, renderTable } from "../table.ts";
import { ROUTER_CHOICES } from "./choices.ts";
import {
  bootstrap,
  choicesAt,
  type Forecast,
  mixtureCost,
  type Outcome,
  priceFor,
  type Score,
  scoreOf,
} from "./judge.ts";

const DRAWS = 1000;
const SEED = 1;

/** One way of choosing, judged on held-out prompts. */
export interface RouterRow extends Score {
  name: string;
  /** Its cost over that of the cheapest mixture of fixed choices that keeps as many answers, with the bounds of the 95 % interval. */
  costRatio?: { value: number; min: number; max: number };
}

/** Prompts with what the classifier forecasts for them. */
export interface Judged {
  outcomes: readonly Outcome[];
  forecasts: readonly Forecast[];
}

const kept = (score: Score): number => score.kept;

/** All rows, on the test prompts; prices are set on the validation prompts. */
export function routerRows(validation: Judged, test: Judged, shippedPrice: number): RouterRow[] {
  const fixedOf = (outcomes: readonly Outcome[]): Score[] =>
    ROUTER_CHOICES.map((_, choice) =>
      scoreOf(
        outcomes,
        outcomes.map(() => choice),
      ),
    );
  const fixed = fixedOf(test.outcomes);
  const targets = fixedOf(validation.outcomes);
  const names = ROUTER_CHOICES.map(({ policy, budgetTokens }) =>
    policy === "dense" ? policy : `${policy} ${budgetTokens}`,
  );
  const routed = (name: string, price: number): RouterRow => {
    const choices = choicesAt(test.forecasts, price);
    return { name, ...scoreOf(test.outcomes, choices), costRatio: ratioToFixed(test.outcomes, choices) };
  };
  // Below 128 scored tokens there is nothing cheaper to be had, and dense keeps everything by definition.
  const matched = names.slice(1, -1).map((name, index) => {
    const least = targets[index + 1]?.kept ?? 1;
    return routed(
      `router, to keep what ${name} keeps`,
      priceFor(validation.outcomes, validation.forecasts, { value: kept, least }),
    );
  });
  return [
    ...fixed.map((score, choice) => ({ name: `always ${names[choice]}`, ...score })),
    { name: "any at random", ...meanOf(fixed) },
    ...matched,
    routed("router, as shipped", shippedPrice),
    { name: "the cheapest that keeps (hindsight)", ...scoreOf(test.outcomes, test.outcomes.map(cheapestKept)) },
  ];
}

/** The cheapest choice that kept an answer: what a router would choose that knows. */
export function cheapestKept({ kept: keeps, bytesPerToken }: Outcome): number {
  const cost = (choice: number): number => bytesPerToken[choice] as number;
  return keeps.reduce(
    (best, isKept, choice) => (isKept && cost(choice) < cost(best) ? choice : best),
    keeps.length - 1,
  );
}

function meanOf(scores: readonly Score[]): Score {
  const mean = (value: (score: Score) => number): number =>
    scores.reduce((sum, score) => sum + value(score), 0) / scores.length;
  return {
    kept: mean(kept),
    right: mean(({ right }) => right),
    bytesPerToken: mean(({ bytesPerToken }) => bytesPerToken),
  };
}

function ratioToFixed(outcomes: readonly Outcome[], choices: readonly number[]): NonNullable<RouterRow["costRatio"]> {
  const ratio = (drawn: readonly number[]): number => {
    const some = drawn.map((at) => outcomes[at] as Outcome);
    const score = scoreOf(
      some,
      drawn.map((at) => choices[at] as number),
    );
    const fixed = ROUTER_CHOICES.map((_, choice) =>
      scoreOf(
        some,
        some.map(() => choice),
      ),
    );
    return score.bytesPerToken / mixtureCost(fixed, kept, score.kept);
  };
  const all = outcomes.map((_, at) => at);
  return { value: ratio(all), ...bootstrap(outcomes.length, ratio, { draws: DRAWS, seed: SEED }) };
}

const percent = (share: number): string => (share * 100).toFixed(1);

const columns: readonly Column<RouterRow>[] = [
  { header: "choice", align: "left", cell: ({ name }) => name },
  { header: "kept %", cell: (row) => percent(row.kept) },
  { header: "right %", cell: (row) => percent(row.right) },
  { header: "KB/token", cell: ({ bytesPerToken }) => (bytesPerToken / 1e3).toFixed(0) },
  {
    header: "cost / fixed at equal answers",
    align: "left",
    cell: ({ costRatio }) =>
      costRatio === undefined
        ? ""
        : `${costRatio.value.toFixed(2)} (${costRatio.min.toFixed(2)}-${costRatio.max.toFixed(2)})`,
  },
];

/** The table. */
export function routerLines(rows: readonly RouterRow[]): string[] {
  return renderTable(columns, rows);
}

interface KindRow extends Score {
  kind: string;
  count: number;
  /** Indices of the choices. */
  taken: readonly number[];
}

const kindColumns: readonly Column<KindRow>[] = [
  { header: "kind", align: "left", cell: ({ kind }) => kind },
  { header: "prompts", cell: ({ count }) => String(count) },
  { header: "kept %", cell: (row) => percent(row.kept) },
  { header: "KB/token", cell: ({ bytesPerToken }) => (bytesPerToken / 1e3).toFixed(0) },
];

/** What the router does to each kind of prompt. */
export function kindLines(test: Judged, price: number): string[] {
  const choices = choicesAt(test.forecasts, price);
  const kinds = [...new Set(test.outcomes.map(({ kind }) => kind))].sort();
  const rows = kinds.map((kind): KindRow => {
    const places = test.outcomes.flatMap((outcome, at) => (outcome.kind === kind ? [at] : []));
    const some = places.map((at) => test.outcomes[at] as Outcome);
    const taken = places.map((at) => choices[at] as number);
    return { kind, count: places.length, taken, ...scoreOf(some, taken) };
  });
  const choiceColumns = ROUTER_CHOICES.map(
    ({ policy, budgetTokens }, choice): Column<KindRow> => ({
      header: policy === "dense" ? policy : `${policy.slice(0, 4)} ${budgetTokens}`,
      cell: ({ taken }) => String(taken.filter((each) => each === choice).length),
    }),
  );
  return renderTable([...kindColumns, ...choiceColumns], rows);
}
