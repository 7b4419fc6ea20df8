import { describe, expect, it } from "vitest";
import { drawPassage, drawProse, factText } from "../../bench/load/text.ts";
import { drawScripts, type Script, type WorkloadSettings } from "../../bench/load/workload.ts";
import { seededRandom } from "../../bench/random.ts";

const settings: WorkloadSettings = {
  seed: 9,
  ratePerS: 10,
  durationS: 60,
  turnsMax: 4,
  thinkMeanS: 2,
  mix: [70, 25, 5],
  promptCharsMax: 12_000,
};
const scripts = [...drawScripts(settings)];

/** Reads a session as the model would: which code stands in the text before each question. */
function codesAsked({ turns }: Script): (string | undefined)[] {
  let read = "";
  return turns.map(({ text }) => {
    read += text;
    const name = /What is the code of ([A-Z][a-z]{5})\?$/.exec(text)?.[1];
    const codes = [...read.matchAll(new RegExp(` The code of ${name} is (\\d{4})\\. `, "g"))];
    return codes.length === 1 ? codes[0]?.[1] : undefined;
  });
}

describe("the sessions of a run", () => {
  it("ask for facts that stand in their own text, each under a name of its own", () => {
    expect(scripts.length).toBeGreaterThan(400);
    for (const script of scripts) expect(codesAsked(script)).toEqual(script.turns.map(({ fact }) => fact.code));
  });

  it("have first prompts in the bounds of their class, in the mix that was asked for, many short and few long", () => {
    const bounds = { short: [200, 1_000], medium: [1_000, 4_000], long: [4_000, 12_000] };
    const question = "What is the code of Badoru?".length;
    for (const { className, turns } of scripts) {
      const passage = (turns[0]?.text.length ?? 0) - question;
      const [min = 0, max = 0] = bounds[className];
      // A fact may take the place of the blank between two words.
      const factCount = turns[0]?.text.split(" The code of ").length ?? 0;
      expect(passage, className).toBeGreaterThanOrEqual(min - factCount);
      expect(passage, className).toBeLessThan(max + 1);
    }
    const share = (name: string) => scripts.filter(({ className }) => className === name).length / scripts.length;
    expect(share("short")).toBeCloseTo(0.7, 1);
    expect(share("medium")).toBeCloseTo(0.25, 1);
    expect(share("long")).toBeCloseTo(0.05, 1);
    const shorts = scripts
      .filter(({ className }) => className === "short")
      .map(({ turns }) => turns[0]?.text.length ?? 0);
    const middle = shorts.sort((a, b) => a - b)[Math.floor(shorts.length / 2)];
    expect(middle).toBeLessThan(200 + question + (1_000 - 200) / 2);
  });

  it("have 1 to the most turns, and think before later ones only", () => {
    expect(new Set(scripts.map(({ turns }) => turns.length))).toEqual(new Set([1, 2, 3, 4]));
    const pauses = scripts.flatMap(({ turns }) => turns.slice(1).map(({ thinkMs }) => thinkMs));
    expect(scripts.every(({ turns }) => turns[0]?.thinkMs === 0)).toBe(true);
    expect(Math.max(...pauses)).toBeLessThanOrEqual(10_000);
    const mean = pauses.reduce((sum, pauseMs) => sum + pauseMs, 0) / pauses.length;
    expect(mean).toBeGreaterThan(1_700);
    expect(mean).toBeLessThan(2_300);
  });

  it("are the same for a seed, others for another, and a session does not depend on when it comes", () => {
    expect([...drawScripts(settings)]).toEqual(scripts);
    expect([...drawScripts({ ...settings, seed: 10 })][0]?.turns).not.toEqual(scripts[0]?.turns);
    const faster = [...drawScripts({ ...settings, ratePerS: 20 })];
    expect(faster.slice(0, 50).map(({ turns }) => turns)).toEqual(scripts.slice(0, 50).map(({ turns }) => turns));
  });
});

describe("the text", () => {
  it("is of the length that was asked for, ASCII, and book-like enough not to repeat itself at once", () => {
    const prose = drawProse(seededRandom(1), 5_000);
    expect(prose).toHaveLength(5_000);
    expect(prose).toMatch(/^[\n\x20-\x7e]+$/);
    const sentences = prose.split(/[.;] /);
    expect(new Set(sentences).size).toBeGreaterThan(sentences.length * 0.95);
  });

  it("holds every fact whole, also where facts crowd", () => {
    const facts = Array.from({ length: 12 }, (_, index) => ({ name: `Badoru${index}`, code: String(1000 + index) }));
    for (let seed = 0; seed < 50; seed++) {
      const passage = drawPassage(seededRandom(seed), 500, facts);
      for (const fact of facts) expect(passage.split(factText(fact))).toHaveLength(2);
    }
  });
});
