/**
 * The configuration language of selection, as it crosses the wire, stands in flags and names stored bytes:
 *
 *     configuration = policy { "+" modifier }
 *     modifier      = name "(" argument { "," argument } ")"
 *     argument      = number | word | heads
 *     heads         = "x" hexdigit { hexdigit }
 *
 * for example `mean-deviation+combine(max)+sink(64)`. Spaces between the parts are allowed and lost. A modifier stands once at most, and
 * only behind a policy that it means something to. The canonical form has the modifiers in the order of {@link MODIFIERS} and numbers as
 * JavaScript prints them. What a configuration means is models/selection's to say.
 */
import { QuireError } from "./errors.ts";
import {
  AUTO_SELECTION,
  type SelectionConfiguration,
  type SelectionPolicyName,
  type SelectionRequest,
} from "./generate.ts";
import { LIMITS } from "./limits.ts";

/** Every policy, in the order in which messages list them. */
export const SELECTION_POLICIES = [
  "dense",
  "streaming",
  "quest",
  "mean-deviation",
  "arkvale",
  "infllm",
  "sign-hash",
  "residual-signs",
  "tokenselect",
] as const satisfies readonly SelectionPolicyName[];

/**
 * What may stand in the place of an argument: one of some words, one of some numbers, any number (a whole multiple of `step`, where there is one; with
 * `orHeads` also {@link HEADS_PATTERN}), or up to `countMax` numbers, which stay one text.
 */
export type ArgumentRule =
  | { words: readonly string[] }
  | { numbers: readonly number[] }
  | { min: number; max: number; step?: number; orHeads?: true }
  | { each: { min: number; max: number }; countMax: number };

/** KV heads by name: bit 3 of the first digit is KV head 0 of layer 0, and so on through the layers; set: it retrieves. */
const HEADS_PATTERN = /^x[0-9a-f]{1,512}$/;

/** One modifier of the language. */
export interface ModifierRule {
  /** How an argument is called in messages. */
  argument: string;
  rule: ArgumentRule;
  /** The policies that it may follow. */
  policies: readonly SelectionPolicyName[];
  /** For help texts. */
  help: string;
}

/** Policies whose scores estimate `q.k`; those of them that score by a centre and a radius. */
const ESTIMATING = ["quest", "mean-deviation", "arkvale", "infllm", "residual-signs"] as const;
const BOUNDING = ["quest", "mean-deviation", "arkvale"] as const;
const PAGED = [...ESTIMATING, "sign-hash"] as const;
const SELECTIVE = [...PAGED, "tokenselect"] as const;
const PAGE = { min: 0, max: 1 << 20, step: 16 } as const;

/** Every modifier, in canonical order. */
export const MODIFIERS = {
  radius: {
    argument: "WEIGHT",
    rule: { min: 0, max: 16 },
    policies: [...BOUNDING, "residual-signs", "tokenselect"],
    help: "weight of a page's spread, or of its best token, against its centre",
  },
  combine: {
    argument: "RULE",
    rule: { words: ["max", "sum"] },
    policies: PAGED,
    help: "queries of a group: the largest score, or the sum of softmaxed ones",
  },
  scope: {
    argument: "SCOPE",
    rule: { words: ["head", "layer"] },
    policies: PAGED,
    help: "every KV head chooses for itself, or one choice serves the layer",
  },
  "top-p": {
    argument: "SHARE",
    rule: { min: 0.01, max: 1 },
    policies: ESTIMATING,
    help: "take only as many pages of the budget as reach this share of the estimated attention",
  },
  candidates: {
    argument: "FACTOR",
    rule: { min: 1, max: 1024, step: 1 },
    policies: ["tokenselect"],
    help: "pages whose tokens are scored, as a multiple of the budget",
  },
  coarse: {
    argument: "FACTOR",
    rule: { min: 2, max: 64, step: 1 },
    policies: BOUNDING,
    help: "blocks of pages are scored first, then the pages of the best of them only, as many as so many budgets",
  },
  sink: {
    argument: "TOKENS",
    rule: PAGE,
    policies: ["streaming", ...SELECTIVE],
    help: "first tokens, always attended",
  },
  recent: {
    argument: "TOKENS",
    rule: { ...PAGE, min: 16 },
    policies: SELECTIVE,
    help: "last tokens, always attended",
  },
  "first-turn": {
    argument: "TOKENS",
    rule: { ...PAGE, min: 128 },
    policies: ["streaming", ...SELECTIVE],
    help: "the first turn's prompt is read with selection too, under this budget of its own",
  },
  group: {
    argument: "TOKENS",
    rule: { numbers: [32, 64] },
    policies: SELECTIVE,
    help: "so many rows of a prompt share one choice instead of 16: a resumed turn reads less",
  },
  "dense-layers": {
    argument: "COUNT",
    rule: { min: 0, max: 1024, step: 1 },
    policies: ["streaming", ...SELECTIVE],
    help: "the first layers, which attend to everything",
  },
  "own-layers": {
    argument: "COUNT",
    rule: { min: 0, max: 1024, step: 1 },
    policies: SELECTIVE,
    help: "the first layers, which choose each for itself where a choice serves several",
  },
  share: {
    argument: "LAYERS",
    rule: { min: 1, max: 1024, step: 1 },
    policies: SELECTIVE,
    help: "each choice serves so many layers, the one that chose and those behind it",
  },
  reuse: {
    argument: "TOKENS",
    rule: { numbers: [2, 4, 8, 16] },
    policies: PAGED,
    help: "each choice serves so many tokens of a reply, the one that chose and those behind it",
  },
  "layer-budgets": {
    argument: "SHARES",
    rule: { each: { min: 0, max: 64 }, countMax: 128 },
    policies: PAGED,
    help: "of each layer, by what its chosen pages are multiplied: 2,1,0.5 (the last for all layers behind it)",
  },
  "head-budgets": {
    argument: "SHARES",
    rule: { each: { min: 0, max: 64 }, countMax: 128 },
    policies: PAGED,
    help: "of each KV head, layer by layer, by what its chosen pages are multiplied: 1,4,6,0 (the last for all heads behind it)",
  },
  heads: {
    argument: "SHARE",
    rule: { min: 0, max: 1, orHeads: true },
    policies: ["streaming", ...PAGED],
    help: "this share of the KV heads retrieves, by the model's profile; the others see first and last tokens only",
  },
} as const satisfies Record<string, ModifierRule>;

