/**
 * Point 9 of the promise: an engine is killed between two turns, and the third is answered as if nothing had happened. The plot is the
 * demonstration's; what has to hold of it is spelled out here.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoPassage } from "../../cli/demo-passage.ts";
import { claimsOf } from "../../cli/demo-report.ts";
import { Stage } from "../../cli/demo-stage.ts";
import { type Ending, playResume, type ResumeOutcome } from "../../cli/resume-scenario.ts";

const answers = ["The code of Kelino is 7350.", "The code of Mogari is 6072.", "The code of Badoru is 4821."];
const questionBytes = "What is the code of Badoru?".length;
/** Begin, user, passage and question, assistant, answer, end; then user, question, assistant, answer, end. */
const tokensAfterTurnTwo = 1 + (demoPassage.length + questionBytes + 2) + 28 + (questionBytes + 2) + 28;
const budgetTokens = 256;
const segmentTokens = 256;

const life = new AbortController();
let stage: Stage;
beforeAll(async () => {
  stage = await Stage.open(life.signal);
});
afterAll(async () => {
  life.abort();
  await stage?.close();
});

function endingOf(outcome: ResumeOutcome, name: Ending["name"]): Ending {
  const ending = outcome.endings.find((candidate) => candidate.name === name);
  if (ending === undefined) throw new Error(`no ending ${name}`);
  return ending;
}

describe.each(["quest", "dense"] as const)("with int8 KV and %s, exact", (policy) => {
  let outcome: ResumeOutcome;
  beforeAll(async () => {
    const silent = { step: () => undefined, turn: () => undefined, persisted: () => undefined };
    try {
      outcome = await playResume(stage, policy, silent);
    } catch (cause) {
      throw new Error(`the plot broke off; edge and engines warned:\n${stage.warnings.join("\n")}`, { cause });
    }
  });

  it("answers three questions when nothing happens", () => {
    expect(outcome.undisturbed.map(({ text }) => text)).toEqual(answers);
    expect(outcome.before.map((turns) => turns.map(({ text }) => text))).toEqual(Array(4).fill(answers.slice(0, 2)));
    expect(outcome.undisturbed.every(({ usage }) => usage.quire.bytesFetched === 0)).toBe(true);
  });

  it("stores everything before the kill: sealed segments, generated tokens and the partial tail", () => {
    expect(tokensAfterTurnTwo % 64).not.toBe(0);
    for (const { persisted } of outcome.endings) {
      expect(persisted.tokenCount).toBe(tokensAfterTurnTwo);
      expect(persisted.segmentCount).toBe(Math.floor(tokensAfterTurnTwo / segmentTokens));
      expect(persisted.segmentCount).toBeGreaterThanOrEqual(4);
    }
  });

  it.each(["restarted", "second-engine"] as const)("goes on with all of it from the store: %s", (name) => {
    const { text, usage } = endingOf(outcome, name).turn;
    expect(text).toBe(outcome.undisturbed[2]?.text);
    expect(usage.cachedTokens).toBe(tokensAfterTurnTwo);
    expect(usage.quire.source).toEqual({ device: 0, host: 0, store: tokensAfterTurnTwo });
    expect(usage.quire.recomputedTokens).toBe(0);
    expect(usage.quire.bytesBeforeFirstToken).toBeGreaterThan(0);
    expect(usage.quire.bytesFetched).toBeGreaterThanOrEqual(usage.quire.bytesBeforeFirstToken ?? 0);
    expect(usage.quire.pagesBeforeFirstToken).toBeGreaterThan(0);
    expect(usage.quire.pagesMissed).toBe(0);
  });

  it.each([
    // What a deleted object takes away is a segment; what a flipped bit takes away is the block that it lies in.
    ["segment-deleted", segmentTokens],
    ["byte-flipped", 64],
  ] as const)("answers the same after damage, and says what it computed again: %s", (name, lostTokens) => {
    const { text, usage } = endingOf(outcome, name).turn;
    expect(text).toBe(outcome.undisturbed[2]?.text);
    expect(usage.quire.recomputedTokens).toBe(lostTokens);
    expect(usage.cachedTokens).toBe(tokensAfterTurnTwo - lostTokens);
    expect(usage.quire.source).toEqual({ device: 0, host: 0, store: tokensAfterTurnTwo - lostTokens });
    expect(usage.quire.bytesFetched).toBeGreaterThan(0);
  });

  it("has run the policy it was asked for", () => {
    const turns = [outcome.undisturbed[2], ...outcome.endings.map(({ turn }) => turn)];
    for (const turn of turns) {
      const { quire, promptTokens } = turn!.usage;
      expect(quire).toMatchObject({ policy, exact: true, budgetTokens });
      expect(promptTokens).toBeGreaterThanOrEqual(8 * budgetTokens);
      const { pagesSelected = 0, pagesInContext = 0 } = quire;
      if (policy === "dense") continue;
      expect(pagesSelected).toBeGreaterThan(0);
      expect(pagesSelected * 8).toBeLessThanOrEqual(pagesInContext);
    }
  });

  it("is what the demonstration concludes, and a wrong answer would change its mind", () => {
    expect(claimsOf(outcome).filter(({ holds }) => !holds)).toEqual([]);
    const [first, ...others] = outcome.endings;
    const wrong = { ...first!, turn: { ...first!.turn, text: "The code of Badoru is 4822." } };
    expect(claimsOf({ ...outcome, endings: [wrong, ...others] }).some(({ holds }) => !holds)).toBe(true);
    const quire = { ...first!.turn.usage.quire, bytesFetched: 0 };
    const cold = { ...first!, turn: { ...first!.turn, usage: { ...first!.turn.usage, quire } } };
    expect(claimsOf({ ...outcome, endings: [cold, ...others] }).some(({ holds }) => !holds)).toBe(true);
  });
});
