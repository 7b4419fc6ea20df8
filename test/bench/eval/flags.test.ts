/** The grids that flags stand for. */
import { describe, expect, it } from "vitest";
import { evalFlags, gridValues } from "../../../bench/eval/flags.ts";
import { parseFlags } from "../../../cli/flags.ts";

const grid = (...args: string[]) => gridValues(parseFlags(evalFlags, args, {}));

describe("the grid of npm run eval", () => {
  it("is, without flags, one that asks what the house model can answer, at two lengths", () => {
    expect(grid()).toMatchObject({
      ...{ contexts: [2048, 4096, 8192, 16_384], lengths: [4096, 8192], continued: [8192, 16_384] },
      kinds: ["single", "multi-key", "table", "variable", "frequent", "second-turn"],
    });
  });

  it("measures everything at the contexts that are named, or where it is told to", () => {
    expect(grid("--contexts", "1000,2048")).toMatchObject({
      ...{ contexts: [1024, 2048], lengths: [1024, 2048], continued: [1024, 2048], kinds: undefined },
    });
    expect(grid("--contexts", "2048", "--lengths", "512", "--continued", "4096", "--kinds", "code")).toMatchObject({
      ...{ contexts: [2048], lengths: [512], continued: [4096], kinds: ["code"] },
    });
    // Another file may hold other kinds.
    expect(grid("--case-file", "other.jsonl.gz").kinds).toBeUndefined();
  });

  it("is small where it is to be quick, and never larger than what was asked for", () => {
    const quick = { contexts: [1024, 2048], lengths: [2048], continued: [2048], budgets: [256, 512] };
    expect(grid("--quick=true")).toMatchObject({ ...quick, cases: 5, continuations: 6, generated: 32 });
    expect(grid("--quick=true", "--cases", "1", "--continuations", "0")).toMatchObject({ cases: 1, continuations: 0 });
  });
});
