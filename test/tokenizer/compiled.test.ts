import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { QuireError } from "../../protocol/errors.ts";
import type { Tokenizer } from "../../tokenizer/contract.ts";
import { murmur3 } from "../../tokenizer/murmur3.ts";
import { compileTokenizer, openTokenizer } from "../../tokenizer/open.ts";
import { mixedTexts, randomOf } from "./mixed-text.ts";
import { loadSharedModel, SHARED_MODELS } from "./shared-data.ts";

const SEED = 3;
const template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";
const house = JSON.parse(readFileSync(new URL("../../weights/house-0/tokenizer.json", import.meta.url), "utf8"));
const compile = (json: unknown): ArrayBuffer => (compileTokenizer(json) as Uint8Array<ArrayBuffer>).buffer;

/** Seven letters, some bytes and the merges of "abc": small enough to break every word of its file. */
const small = {
  added_tokens: [{ id: 16, content: "<end>", special: true, normalized: false }],
  normalizer: { type: "Prepend", prepend: "▁" },
  pre_tokenizer: null,
  decoder: {
    type: "Sequence",
    decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }],
  },
  model: {
    type: "BPE",
    unk_token: "<unk>",
    byte_fallback: true,
    vocab: Object.fromEntries(
      [..."▁abcdef", "ab", "abc", "▁a", "<unk>", "<0xC3>", "<0xA9>", "de", "def", "cd"].map((token, id) => [token, id]),
    ),
    merges: ["a b", "ab c", "▁ a", "d e", "de f", "c d"],
  },
};

/** What a tokenizer says about texts and ids, in one value. */
function behaviour(tokenizer: Tokenizer, texts: readonly string[]) {
  const encoded = texts.map((text) => tokenizer.encode(text, { special: true }));
  return {
    encoded,
    plain: texts.map((text) => tokenizer.encode(text)),
    decoded: encoded.map((ids) => tokenizer.decode(ids)),
    size: tokenizer.vocabularySize,
    tokens: Array.from({ length: 300 }, (_, id) => [tokenizer.piece(id), tokenizer.isSpecial(id)]),
    ids: ["the", "Ġthe", "▁the", "<|end|>", "<|endoftext|>", "<s>", "a", "none such"].map((token) =>
      tokenizer.idOf(token),
    ),
  };
}

describe("a compiled tokenizer is as its JSON", () => {
  const models: [string, unknown][] = [
    ["house-0", house],
    ["a small one", small],
  ];
  for (const model of SHARED_MODELS) {
    const shared = loadSharedModel(model);
    if (typeof shared === "string") it.skip(`${model} (${shared})`, () => {});
    else models.push([model, shared.tokenizerJson]);
  }
  it.each(models)("%s", (_, json) => {
    const tokenizerConfig = { chat_template: template };
    const fromJson = openTokenizer({ tokenizerJson: json, tokenizerConfig });
    const compiled = openTokenizer({ tokenizerTables: compile(json), tokenizerConfig });
    const texts = [...mixedTexts(SEED, 20_000), "<|end|><|user|><s> <|endoftext|>", "abcdefcab é<end>def"];
    expect(behaviour(compiled.tokenizer, texts)).toEqual(behaviour(fromJson.tokenizer, texts));
    expect(compiled.frame).toEqual(fromJson.frame);
    const messages = [{ role: "user" as const, content: "<|end|>a<end>" }];
    const rendered = compiled.template.render(messages, { addGenerationPrompt: true });
    expect(rendered).toBe(fromJson.template.render(messages, { addGenerationPrompt: true }));
  });

  it("equal vocabularies give equal files", () => {
    expect(new Uint8Array(compile(house))).toEqual(new Uint8Array(compile(structuredClone(house))));
  });

  it("the checksum is MurmurHash3", () => {
    // From Appleby's reference implementation: "test" and four 0xFF bytes, seed 0.
    expect(murmur3(new TextEncoder().encode("test"))).toBe(0xba6bd213);
    expect(murmur3(Uint8Array.of(0xff, 0xff, 0xff, 0xff))).toBe(0x76293b50);
  });

  it("what is no byte-pair encoding has no compiled form", () => {
    expect(compileTokenizer({ model: { type: "Unigram", vocab: [] } })).toBeUndefined();
  });
});

describe("a file that is not sound", () => {
  const sound = new Uint8Array(compile(small));
  const open = (file: Uint8Array) => openTokenizer({ tokenizerTables: file.slice().buffer, tokenizerConfig: {} });
  const refusalOf = (file: Uint8Array): string => {
    try {
      open(file);
    } catch (error) {
      expect(error).toBeInstanceOf(QuireError);
      return (error as QuireError).message;
    }
    return "";
  };
  /** A forger's file: damaged, with a checksum that matches. */
  const sealed = (file: Uint8Array): Uint8Array => {
    new DataView(file.buffer).setUint32(12, murmur3(file.subarray(16)), true);
    return file;
  };

  it("is refused wherever it is cut off", () => {
    for (let length = 0; length < sound.length; length++) {
      expect(refusalOf(sound.subarray(0, length))).toMatch(/^The compiled tokenizer cannot be used: it is cut off\.$/);
    }
    expect(refusalOf(new Uint8Array(sound.length + 4))).not.toBe("");
  });

  it("is refused for any bit that is not as it was", () => {
    for (let bit = 0; bit < sound.length * 8; bit += 3) {
      const file = sound.slice();
      file[bit >> 3] = (file[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(refusalOf(file)).toMatch(/^The compiled tokenizer cannot be used: [^\n]+\.$/);
    }
  });

  it("says that it is something else, or of another version", () => {
    expect(refusalOf(new TextEncoder().encode('{"model": "JSON"}'.repeat(20)))).toContain("it is something else");
    const file = sound.slice();
    new DataView(file.buffer).setUint32(4, 2, true);
    expect(refusalOf(file)).toContain("it is of version 2, not 1: compile the tokenizer again");
  });

  it("is refused in one line or works, whatever words a forger puts into it", () => {
    const random = randomOf(SEED);
    const words = [0, 1, 2, 5, 17, 255, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff];
    const texts = ["abcdef é", "def▁abc", "<end>xyz"];
    let refused = 0;
    for (let at = 16; at + 4 <= sound.length; at += 4) {
      const file = sound.slice();
      const view = new DataView(file.buffer);
      view.setUint32(at, words[Math.floor(random() * words.length)] as number, true);
      const message = refusalOf(sealed(file));
      if (message !== "") {
        refused++;
        expect(message).toMatch(/^[^\n]+$/);
        continue;
      }
      const { tokenizer } = open(file);
      for (const text of texts) tokenizer.decode(tokenizer.encode(text, { special: true }));
    }
    expect(refused).toBeGreaterThan(30);
  });

  it("cannot make a look-up go on for ever", () => {
    const view = new DataView(sound.buffer);
    // charSlots, mergeSlots, tokenSlots: sections 2, 3 and 4 of the header's list.
    for (const [section, name] of [
      [2, "character table"],
      [3, "merges"],
      [4, "token table"],
    ] as const) {
      const offset = view.getUint32((6 + section * 2) * 4, true);
      const length = view.getUint32((7 + section * 2) * 4, true);
      const file = sound.slice();
      new Int32Array(file.buffer, offset, length / 4).fill(1);
      expect(refusalOf(sealed(file))).toMatch(new RegExp(`${name}.* no free slot`));
    }
  });
});
