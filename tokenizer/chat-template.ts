/** Chat templates of Hugging Face models, through @huggingface/jinja. */
import { Environment, Interpreter, Template } from "@huggingface/jinja";
import { QuireError } from "../protocol/errors.ts";
import type { ChatMessage, ChatTemplate } from "./contract.ts";
import { hasMarkCharacters, textMarker } from "./marks.ts";
import { callPython, PYTHON_FUNCTIONS } from "./template-python.ts";

/** What a template is compiled from. */
export interface ChatTemplateParts {
  /** Jinja source, or undefined for a model without one: then every `render` is refused. */
  source: string | undefined;
  bosToken: string;
  eosToken: string;
  /** Contents of all special tokens: where they stand in a message they are marked as text. */
  specials: readonly string[];
  /** Given when special tokens are looked for in normalized text: contents are marked as they will look then. */
  normalize?: ((text: string) => string) | undefined;
}

/**
 * Compiles a chat template once. The template sees `messages`, `add_generation_prompt`, `bos_token`, `eos_token`,
 * `raise_exception` and `range`, and `tools` and `documents` as none; there is no clock (`strftime_now` is undefined, as templates that use it allow for), so
 * equal messages give equal text.
 * @throws {QuireError} `internal` for a template that does not parse.
 */
export function compileChatTemplate(parts: ChatTemplateParts): ChatTemplate {
  const { source } = parts;
  if (source === undefined) {
    return {
      render() {
        throw new QuireError("invalid_request", "This model has no chat template: use /v1/completions.");
      },
    };
  }
  const program = parse(source);
  const mark = textMarker(parts.specials);
  const normalize = parts.normalize ?? ((same: string) => same);
  const marked = (text: string) => mark(normalize(text.toWellFormed()));
  // The same for every rendering, which writes into a scope of its own.
  const shared = new Environment();
  for (const [name, value] of Object.entries(globals())) shared.set(name, value);
  shared.set("bos_token", parts.bosToken);
  shared.set("eos_token", parts.eosToken);
  return {
    render(messages, options) {
      const environment = new Environment(shared);
      environment.set("add_generation_prompt", options.addGenerationPrompt);
      environment.set(
        "messages",
        messages.map((message) => markMessage(message, marked)),
      );
      try {
        return String(new Interpreter(environment).run(program).value);
      } catch (thrown) {
        if (thrown instanceof QuireError) throw thrown;
        throw new QuireError("internal", "The chat template of this model failed on these messages.", {
          cause: thrown,
        });
      }
    },
  };
}

function parse(source: string): Template["parsed"] {
  if (hasMarkCharacters(source)) {
    throw new QuireError("internal", "chat template: characters U+FDD0 to U+FDDF are not supported");
  }
  try {
    const program = new Template(source).parsed;
    callPython(program);
    return program;
  } catch (cause) {
    throw new QuireError("internal", "chat template: does not parse", { cause });
  }
}

function markMessage(message: ChatMessage, mark: (text: string) => string): Record<string, string> {
  const marked: Record<string, string> = {
    role: message.role === "developer" ? "system" : message.role,
    content: mark(message.content),
  };
  if (message.name !== undefined) marked.name = mark(message.name);
  return marked;
}

function globals(): Record<string, unknown> {
  return {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    // The reference always defines these two.
    tools: null,
    documents: null,
    ...PYTHON_FUNCTIONS,
    range,
    raise_exception: (message: unknown) => {
      throw new QuireError("invalid_request", String(message), { param: "messages" });
    },
  };
}

const RANGE_COUNT_MAX = 65_536;

function range(first: number, last?: number, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last];
  if (step === 0 || Math.abs((stop - start) / step) > RANGE_COUNT_MAX) {
    throw new QuireError("internal", "chat template: range() without an end");
  }
  const values: number[] = [];
  for (let value = start; step > 0 ? value < stop : value > stop; value += step) values.push(value);
  return values;
}
