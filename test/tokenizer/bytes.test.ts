import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";
import { loadShared } from "./shared-data.ts";

const house = JSON.parse(readFileSync(new URL("../../weights/house-0/tokenizer.json", import.meta.url), "utf8"));
const { tokenizer } = openTokenizer({ tokenizerJson: house, tokenizerConfig: {} });
const whole = (ids: readonly number[]): string =>
  new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.filter((id) => id < 256)));

/** Bytes that are often nearly UTF-8: lead and continuation bytes at the borders of what is allowed. */
const byte = fc.oneof(
  fc.constantFrom(
    0x41,
    0x80,
    0x8f,
    0x90,
    0x9f,
    0xa0,
    0xbb,
    0xbf,
    0xc1,
    0xc2,
    0xdf,
    0xe0,
    0xe2,
    0xed,
    0xef,
    0xf0,
    0xf4,
    0xf5,
    0xff,
  ),
  fc.integer({ min: 0, max: 259 }),
);
const unit = fc.oneof(
  byte.map((id) => [id]),
  fc.string({ unit: "binary", maxLength: 3 }).map((text) => tokenizer.encode(text)),
);
const idsOf = fc.array(unit, { maxLength: 24 }).map((parts) => parts.flat());

describe("streams of bytes", () => {
  it("equal TextDecoder's whole decode, however they are cut, and never end in half a character", () => {
    fc.assert(
      fc.property(idsOf, fc.array(fc.integer({ min: 0, max: 7 })), (ids, cuts) => {
        const expected = whole(ids);
        expect(tokenizer.decode(ids)).toBe(expected);
        const decoder = tokenizer.decoder();
        let joined = "";
        let at = 0;
        for (const cut of [...cuts, ids.length]) {
          const delta = decoder.push(ids.slice(at, at + cut));
          expect(delta.isWellFormed()).toBe(true);
          joined += delta;
          at += cut;
        }
        expect(joined + decoder.flush()).toBe(expected);
        expect(decoder.push([65]) + decoder.flush()).toBe("A");
      }),
      { seed: 3, numRuns: 3_000 },
    );
  });

  it("hold a character back until it is whole, and give U+FFFD for what never became whole", () => {
    const decoder = tokenizer.decoder();
    const [a, b, c, d] = tokenizer.encode("😀") as [number, number, number, number];
    expect([[a], [b, c], [d]].map((ids) => decoder.push(ids))).toEqual(["", "", "😀"]);
    expect([decoder.push([65, a, b]), decoder.flush(), decoder.flush()]).toEqual(["A", "\uFFFD", ""]);
    expect(decoder.push(tokenizer.encode("\uFEFFx"))).toBe("\uFEFFx");
  });

  it("unpaired surrogates are encoded as TextEncoder does", () => {
    for (const text of ["\ud83d", "a\ude00b", "\ude00\ud83d", "\ud83d\ud83d\ude00"]) {
      expect(tokenizer.encode(text)).toEqual([...new TextEncoder().encode(text)]);
      expect(tokenizer.encode(text, { special: true })).toEqual([...new TextEncoder().encode(text)]);
    }
  });

  it("ids outside of the vocabulary are nothing", () => {
    expect(tokenizer.decode([65, 260, -1, 1e6, 66])).toBe("AB");
    expect(tokenizer.piece(1e6)).toEqual({ text: "", bytes: [] });
  });

  it("a megabyte encodes and decodes", () => {
    const text = "The code of Badoru is 4821. é😀\n".repeat(32_768);
    const ids = tokenizer.encode(text);
    expect(ids.length).toBe(new TextEncoder().encode(text).length);
    expect(tokenizer.decode(ids)).toBe(text);
  });
});

const gpt2 = loadShared("gpt2.tokenizer.json", "ggml-vocab-gpt-2.gguf");
if (typeof gpt2 === "string") {
  it.skip(`GPT-2 bytes (${gpt2})`, () => {});
} else {
  describe("GPT-2", () => {
    const { tokenizer: gpt } = openTokenizer({ tokenizerJson: gpt2.tokenizerJson, tokenizerConfig: {} });

    it("streams random ids as it decodes them whole", () => {
      fc.assert(
        fc.property(fc.array(fc.integer({ min: 0, max: 50_256 }), { maxLength: 40 }), (ids) => {
          const decoder = gpt.decoder();
          expect(ids.map((id) => decoder.push([id])).join("") + decoder.flush()).toBe(gpt.decode(ids));
          const bytes = ids.filter((id) => !gpt.isSpecial(id)).flatMap((id) => gpt.piece(id).bytes);
          expect(gpt.decode(ids)).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes)));
        }),
        { seed: 5, numRuns: 500 },
      );
    });

    it("takes white space as Oniguruma does: U+0085 is, U+FEFF is not", () => {
      const alone = (text: string): number[] => gpt.encode(text);
      expect(gpt.encode("\u0085\u0085a")).toEqual([...alone("\u0085"), ...alone("\u0085"), ...alone("a")]);
      expect(gpt.encode("\ufeff!")).toEqual(alone("\ufeff!"));
      expect(gpt.encode(" \ufeff")).toEqual(gpt.encode("x \ufeff").slice(1));
    });
  });
}
