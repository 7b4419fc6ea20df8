import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { demoPassage, demoQuestions } from "../../cli/demo-passage.ts";
import { claimsOf, DemoReport } from "../../cli/demo-report.ts";
import type { Stage } from "../../cli/demo-stage.ts";
import { type Ending, playResume, type ResumeOutcome, type Turn } from "../../cli/resume-scenario.ts";

const turn = (index: number, stored: boolean): Turn => ({
  text: demoQuestions[index]?.answer ?? "",
  latencyMs: 0,
  usage: {
    promptTokens: 2_964,
    completionTokens: 28,
    totalTokens: 2_992,
    cachedTokens: 2_871,
    quire: {
      bytesFetched: stored ? 18_390_000 : 0,
      pagesFetched: 1_704,
      recomputedTokens: stored ? 256 : 0,
      pagesSelected: 86,
      pagesInContext: 1_000,
      source: { device: 0, host: 0, store: 2_871 },
    },
  },
});

/** A run in which every turn goes the same way, played on a stage that does nothing. */
async function outcomeOn(report: DemoReport): Promise<ResumeOutcome> {
  const persisted = { segmentCount: 11, tokenCount: 2_935 };
  const stage = {
    client: {
      session: ({ id }: { id: string }) => ({
        id,
        send(text: string) {
          const index = demoQuestions.findIndex(({ question }) => text.endsWith(question));
          const { usage, text: words } = turn(index, text.length < demoPassage.length && index === 2);
          return { text: async () => words, usage: Promise.resolve(usage) };
        },
      }),
    },
    startEngine: async () => undefined,
    killEngine: async () => 1_234_567,
    emptyStore: async () => undefined,
    untilPersisted: async () => persisted,
    storedBytes: async () => 23_640_000,
    deleteSegment: async () => undefined,
    flipByte: async () => undefined,
  };
  return playResume(stage as unknown as Stage, "quest", report);
}

async function linesAt(columns: number | undefined): Promise<string[]> {
  let text = "";
  const report = new DemoReport((piece) => {
    text += piece;
  }, columns);
  report.title();
  report.policy("quest");
  const outcome = await outcomeOn(report);
  report.conclusion(outcome, claimsOf(outcome));
  report.verdict(true, 76_200);
  return stripVTControlCharacters(text).split("\n");
}

describe("what demo:resume shows", () => {
  it.each([80, 100, 120])("fits into %d columns", async (columns) => {
    const lines = await linesAt(columns);
    expect(lines.filter((line) => line.length > columns)).toEqual([]);
    const names: Ending["name"][] = ["restarted", "second-engine", "segment-deleted", "byte-flipped"];
    expect(lines.filter((line) => /^ {2}\S.* 2,871 +(?:0|256) /.test(line))).toHaveLength(names.length + 1);
    // Every turn has its cost, on its own line or behind its answer.
    expect(lines.filter((line) => /\d\.\d s {2}cached 2,871 of 2,964/.test(line))).toHaveLength(3 + 8 + 4);
  });

  it("has everything in one line a row where it is not read on a screen", async () => {
    const lines = await linesAt(undefined);
    expect(lines.filter((line) => /^ {4}What .* {2}\d\.\d s {2}cached 2,871/.test(line))).toHaveLength(3 + 8 + 4);
    expect(lines.some((line) => /^ {2}third answer +text +cached +recomputed/.test(line))).toBe(true);
  });
});
