/** The flags of the recall benchmark. */
import { engineFlags } from "../../cli/engine-flags.ts";
import { type FlagValues, parseBudget, parseChoice, parseInteger, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { POLICY_NAMES } from "../../models/selection/registry.ts";
import { parseSelections } from "../decode/flags.ts";

const { model, device, threads, weights } = engineFlags;

/** Which model is asked what, at which lengths, under which policies. */
export const recallFlags = {
  lengths: {
    help: "tokens of the whole conversation",
    placeholder: "N,N,...",
    fallback: "4096,8192,16384,32768",
    parse: parseLengths,
  },
  cases: {
    help: "cases of each kind and length",
    placeholder: "COUNT",
    fallback: "20",
    parse: parseInteger({ min: 1, max: 100_000 }),
  },
  kinds: {
    help: "kinds of questions; without it all that the file has (house-0 was trained for code only)",
    placeholder: "K,K,...",
    parse: parseList,
  },
  policy: {
    help: `selection policies for questions and answers: of ${POLICY_NAMES.join(", ")}; the passage is read densely`,
    placeholder: "P,P,...",
    fallback: "dense,quest,mean-deviation,tokenselect",
    parse: parseSelections,
  },
  budget: {
    help: "tokens that a step attends to under a policy",
    placeholder: "TOKENS",
    fallback: "1024",
    parse: parseBudget,
  },
  "case-file": {
    help: "cases and sentences, as weights/house/train/cases.py writes them",
    placeholder: "FILE",
    fallback: "weights/house/eval-cases.jsonl.gz",
    parse: parseText,
  },
  model,
  device,
  threads,
  weights,
  kv: {
    help: "sealed pages: int8 or f32, or what those are rounded to where they are stored so: int4, f16",
    placeholder: "ENCODING",
    fallback: "int8",
    parse: parseChoice(["int8", "f32", "int4", "f16"]),
  },
} as const;

/** The flags' values. */
export type RecallValues = FlagValues<typeof recallFlags>;

function parseList(text: string): readonly string[] {
  const words = text.split(",");
  if (words.every((word) => word !== "")) return [...new Set(words)];
  throw new UsageError("must be words with commas between them");
}

function parseLengths(text: string): readonly number[] {
  try {
    return parseList(text).map(parseInteger({ min: 256, max: 1_048_576 }));
  } catch {
    throw new UsageError("must be whole numbers from 256 on with commas between them");
  }
}
