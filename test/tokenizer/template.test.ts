import { describe, expect, it } from "vitest";
import { QuireError } from "../../protocol/errors.ts";
import { compileChatTemplate } from "../../tokenizer/chat-template.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";

const user: ChatMessage[] = [{ role: "user", content: "hi" }];
const compile = (source: string | undefined) =>
  compileChatTemplate({ source, bosToken: "<s>", eosToken: "</s>", specials: ["<s>", "</s>"] });
const render = (source: string, messages: readonly ChatMessage[] = user): string =>
  compile(source).render(messages, { addGenerationPrompt: true });

function errorOf(run: () => unknown): QuireError {
  try {
    run();
  } catch (thrown) {
    if (thrown instanceof QuireError) return thrown;
    throw thrown;
  }
  throw new Error("nothing was thrown");
}

describe("chat templates", () => {
  it("see the tokens, the messages and the prompt flag", () => {
    const source =
      "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}" +
      "{% if add_generation_prompt %}[assistant]{% endif %}";
    expect(render(source)).toBe("<s>[user] hi</s>[assistant]");
    expect(compile(source).render(user, { addGenerationPrompt: false })).toBe("<s>[user] hi</s>");
  });

  it("render developer as system and leave the caller's messages alone", () => {
    const messages: ChatMessage[] = [{ role: "developer", content: "<s>", name: "n" }];
    expect(render("{{ messages[0].role }}:{{ messages[0].name }}", messages)).toBe("system:n");
    expect(messages).toEqual([{ role: "developer", content: "<s>", name: "n" }]);
  });

  it("have range, namespaces and no clock", () => {
    expect(render("{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(4, 0, -2) %}{{ i }}{% endfor %}")).toBe(
      "01242",
    );
    expect(render("{{ strftime_now is defined }}")).toBe("false");
  });

  it("refuse in their own words", () => {
    const error = errorOf(() => render("{{ raise_exception('Roles must alternate') }}"));
    expect([error.code, error.message, error.param]).toEqual(["invalid_request", "Roles must alternate", "messages"]);
  });

  it("without a template say so", () => {
    const error = errorOf(() => compile(undefined).render(user, { addGenerationPrompt: true }));
    expect(error.code).toBe("invalid_request");
  });

  it("that do not parse, fail or loop without end are the operator's error", () => {
    expect(errorOf(() => compile("{% for %}")).code).toBe("internal");
    expect(errorOf(() => render("{{ nope() }}")).code).toBe("internal");
    expect(errorOf(() => render("{% for i in range(1000000000) %}x{% endfor %}")).code).toBe("internal");
    expect(errorOf(() => compile("\uFDD0")).code).toBe("internal");
  });
});
