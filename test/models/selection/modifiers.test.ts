/** What the modifiers of the configuration language do to a plan. */
import { describe, expect, it } from "vitest";
import { formatHow, isHow, parseHow } from "../../../engine/kv/provenance.ts";
import { policyNamed } from "../../../models/selection/registry.ts";

const plan = (text: string, budgetTokens = 1024) => policyNamed(text).plan(budgetTokens);

describe("modifiers", () => {
  it("change what they name and nothing else", () => {
    const quest = plan("quest");
    expect(plan("quest+radius(0.5)")).toEqual({ ...quest, scorer: { summary: "min-max", radiusWeight: 0.5 } });
    expect(plan("quest+combine(sum)")).toEqual({ ...quest, combine: "softmax-sum" });
    expect(plan("quest+scope(layer)")).toEqual({ ...quest, scope: "layer" });
    expect(plan("quest+sink(128)")).toEqual({ ...quest, sinkPages: 8 });
    expect(plan("quest+top-p(0.9)")).toEqual({ ...quest, massShare: 0.9 });
    expect(plan("quest+dense-layers(2)+share(3)")).toEqual({ ...quest, denseLayers: 2, layersPerChoice: 3 });
    expect(plan("quest+own-layers(1)+share(3)")).toEqual({ ...quest, ownLayers: 1, layersPerChoice: 3 });
    expect(plan("quest+reuse(8)")).toEqual({ ...quest, rowsPerChoice: 8 });
    expect(plan("quest+recent(256)")).toEqual({ ...quest, recentPages: 16 });
    expect(plan("mean-deviation+combine(max)")).toEqual({ ...plan("mean-deviation"), combine: "max" });
    expect(plan("tokenselect+candidates(8)")).toEqual({ ...plan("tokenselect"), candidatePages: 512 });
  });

  it("say with which budget a first prompt is read, and leave the plan alone", () => {
    expect(plan("quest+first-turn(4096)")).toEqual(plan("quest"));
    expect(policyNamed("quest+first-turn(4096)").firstTurnBudgetTokens).toBe(4096);
    expect(policyNamed("quest")).not.toHaveProperty("firstTurnBudgetTokens");
  });

  it("work together, in any order", () => {
    const both = { ...plan("quest"), scope: "layer", sinkPages: 2 };
    expect(plan("quest+scope(layer)+sink(32)")).toEqual(both);
    expect(plan("quest+sink(32)+scope(layer)")).toEqual(both);
  });

  it("that say what the policy says anyway change nothing but the name", () => {
    expect(plan("quest+combine(max)+scope(head)+radius(1)")).toEqual(plan("quest"));
    expect(policyNamed("quest+radius(1)").name).toBe("quest+radius(1)");
  });

  it("leave streaming its whole budget: what is not sinks is window", () => {
    expect(plan("streaming+sink(256)")).toMatchObject({ budgetPages: 64, sinkPages: 16, recentPages: 48 });
  });

  it("give layers their own shares of what is chosen", () => {
    expect(plan("quest+layer-budgets(2,0.5,1)")).toEqual({ ...plan("quest"), layerShares: [2, 0.5, 1] });
  });

  it("let named heads choose, or see everything where nothing is scored", () => {
    const retrievalHeads = [true, false, false, true, false, true, false, false];
    expect(plan("quest+heads(x94)")).toEqual({ ...plan("quest"), retrievalHeads });
    expect(plan("streaming+heads(x94)")).toEqual({
      ...{ ...plan("streaming"), retrievalHeads },
      layerShares: [Number.POSITIVE_INFINITY],
    });
  });

  it("give KV heads their own shares of what is chosen", () => {
    expect(plan("quest+head-budgets(2,0,0.5)")).toEqual({ ...plan("quest"), headShares: [2, 0, 0.5] });
  });

  it("are refused where heads could not differ, and where nothing says which ones", () => {
    const refused = { code: "invalid_request", param: "quire.selection.policy" };
    for (const text of [
      "quest+scope(layer)+heads(x9)",
      "quest+share(2)+heads(x9)",
      "infllm+heads(x9)",
      "quest+heads(0.5)",
      "quest+scope(layer)+head-budgets(1,2)",
      "quest+head-budgets(1,2)+heads(x9)",
      "quest+layer-budgets(2)+head-budgets(1,2)",
    ]) {
      expect(() => plan(text), text).toThrow(expect.objectContaining(refused));
    }
    expect(plan("infllm+scope(head)+heads(x9)")).toHaveProperty("retrievalHeads");
  });

  it("are refused where nothing is left of the budget", () => {
    const refused = { code: "invalid_request", param: "quire.selection.budget_tokens" };
    expect(() => plan("quest+sink(512)+recent(512)")).toThrow(expect.objectContaining(refused));
    expect(() => plan("quest+sink(512)+recent(512)")).toThrow(/1024 is too small .* 512 first and 512 last tokens/);
    expect(plan("quest+sink(512)+recent(496)")).toMatchObject({ sinkPages: 32, recentPages: 31 });
    expect(() => plan("streaming+sink(1024)")).toThrow(expect.objectContaining(refused));
    expect(() => plan("quest+sink(64)", 100)).toThrow(expect.objectContaining(refused));
  });

  it("keep the policy's summaries and its query groups", () => {
    expect(policyNamed("quest+sink(64)")).toMatchObject({ summary: "min-max", groupTokens: 16, version: 1 });
  });

  it("stand in the provenance of what was computed with them", () => {
    const { name, version } = policyNamed("mean-deviation + sink(64) + radius(0.25)");
    const how = { policy: name, version, budgetTokens: 1024, groupTokens: 16 };
    expect(formatHow(how)).toBe("mean-deviation+radius(0.25)+sink(64).1:1024@16");
    expect(isHow(formatHow(how))).toBe(true);
    expect(parseHow(formatHow(how))).toEqual(how);
  });
});
