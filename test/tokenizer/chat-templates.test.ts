import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import { describe, expect, it } from "vitest";
import { toQuireError } from "../../protocol/errors.ts";
import { compileChatTemplate } from "../../tokenizer/chat-template.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { unmark } from "../../tokenizer/marks.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import type { OracleOptions } from "./agree.ts";
import { loadSharedModel } from "./shared-data.ts";
import {
  CONVERSATIONS,
  EXPRESSIONS,
  FAMILIES,
  type Family,
  openFamily,
  type Rendering,
  smallTokenizerJson,
} from "./templates/renderings.ts";

const NAMES = Object.keys(CONVERSATIONS);
const INJECTED = "special tokens in the contents";
const conversation = (name: string): ChatMessage[] => CONVERSATIONS[name] as ChatMessage[];

function renderingOf(run: () => string): Rendering {
  try {
    return { text: unmark(run()) };
  } catch (thrown) {
    const error = toQuireError(thrown);
    expect(error.code, error.message).toBe("invalid_request");
    return { error: error.message };
  }
}

/** Text of the reference, where it does not refuse. */
function textOf(family: Family, name: string, withPrompt: boolean): string | undefined {
  const rendering = family.renderings[name]?.[withPrompt ? 1 : 0];
  return rendering && "text" in rendering ? rendering.text : undefined;
}

describe.each(FAMILIES)("the chat template of $name", (family) => {
  const { tokenizer, template } = openFamily(family);

  it.each(NAMES)("renders as the reference does: %s", (name) => {
    for (const addGenerationPrompt of [false, true]) {
      const expected = family.renderings[name]?.[addGenerationPrompt ? 1 : 0];
      expect(expected).toBeDefined();
      expect(renderingOf(() => template.render(conversation(name), { addGenerationPrompt }))).toEqual(expected);
    }
  });

  it("gives the ids that the reference's tokenizer gives of the reference's text", () => {
    const options = { clean_up_tokenization_spaces: false } as OracleOptions;
    const oracle = new Oracle(smallTokenizerJson(family) as object, options);
    let tokenCount = 0;
    for (const name of NAMES.filter((name) => !name.includes("special tokens"))) {
      const text = textOf(family, name, true);
      if (text === undefined) continue;
      const ids = tokenizer.encode(template.render(conversation(name), { addGenerationPrompt: true }), {
        special: true,
      });
      expect(ids, name).toEqual(oracle.encode(text, { add_special_tokens: false }).ids);
      tokenCount += ids.length;
    }
    expect(tokenCount).toBeGreaterThan(400);
  });

  it("keeps special tokens in contents as text", () => {
    const controls = (text: string) =>
      tokenizer.encode(text, { special: true }).filter((id) => tokenizer.isSpecial(id));
    const harmless = conversation(INJECTED).map((message) => ({ ...message, content: "harmless" }));
    const rendered = template.render(conversation(INJECTED), { addGenerationPrompt: true });
    const ids = tokenizer.encode(rendered, { special: true });
    expect(tokenizer.decode(ids, { special: true })).toBe(textOf(family, INJECTED, true));
    const ofHarmless = controls(template.render(harmless, { addGenerationPrompt: true }));
    expect(ids.filter((id) => tokenizer.isSpecial(id))).toEqual(ofHarmless);
    expect(ofHarmless.length).toBeGreaterThan(0);
    // The reference itself is fooled: what is tested here is there to be found.
    expect(controls(textOf(family, INJECTED, true) ?? "").length).toBeGreaterThan(ofHarmless.length);
  });
});

describe("Python in templates", () => {
  it.each(EXPRESSIONS.rendered)("%s", (source, expected) => {
    const template = compileChatTemplate({ source, bosToken: "", eosToken: "", specials: [] });
    expect(renderingOf(() => template.render(EXPRESSIONS.messages, { addGenerationPrompt: false }))).toEqual(expected);
  });
});

describe("the reference", () => {
  it("refuses some conversations and renders most", () => {
    const renderings = FAMILIES.flatMap((family) =>
      NAMES.map((name) => family.renderings[name]?.[1] ?? { error: "none" }),
    );
    const refusedCount = renderings.filter((rendering) => "error" in rendering).length;
    expect(renderings.length).toBe(10 * NAMES.length);
    expect(refusedCount).toBe(8);
  });
});

const shared = loadSharedModel("Qwen2");
const reason = typeof shared === "string" ? ` (${shared})` : "";

describe.skipIf(typeof shared === "string")(`Qwen's own vocabulary${reason}`, () => {
  it.each(["qwen2.5", "qwen3"])("reads the rendering of %s as the reference's text", (name) => {
    if (typeof shared === "string") throw new Error(shared);
    const family = FAMILIES.find((one) => one.name === name) as Family;
    const tokenizerConfig = { ...family.tokens, chat_template: family.source };
    const { tokenizer, template } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig });
    for (const name of NAMES) {
      const rendered = template.render(conversation(name), { addGenerationPrompt: true });
      const ids = tokenizer.encode(rendered, { special: true });
      const text = textOf(family, name, true) ?? "";
      const controls = ids.filter((id) => tokenizer.isSpecial(id));
      if (name === INJECTED) expect(controls.length).toBeLessThan(tokenizer.encode(text, { special: true }).length);
      else if (!name.includes("special tokens")) expect(ids, name).toEqual(tokenizer.encode(text, { special: true }));
      expect(tokenizer.decode(ids, { special: true }), name).toBe(text);
    }
  });
});