/** Names of the modifiers. */
export type ModifierName = keyof typeof MODIFIERS;

/** A modifier with its argument. */
export interface Modifier {
  name: ModifierName;
  value: number | string;
}

/** A parsed configuration. */
export interface SelectionSetting {
  policy: SelectionPolicyName;
  /** In canonical order. */
  modifiers: readonly Modifier[];
  /** Equal settings have equal canonical forms. */
  canonical: SelectionConfiguration;
}

/**
 * Parses a configuration, which may come from a client.
 * @throws {QuireError} `invalid_request`, parameter `quire.selection.policy`, with the position and what could stand there.
 */
export function parseSelection(text: string): SelectionSetting {
  return parse(text, SELECTION_POLICIES);
}

/**
 * The canonical form of what a request names: a configuration, or `auto`.
 * @throws {QuireError} as {@link parseSelection}.
 */
export function parseRequestedSelection(text: string): SelectionRequest["policy"] {
  if (text.trim() === AUTO_SELECTION) return AUTO_SELECTION;
  return parse(text, [...SELECTION_POLICIES, AUTO_SELECTION]).canonical;
}

/** `known`: the policies that a message lists. */
function parse(text: string, known: readonly string[]): SelectionSetting {
  if (text.length > LIMITS.selectionCharsMax) {
    throw selectionRefusal(`a selection has at most ${LIMITS.selectionCharsMax} characters, not ${text.length}`);
  }
  const scanner = new Scanner(text);
  const policy = scanner.choice("a policy", SELECTION_POLICIES, known);
  const found = new Map<ModifierName, Modifier>();
  while (!scanner.atEnd()) {
    scanner.expect("+", `"+" or the end`);
    const modifier = readModifier(scanner, policy, found);
    found.set(modifier.name, modifier);
  }
  const modifiers = (Object.keys(MODIFIERS) as ModifierName[]).flatMap((name) => found.get(name) ?? []);
  const parts = [policy, ...modifiers.map(({ name, value }) => `${name}(${value})`)];
  return { policy, modifiers, canonical: parts.join("+") as SelectionConfiguration };
}

/** True for the canonical form of a configuration. */
export function isCanonicalSelection(text: string): text is SelectionConfiguration {
  try {
    return parseSelection(text).canonical === text;
  } catch (error) {
    if (error instanceof QuireError) return false;
    throw error;
  }
}

/** Splits a list of configurations at the commas that stand outside of parentheses; nothing is trimmed or checked. */
export function splitSelections(text: string): string[] {
  return text.split(/,(?![^(]*\))/);
}

