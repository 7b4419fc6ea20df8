/** Configurations at random, from the grammar's own table. */
import fc from "fast-check";
import type { SelectionPolicyName } from "../../protocol/generate.ts";
import {
  type ArgumentRule,
  MODIFIERS,
  type ModifierName,
  type ModifierRule,
  SELECTION_POLICIES,
} from "../../protocol/selection.ts";

const NAMES = Object.keys(MODIFIERS) as ModifierName[];

/** A policy and some of its modifiers as texts, in any order. */
export function selectionParts(
  policies: readonly SelectionPolicyName[] = SELECTION_POLICIES,
): fc.Arbitrary<[policy: SelectionPolicyName, modifiers: string[]]> {
  return fc.constantFrom(...policies).chain((policy) => {
    const usable = NAMES.filter((name) => (MODIFIERS[name] as ModifierRule).policies.includes(policy));
    return fc.tuple(
      fc.constant(policy),
      fc.shuffledSubarray(usable).chain((names) => fc.tuple(...names.map(written))),
    );
  });
}

function written(name: ModifierName): fc.Arbitrary<string> {
  const { rule }: ModifierRule = MODIFIERS[name];
  if ("words" in rule) return fc.constantFrom(...rule.words).map((word) => `${name}(${word})`);
  if ("numbers" in rule) return fc.constantFrom(...rule.numbers).map((number) => `${name}(${number})`);
  if ("each" in rule) return lists(rule).map((list) => `${name}(${list.join(",")})`);
  // Heads by name, of three layers of up to four: a share of them is of a model's profile.
  if (rule.orHeads) return fc.stringMatching(/^x[0-9a-f]{3}$/).map((heads) => `${name}(${heads})`);
  // Eighths are written out exactly in decimals.
  const step = rule.step ?? 1 / 8;
  return fc
    .integer({ min: Math.ceil(rule.min / step), max: Math.floor(rule.max / step) })
    .map((count) => `${name}(${count * step})`);
}

function lists({ each, countMax }: Extract<ArgumentRule, { each: unknown }>): fc.Arbitrary<number[]> {
  const eighths = fc.integer({ min: Math.ceil(each.min * 8), max: Math.floor(each.max * 8) });
  return fc.array(
    eighths.map((count) => count / 8),
    { minLength: 1, maxLength: Math.min(countMax, 5) },
  );
}
