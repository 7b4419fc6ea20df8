import { describe, expect, it } from "vitest";
import { CostModel, type StepLoad } from "../../../engine/schedule/cost-model.ts";
import { uniform } from "../tiny-model.ts";

const truth = ({ rows, sampledRows, attendedTokens }: StepLoad) =>
  5 + 1.3 * rows + 0.4 * sampledRows + (0.6 * attendedTokens) / 1024;

function randomLoad(next: () => number): StepLoad {
  const sampledRows = Math.floor(next() * 12);
  const rows = sampledRows + Math.floor(next() * 80) + 1;
  return { rows, sampledRows, attendedTokens: rows * Math.floor(next() * 4000) };
}

describe("the cost of a step", () => {
  it("is learnt from a few dozen noisy steps to within a tenth", () => {
    const next = uniform(1);
    const model = new CostModel();
    for (let i = 0; i < 60; i++) {
      const load = randomLoad(next);
      model.observe(load, truth(load) * (0.9 + 0.2 * next()));
    }
    for (let i = 0; i < 50; i++) {
      const load = randomLoad(next);
      expect(Math.abs(model.predictMs(load) / truth(load) - 1)).toBeLessThan(0.1);
    }
    expect(Math.abs(model.rowMs(2048) / (1.3 + 1.2) - 1)).toBeLessThan(0.15);
  });

  it("is hardly moved by one slow step, and follows a machine that stays slow", () => {
    const next = uniform(2);
    const model = new CostModel();
    for (let i = 0; i < 100; i++) {
      const load = randomLoad(next);
      model.observe(load, truth(load));
    }
    const load = { rows: 20, sampledRows: 4, attendedTokens: 20_000 };
    const before = model.predictMs(load);
    model.observe(load, 100 * truth(load));
    expect(model.predictMs(load)).toBeLessThan(2 * before);
    for (let i = 0; i < 80; i++) {
      const other = randomLoad(next);
      model.observe(other, 2 * truth(other));
    }
    expect(Math.abs(model.predictMs(load) / (2 * truth(load)) - 1)).toBeLessThan(0.15);
  });

  it("never gets negative, and a step without rows costs nothing", () => {
    const model = new CostModel();
    for (let i = 0; i < 50; i++) model.observe({ rows: 1 + (i % 7), sampledRows: i % 3, attendedTokens: 10 * i }, 0.01);
    expect(model.predictMs({ rows: 1, sampledRows: 1, attendedTokens: 5000 })).toBeGreaterThanOrEqual(0);
    expect(model.rowMs(100)).toBeGreaterThanOrEqual(0);
    expect(model.predictMs({ rows: 0, sampledRows: 0, attendedTokens: 0 })).toBe(0);
  });
});
