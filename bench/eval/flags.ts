/** The flags of the instrument. */
import { engineFlags } from "../../cli/engine-flags.ts";
import {
  type Flag,
  type Flags,
  type FlagValues,
  parseChoice,
  parseInteger,
  parseNumber,
  parseRequestedSelectionFlag,
  parseText,
} from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { POLICY_NAMES } from "../../models/selection/registry.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { splitSelections } from "../../protocol/selection.ts";
import { switchFlag } from "../bench.ts";
import { budgetFlag, parseDistinct, parseList, policiesFlag } from "../decode/flags.ts";
import { CONTINUATIONS_PER_TEXT_MAX } from "./continuation.ts";
import { ABLATIONS } from "./lab/ablation-names.ts";

const { model, device, threads, weights, kv } = engineFlags;
const CONTEXT_TOKENS_MAX = 1_048_576;

/** Without `--contexts`: what fits into half an hour on two cores. */
const DEFAULT: { [Name in "contexts" | "lengths" | "continued"]: readonly number[] } = {
  contexts: [2048, 4096, 8192, 16_384],
  lengths: [4096, 8192],
  continued: [8192, 16_384],
};
const CASE_FILE = "weights/house/eval-documents.jsonl.gz";
/** Kinds of questions of the default grid: the easiest (`code`), and three that the house model decides by chance or cannot do, are left out. */
const DEFAULT_KINDS = ["single", "multi-key", "table", "variable", "frequent", "second-turn"];

function parseContext(text: string): number {
  const value = parseInteger({ min: 64, max: CONTEXT_TOKENS_MAX })(text);
  return Math.ceil(value / 64) * 64;
}

function countFlag<const Fallback extends string>(help: string, fallback: Fallback, min = 0) {
  return { help, placeholder: "COUNT", fallback, parse: parseInteger({ min, max: 100_000 }) } as const;
}

function contextsFlag(help: string) {
  return { help, placeholder: "LIST", parse: parseList(parseContext) } as const;
}

/** Selections between commas, none twice. @throws {UsageError} */
function parseRequestedSelections(text: string): SelectionRequest["policy"][] {
  return parseDistinct(splitSelections(text), parseRequestedSelectionFlag);
}

/** What is judged, on which model and texts, how thoroughly, and where the results go. */
export const evalFlags = {
  model,
  policies: {
    ...policiesFlag("streaming,quest,mean-deviation,tokenselect,auto"),
    help: `selection policies, also with modifiers: ${POLICY_NAMES.join(", ")}; auto: what the calibration beside the model names, without one the default`,
    parse: parseRequestedSelections,
  },
  budgets: budgetFlag("256,512,1024,2048"),
  contexts: contextsFlag(
    `tokens before a window, rounded up to whole blocks, between commas (default: ${DEFAULT.contexts})`,
  ),
  lengths: contextsFlag(
    `tokens of the conversations in which questions are asked (default: --contexts, or ${DEFAULT.lengths})`,
  ),
  continued: contextsFlag(`tokens before a long generation (default: --contexts, or ${DEFAULT.continued})`),
  out: { help: "folder of the report; a run that was stopped goes on there", placeholder: "DIR", parse: parseText },
  documents: countFlag("texts; a window of each stands behind every context", "8", 1),
  tokens: countFlag("tokens of a window", "32", 1),
  text: {
    help: "file of plain text to take the texts from; without it the held-out books of the case file",
    placeholder: "FILE",
    parse: parseText,
  },
  cases: countFlag("questions of each kind and length that every selection answers; 0 for none", "100"),
  kinds: {
    help: `kinds of questions (default: all that the file has; without --contexts ${DEFAULT_KINDS.join(", ")})`,
    placeholder: "K,K,...",
    parse: parseList(parseText),
  },
  "case-file": {
    help: "documents or cases with their sentences, as weights/house/train/documents.py and cases.py write them",
    placeholder: "FILE",
    fallback: CASE_FILE,
    parse: parseText,
  },
  continuations: countFlag(
    `long generations behind each of --continued, at up to ${CONTINUATIONS_PER_TEXT_MAX} places of every text; 0 for none`,
    "100",
  ),
  generated: countFlag("tokens of a long generation", "128", 1),
  "bytes-max": {
    help: "selections that read more than this share of dense's bytes behind a context, in the windows, neither answer nor continue there",
    placeholder: "SHARE",
    fallback: "0.6",
    parse: parseNumber({ max: 1 }),
  },
  trained: {
    help: "longest context that the model was trained on; what lies beyond is marked (the house model: 4096)",
    placeholder: "TOKENS",
    fallback: "4096",
    parse: parseContext,
  },
  seed: {
    help: "of the random baseline",
    placeholder: "NUMBER",
    fallback: "1",
    parse: parseInteger({ min: 0, max: 2 ** 32 - 1 }),
  },
  trace: {
    help: "instead of a model: traces that another system captured (docs/traces.md), one text each, between commas; of the other flags those of selections and KV count",
    placeholder: "LIST",
    parse: parseList(parseText),
  },
  ablation: {
    help: `instead of all that: published methods taken apart, at the first of the contexts and budgets, on questions of --kinds (without it multi-key): ${ABLATIONS.join(", ")}`,
    placeholder: "LIST",
    parse: parseList(parseChoice(ABLATIONS)),
  },
  quick: switchFlag("a smoke test in less than two minutes: fewer and shorter texts, budgets and questions"),
  device,
  threads,
  weights,
  kv,
} as const;

