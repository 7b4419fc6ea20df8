import { describe, expect, it } from "vitest";
import { chooseResume, predictResume, type ResumeCost } from "../../../engine/kv/resume-choice.ts";

/** 32K tokens of a model with 16 layers and 17 KB of KV a token. */
const LONG: ResumeCost = {
  ...{ tokenCount: 32_768, contextTokens: 32_832, layerCount: 16, budgetTokens: 2_048 },
  ...{ blockBytes: 557_000_000, summaryBytes: 35_000_000 },
};
const R2 = { latencyMs: 30, bytesPerMs: 200_000 };

describe("how a session comes back", () => {
  it("takes the times of the formulas", () => {
    const predicted = predictResume(LONG, { store: R2, rowMs: 1.5 });
    expect(predicted.recompute).toBeCloseTo(32_768 * 1.5);
    expect(predicted.full).toBeCloseTo(3 * 30 + 592_000_000 / 200_000);
    const share = (5 * 2_048) / 32_832;
    expect(predicted.lazy).toBeCloseTo((3 + 8) * 30 + (35_000_000 / 16 + share * 557_000_000) / 200_000);
  });

  it.each([
    ["a long session over a far store: lazily", LONG, R2, 1.5, "lazy"],
    ["a short one of few bytes: as a whole, with fewer round trips", small(4_096), R2, 1.5, "full"],
    ["a small model's short session: from the log", small(512), R2, 0.05, "recompute"],
    ["a store that crawls: from the log", LONG, { latencyMs: 900, bytesPerMs: 1_000 }, 1.5, "recompute"],
    ["everything attended to: as a whole", { ...LONG, budgetTokens: undefined }, R2, 1.5, "full"],
  ] as const)("%s", (_name, cost, store, rowMs, mode) => {
    const chosen = chooseResume("auto", cost, { store, rowMs });
    expect(chosen).toMatchObject({ mode, asked: "auto" });
    expect(Math.min(...Object.values(chosen.predictedMs ?? {}))).toBe(chosen.predictedMs?.[mode]);
  });

  it("does as it is told, and lazily where the store is not known yet", () => {
    for (const mode of ["lazy", "full", "recompute"] as const) {
      expect(chooseResume(mode, LONG, { store: R2, rowMs: 1e-9 })).toEqual({ mode, asked: mode });
    }
    expect(chooseResume("auto", LONG, { store: undefined, rowMs: 1e-9 }).mode).toBe("lazy");
    expect(chooseResume("auto", LONG, { store: R2, rowMs: undefined }).mode).toBe("lazy");
  });
});

function small(tokenCount: number): ResumeCost {
  return {
    ...{ tokenCount, contextTokens: tokenCount + 64, layerCount: 16, budgetTokens: 2_048 },
    ...{ blockBytes: tokenCount * 1_000, summaryBytes: tokenCount * 60 },
  };
}
