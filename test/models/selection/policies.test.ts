import { describe, expect, it } from "vitest";
import { BUDGET_TOKENS_MIN } from "../../../models/selection/policy.ts";
import { POLICY_NAMES, policyNamed } from "../../../models/selection/registry.ts";
import { QuireError } from "../../../protocol/errors.ts";

describe("selection policies", () => {
  it("are found by name, each once", () => {
    expect([...POLICY_NAMES].sort()).toEqual([
      ...[
        "arkvale",
        "dense",
        "infllm",
        "mean-deviation",
        "quest",
        "residual-signs",
        "sign-hash",
        "streaming",
        "tokenselect",
      ],
    ]);
    for (const name of POLICY_NAMES) expect(policyNamed(name).name).toBe(name);
    for (const policy of POLICY_NAMES.map(policyNamed)) expect([policy.groupTokens, policy.version]).toEqual([16, 1]);
  });

  it.each(["", "Quest", "toString", "__proto__"])("refuse the unknown name %j", (name) => {
    expect(() => policyNamed(name)).toThrow(QuireError);
    expect(() => policyNamed(name)).toThrow(
      /dense, streaming, quest, mean-deviation, arkvale, infllm, sign-hash, residual-signs, tokenselect/,
    );
  });

  it("plan a budget of 2048 tokens as their papers say", () => {
    const split = { budgetPages: 128, sinkPages: 8, recentPages: 16 };
    const meanDeviation = { summary: "mean-deviation", radiusWeight: 0.5 };
    expect(policyNamed("dense").plan(2048)).toEqual({ kind: "dense" });
    expect(policyNamed("quest").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: { summary: "min-max", radiusWeight: 1 },
      scope: "kv-head",
      combine: "max",
    });
    expect(policyNamed("mean-deviation").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: meanDeviation,
      scope: "kv-head",
      combine: "softmax-sum",
    });
    expect(policyNamed("arkvale").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: { summary: "centre-deviation", radiusWeight: 1 },
      scope: "kv-head",
      combine: "max",
    });
    expect(policyNamed("infllm").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: { summary: "representatives", radiusWeight: 1 },
      scope: "layer",
      combine: "softmax-sum",
    });
    expect(policyNamed("sign-hash").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: { summary: "sign-bits", radiusWeight: 0 },
      scope: "kv-head",
      combine: "max",
    });
    expect(policyNamed("residual-signs").plan(2048)).toEqual({
      kind: "pages",
      ...split,
      scorer: { summary: "residual-signs", radiusWeight: 1 },
      scope: "kv-head",
      combine: "softmax-sum",
    });
    expect(policyNamed("tokenselect").plan(2048)).toEqual({
      kind: "tokens",
      ...split,
      candidatePages: 512,
      scorer: meanDeviation,
    });
  });

  it("give streaming the whole budget as sinks and window, and no scorer", () => {
    const plan = policyNamed("streaming").plan(256);
    expect(plan).toMatchObject({ kind: "pages", budgetPages: 16, sinkPages: 1, recentPages: 15 });
    expect(plan).not.toHaveProperty("scorer");
  });

  it("leave at least one sink page, two recent pages and three to choose at the smallest budget", () => {
    expect(BUDGET_TOKENS_MIN).toBe(128);
    expect(policyNamed("quest").plan(BUDGET_TOKENS_MIN)).toMatchObject({
      budgetPages: 8,
      sinkPages: 1,
      recentPages: 2,
    });
  });

  it.each([0, 112, 127, 136, -128, 128.5, Number.NaN, Number.POSITIVE_INFINITY])(
    "refuse a budget of %d and name the parameter",
    (budgetTokens) => {
      for (const name of POLICY_NAMES) {
        if (name === "dense") continue;
        expect(() => policyNamed(name).plan(budgetTokens)).toThrow(
          expect.objectContaining({ code: "invalid_request", param: "quire.selection.budget_tokens" }),
        );
      }
    },
  );

  it("name the summary kind that their plan scores by", () => {
    for (const policy of POLICY_NAMES.map(policyNamed)) {
      const plan = policy.plan(512);
      const scored = plan.kind === "dense" ? undefined : plan.scorer?.summary;
      expect(policy.summary).toBe(scored);
    }
  });
});
