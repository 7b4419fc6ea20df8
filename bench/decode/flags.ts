/** Flags that the benchmarks of whole models share. */
import { type Flag, parseChoice, parseInteger, parseSelectionFlag, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { splitBudget } from "../../models/selection/policy.ts";
import { POLICY_NAMES } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { splitSelections } from "../../protocol/selection.ts";
import { seedFlag } from "../make-shape/make-shape.ts";
import { shapeFlag } from "../shapes.ts";

const CONTEXT_TOKENS_MAX = 1_048_576;

/** Items between commas, none twice. */
export function parseList<T>(parseItem: (text: string) => T): (text: string) => T[] {
  return (text) => parseDistinct(text.split(","), parseItem);
}

/** Each of some texts, blanks around it aside. @throws {UsageError} for two that are the same. */
export function parseDistinct<T>(texts: readonly string[], parseItem: (text: string) => T): T[] {
  const items = texts.map((text) => parseItem(text.trim()));
  if (new Set(items).size !== items.length) throw new UsageError("must not name anything twice");
  return items;
}

/** Selections between commas, none twice. @throws {UsageError} */
export function parseSelections(text: string): SelectionConfiguration[] {
  return parseDistinct(splitSelections(text), parseSelectionFlag);
}

/** A budget that policies can split. @throws {UsageError} */
export function parseBudgetTokens(text: string): number {
  const budgetTokens = parseInteger({ min: 1, max: CONTEXT_TOKENS_MAX })(text);
  try {
    splitBudget(budgetTokens);
  } catch (error) {
    throw new UsageError((error as Error).message.replace("budget_tokens ", "").replace(/\.$/, ""));
  }
  return budgetTokens;
}

/** `--threads`. */
export const threadsFlag: Flag<number> = {
  help: "threads of the device (default: the cores there are, at most 8)",
  placeholder: "COUNT",
  parse: parseInteger({ min: 1, max: 64 }),
};

/** `--device` of benchmarks. */
export const benchDeviceFlag = {
  help: "wasm (CPU) or webgpu (a GPU; random weights are made on it)",
  placeholder: "KIND",
  fallback: "wasm",
  parse: parseChoice(["wasm", "webgpu"]),
} as const;

/** `--batch`. */
export const batchFlag = {
  help: "sequences that decode together",
  placeholder: "COUNT",
  fallback: "1",
  parse: parseInteger({ min: 1, max: 64 }),
} as const;

/** `--weights` of a whole model. */
const weightsFlag = {
  help: "weights in memory: int8, int4 (embeddings int8), bf16 or f32",
  placeholder: "ENCODING",
  fallback: "int8",
  parse: parseChoice(["int8", "int4", "bf16", "f32"]),
} as const;

/** What is measured, and with how many threads; on the CPU, with int8 weights, unless {@link deviceFlags} say otherwise. */
export const modelFlags = {
  shape: shapeFlag,
  model: {
    help: "a HF folder or GGUF file instead of the shape's seeded weights",
    placeholder: "PATH",
    parse: parseText,
  },
  threads: threadsFlag,
  seed: seedFlag,
} as const;

/** Where a model runs, and how its weights lie there. */
export const deviceFlags = { device: benchDeviceFlag, weights: weightsFlag } as const;

/** `--contexts`: tokens before the first measured one. */
export function contextsFlag(fallback: string) {
  const parse = parseList(parseInteger({ min: 0, max: CONTEXT_TOKENS_MAX }));
  return { help: "tokens of context, between commas", placeholder: "LIST", fallback, parse } as const;
}

/** `--policies`. */
export function policiesFlag(fallback: string) {
  const help = `selection policies, also with modifiers: ${POLICY_NAMES.join(", ")}`;
  return { help, placeholder: "LIST", fallback, parse: parseSelections } as const;
}

/** `--budget`. */
export function budgetFlag(fallback: string) {
  const help = "budgets of the policies in tokens, between commas";
  return { help, placeholder: "LIST", fallback, parse: parseList(parseBudgetTokens) } as const;
}
