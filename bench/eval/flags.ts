/** The flags of the instrument. */
import { engineFlags } from "../../cli/engine-flags.ts";
import { type FlagValues, parseChoice, parseInteger, parseRequestedSelectionFlag, parseText } from "../../cli/flags.ts";
import { POLICY_NAMES } from "../../models/selection/registry.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { splitSelections } from "../../protocol/selection.ts";
import { switchFlag } from "../bench.ts";
import { budgetFlag, parseDistinct, parseList, policiesFlag } from "../decode/flags.ts";
import { ABLATIONS } from "./lab/ablation-names.ts";

const { model, device, threads, weights, kv } = engineFlags;
const CONTEXT_TOKENS_MAX = 1_048_576;

function parseContext(text: string): number {
  const value = parseInteger({ min: 64, max: CONTEXT_TOKENS_MAX })(text);
  return Math.ceil(value / 64) * 64;
}

function countFlag<const Fallback extends string>(help: string, fallback: Fallback, min = 0) {
  return { help, placeholder: "COUNT", fallback, parse: parseInteger({ min, max: 100_000 }) } as const;
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
  contexts: {
    help: "tokens before a window, rounded up to whole blocks, between commas",
    placeholder: "LIST",
    fallback: "2048,4096,8192,16384",
    parse: parseList(parseContext),
  },
  out: { help: "folder of the report; a run that was stopped goes on there", placeholder: "DIR", parse: parseText },
  documents: countFlag("texts; a window of each stands behind every context", "8", 1),
  tokens: countFlag("tokens of a window", "32", 1),
  text: {
    help: "file of plain text to take the texts from; without it the held-out books of the case file",
    placeholder: "FILE",
    parse: parseText,
  },
  cases: countFlag("questions of each kind and length that every selection answers; 0 for none", "32"),
  kinds: {
    help: "kinds of questions; without it all that the file has (house-0 was trained for code only)",
    placeholder: "K,K,...",
    parse: parseList(parseText),
  },
  "case-file": {
    help: "documents or cases with their sentences, as weights/house/train/documents.py and cases.py write them",
    placeholder: "FILE",
    fallback: "weights/house/eval-documents.jsonl.gz",
    parse: parseText,
  },
  seed: {
    help: "of the random baseline",
    placeholder: "NUMBER",
    fallback: "1",
    parse: parseInteger({ min: 0, max: 2 ** 32 - 1 }),
  },
  ablation: {
    help: `instead of all that: published methods taken apart, at the first of the contexts and budgets, on questions of --kinds (without it
multi-key): ${ABLATIONS.join(", ")}`,
    placeholder: "LIST",
    parse: parseList(parseChoice(ABLATIONS)),
  },
  quick: switchFlag("a smoke test in less than two minutes: fewer and shorter texts, budgets and questions"),
  device,
  threads,
  weights,
  kv,
} as const;

/** The flags' values. */
export type EvalValues = FlagValues<typeof evalFlags>;

/** What `--quick` stands for. */
export function quickValues(values: EvalValues): EvalValues {
  if (values.quick === "false") return values;
  return {
    ...values,
    budgets: [256, 512],
    contexts: [1024, 2048],
    documents: 3,
    tokens: 16,
    cases: Math.min(values.cases, 5),
  };
}