function readModifier(
  scanner: Scanner,
  policy: SelectionPolicyName,
  found: ReadonlyMap<ModifierName, Modifier>,
): Modifier {
  const usable = (Object.keys(MODIFIERS) as ModifierName[]).filter((name) => {
    const { policies }: ModifierRule = MODIFIERS[name];
    return policies.includes(policy) && !found.has(name);
  });
  const name = scanner.choice(`a modifier of ${policy}`, usable);
  const { rule }: ModifierRule = MODIFIERS[name];
  scanner.expect("(", `"(" behind ${name}`);
  const value = readArgument(scanner, name, rule);
  scanner.expect(")", `")"`);
  return { name, value };
}

function readArgument(scanner: Scanner, name: string, rule: ArgumentRule): number | string {
  if ("words" in rule) return scanner.choice(`the argument of ${name}`, rule.words);
  if ("each" in rule) return scanner.list(name, rule).join(",");
  const heads = "orHeads" in rule ? scanner.heads() : undefined;
  return heads ?? scanner.number(name, rule);
}

/** Reads a text from left to right. */
class Scanner {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  atEnd(): boolean {
    this.#skipSpaces();
    return this.#at === this.#text.length;
  }

  expect(sign: string, what: string): void {
    this.#skipSpaces();
    if (this.#text[this.#at] !== sign) throw this.#unexpected(`expected ${what}`);
    this.#at += 1;
  }

  /** One of some words; `listed`: those that a message names. */
  choice<const Word extends string>(what: string, words: readonly Word[], listed: readonly string[] = words): Word {
    this.#skipSpaces();
    const word = this.#match(/[a-z][a-z0-9-]*/y);
    const found = words.find((each) => each === word);
    if (found === undefined) {
      throw this.#unexpected(
        words.length === 0 ? "there is no further modifier" : `expected ${what}: ${listed.join(", ")}`,
      );
    }
    this.#at += found.length;
    return found;
  }

  number(name: string, rule: NumberRule): number {
    this.#skipSpaces();
    const text = this.#match(/\d{1,9}(?:\.\d{1,9})?/y);
    const value = text === "" ? Number.NaN : Number(text);
    if (!isAllowed(rule, value)) throw this.#unexpected(`${name} takes ${describeNumbers(rule)}`);
    this.#at += text.length;
    return value;
  }

  list(name: string, { each, countMax }: Extract<ArgumentRule, { each: unknown }>): number[] {
    const values = [this.number(name, each)];
    for (this.#skipSpaces(); this.#text[this.#at] === ","; this.#skipSpaces()) {
      if (values.length === countMax) throw this.#unexpected(`${name} takes at most ${countMax} numbers`);
      this.#at += 1;
      values.push(this.number(name, each));
    }
    return values;
  }

  /** Named KV heads, where they stand here. */
  heads(): string | undefined {
    this.#skipSpaces();
    const word = this.#match(/x[0-9a-f]*/y);
    if (!HEADS_PATTERN.test(word)) return undefined;
    this.#at += word.length;
    return word;
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    return pattern.exec(this.#text)?.[0] ?? "";
  }

  #skipSpaces(): void {
    while (this.#text[this.#at] === " ") this.#at += 1;
  }

  #unexpected(expected: string): QuireError {
    const rest = this.#match(/[a-z0-9.-]+/iy) || this.#text.slice(this.#at, this.#at + 1);
    const found = rest === "" ? "the end" : JSON.stringify(rest);
    const isAll = rest !== "" && rest === this.#text;
    const place = isAll ? "" : ` at position ${this.#at} of ${JSON.stringify(this.#text)}`;
    return selectionRefusal(`${found}${place}: ${expected}`);
  }
}

type NumberRule = Exclude<ArgumentRule, { words: readonly string[] } | { each: unknown }>;

function isAllowed(rule: NumberRule, value: number): boolean {
  if ("numbers" in rule) return rule.numbers.includes(value);
  return value >= rule.min && value <= rule.max && (rule.step === undefined || value % rule.step === 0);
}

function describeNumbers(rule: NumberRule): string {
  if ("numbers" in rule) return `one of ${rule.numbers.join(", ")}`;
  const { min, max, step, orHeads } = rule;
  const kind = step === undefined ? "a number" : step === 1 ? "a whole number" : `a multiple of ${step}`;
  return `${kind} from ${min} to ${max}${orHeads ? ", or x and the heads in hex" : ""}`;
}

/** What to throw about a selection that cannot be; `problem` without its full stop. */
export function selectionRefusal(problem: string): QuireError {
  return new QuireError("invalid_request", `Invalid 'quire.selection.policy': ${problem}.`, {
    param: "quire.selection.policy",
  });
}