/** The flags' values as given. */
export type GivenValues = FlagValues<typeof evalFlags>;

/** The flags' values of a model, with the grid that they stand for. */
export type EvalValues = Omit<GivenValues, keyof typeof DEFAULT | "trace"> & {
  [Name in keyof typeof DEFAULT]: readonly number[];
};

/** What is measured: as told, or the default grid, or what `--quick` stands for. */
export function gridValues({ trace: _, ...given }: GivenValues): EvalValues {
  const { contexts, kinds, quick } = given;
  const isDefault = contexts === undefined && given["case-file"] === CASE_FILE;
  const values = {
    ...given,
    contexts: contexts ?? DEFAULT.contexts,
    lengths: given.lengths ?? contexts ?? DEFAULT.lengths,
    continued: given.continued ?? contexts ?? DEFAULT.continued,
    kinds: kinds ?? (isDefault ? DEFAULT_KINDS : undefined),
  };
  if (quick === "false") return values;
  return {
    ...values,
    budgets: [256, 512],
    ...{ contexts: [1024, 2048], lengths: [2048], continued: [2048] },
    documents: 3,
    tokens: 16,
    cases: Math.min(values.cases, 5),
    continuations: Math.min(values.continuations, 6),
    generated: Math.min(values.generated, 32),
  };
}

/** Flags that a trace is judged by; the others are a model's. */
const OF_A_TRACE: readonly string[] = ["trace", "policies", "budgets", "device", "threads", "kv", "seed", "out"];

/** @param given parsed with `env` @throws {UsageError} for flags that were given beside `--trace` and would be overlooked */
export function refuseModelFlags(given: GivenValues, env: NodeJS.ProcessEnv): void {
  const isGiven = ([name, flag]: [string, Flag<unknown>]): boolean => {
    if (OF_A_TRACE.includes(name)) return false;
    const text = (flag.env === undefined ? undefined : env[flag.env]) || flag.fallback;
    return given[name as keyof GivenValues] !== (text === undefined ? undefined : flag.parse(text));
  };
  const [name] = Object.entries(evalFlags as Flags).find(isGiven) ?? [];
  if (name !== undefined) {
    throw new UsageError(
      `--${name} says nothing of a trace: it is measured without a model, at the contexts of its rows`,
    );
  }
}
