import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { normalizeText } from "../../tokenizer/mark-order.ts";
import { compileTokenizer, openTokenizer } from "../../tokenizer/open.ts";
import { randomOf } from "./mixed-text.ts";
import { loadSharedModel, SHARED_MODELS } from "./shared-data.ts";

const MILLION = 1_000_000;
/** Enough where quadratic work would show as well. */
const LONG = 240_000;
const random = randomOf(5);
const word = Array.from({ length: MILLION }, () => String.fromCharCode(97 + Math.floor(random() * 26))).join("");
/** Two marks whose canonical order is the other one: normalizing by insertion moves each past all of the others. */
const marks = "\u0301\u0323";

/** Quadratic work on any of these would take from minutes to days; linear work takes a second or two on a busy machine. */
const WORST_MS_MAX = 20_000;
const texts: readonly [string, string][] = [
  ["100,000 equal letters", "a".repeat(100_000)],
  ["a word of a million letters", word],
  ["spaces", " ".repeat(LONG)],
  ["line breaks", "\n".repeat(LONG)],
  ["white space before a word", `${" \t\u3000".repeat(LONG / 4)}x`],
  ["emoji joined to one", "👩‍".repeat(LONG / 3)],
  ["combining marks", `a${marks.repeat(LONG / 4)}`],
  ["halves of pairs", "\ud83d".repeat(LONG / 2)],
  ["apostrophes", "'".repeat(LONG)],
  ["digits", "7".repeat(LONG)],
  ["beginnings of control tokens", "<|".repeat(LONG / 2)],
];

for (const model of SHARED_MODELS) {
  const shared = loadSharedModel(model);
  if (typeof shared === "string") {
    it.skip(`worst cases of ${model} (${shared})`, () => {});
    continue;
  }
  describe(`worst cases of ${model}`, () => {
    const json = { ...(shared.tokenizerJson as object) };
    // As the published file of Qwen2 has it; the shared one was made without.
    const tokenizerJson = model === "Qwen2" ? { ...json, normalizer: { type: "NFC" } } : json;
    const tokenizerTables = (compileTokenizer(tokenizerJson) as Uint8Array<ArrayBuffer>).buffer;
    const { tokenizer } = openTokenizer({ tokenizerTables, tokenizerConfig: {} });

    it.each(texts)("%s", { timeout: WORST_MS_MAX * 2 }, (_, text) => {
      const began = performance.now();
      const ids = tokenizer.encode(text);
      expect(performance.now() - began).toBeLessThan(WORST_MS_MAX);
      const wellFormed = text.toWellFormed();
      expect(tokenizer.decode(ids)).toBe(model === "Qwen2" ? normalizeText(wellFormed, "NFC") : wellFormed);
    });
  });
}

describe("a word longer than a part", () => {
  const shared = loadSharedModel("GPT-2");
  if (typeof shared === "string") {
    it.skip(`is cut (${shared})`, () => {});
    return;
  }
  const { tokenizer } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} });

  it("is cut after 2^20 units, never inside of a pair", { timeout: WORST_MS_MAX * 2 }, () => {
    const part = 2 ** 20;
    const pairs = `${"a".repeat(part - 1)}\u{10437}bc`;
    const ids = tokenizer.encode(pairs);
    expect(tokenizer.decode(ids)).toBe(pairs);
    expect(ids.slice(-20)).toEqual(
      [...tokenizer.encode("a".repeat(part - 1)), ...tokenizer.encode("\u{10437}bc")].slice(-20),
    );
  });

  it("of characters of many bytes is cut after 2^20 bytes, and whole when it is read", {
    timeout: WORST_MS_MAX * 2,
  }, () => {
    const han = "\u6f22\u5b57".repeat(2 ** 18);
    expect(tokenizer.decode(tokenizer.encode(han))).toBe(han);
  });
});

describe("a text of more ids than are wanted", () => {
  const read = (name: string): unknown =>
    JSON.parse(readFileSync(new URL(`../../weights/house/${name}`, import.meta.url), "utf8"));
  const { tokenizer } = openTokenizer({ tokenizerJson: read("tokenizer.json"), tokenizerConfig: {} });
  const control = tokenizer.piece(2).text;

  it.each([
    ["words", "some words ".repeat(5_000)],
    ["control tokens", control.repeat(10_000)],
    ["control tokens between words", `some words${control}`.repeat(5_000)],
  ])("is read up to there, of %s", (_, text) => {
    const whole = tokenizer.encode(text, { special: true });
    expect(tokenizer.isSpecial(2)).toBe(true);
    for (const countMax of [0, 1, 1_000, whole.length - 1, whole.length, whole.length + 1]) {
      const ids = tokenizer.encode(text, { special: true, countMax });
      // A piece is read to its end: here none has more ids than eight.
      if (countMax >= whole.length) expect(ids).toEqual(whole);
      else expect(ids).toEqual(whole.slice(0, ids.length));
      expect(ids.length).toBeGreaterThan(Math.min(countMax, whole.length - 1));
      expect(ids.length).toBeLessThanOrEqual(countMax + 8);
    }
  });

  it("stops between the parts of one long word", () => {
    const long = "x".repeat(3 * 2 ** 20);
    expect(tokenizer.encode(long, { countMax: 1 }).length).toBeLessThanOrEqual(2 ** 20);
  });
});

describe("normalizing", () => {
  it("equals the runtime's, also for long runs of marks of any classes", () => {
    // Marks of many classes, ones that decompose, starters among marks, letters that become marks.
    const alphabet = [
      ..."\u0301\u0323\u0334\u0345\u05b0\u0344\u0340\u0f71\u0f72\u0f73\u3099\uff9e\u20dd\u0903\u{1d165}\u{1d16e}e\u1100",
    ];
    const runs = randomOf(9);
    let longest = 0;
    for (let round = 0; round < 200; round++) {
      const from = Math.floor(runs() * alphabet.length);
      const some = alphabet.slice(from, from + 2 + Math.floor(runs() * 8));
      const length = Math.floor(runs() * 200);
      const text = `e${Array.from({ length }, () => some[Math.floor(runs() * some.length)]).join("")}x`;
      longest = Math.max(longest, text.length);
      for (const form of ["NFC", "NFD", "NFKC", "NFKD"] as const) {
        expect(normalizeText(text, form)).toBe(text.normalize(form));
      }
    }
    expect(longest).toBeGreaterThan(150);
  });
});
