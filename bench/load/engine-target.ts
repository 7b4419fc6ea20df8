/** An engine as target, without an edge: token ids in frames, the log kept here. Shows what the edge adds. */
import { randomUUID } from "node:crypto";
import { QuireError } from "../../protocol/errors.ts";
import {
  type GenerateRequest,
  PROTOCOL_VERSION,
  type SamplingParams,
  type SelectionRequest,
  type Span,
} from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import type { ChatMessage, ChatTemplate, Tokenizer } from "../../tokenizer/contract.ts";
import { type CallEvent, type EngineCall, laterEvent, openEngineCall } from "../../workers/session-log/engine-call.ts";
import { cutSpans, joinSpans } from "../../workers/session-log/spans.ts";
import { deleteStored } from "../../workers/session-log/stored-session.ts";
import {
  type Conversation,
  checkUsage,
  REFERENCE_TENANT,
  type Target,
  type TurnCall,
  TurnError,
  type TurnUsage,
} from "./target.ts";

/** How turns are asked for. */
export interface EngineTargetOptions {
  url: string;
  /** As the engine calls itself: requests are signed for it. */
  engineId: string;
  /** Secret that the engine was started with; undefined where it has none. */
  engineKey: string | undefined;
  /** By tenant; lower-case hex, names what the engine stores. */
  namespaces: readonly string[];
  /** Of {@link REFERENCE_TENANT}. */
  referenceNamespace: string;
  model: string;
  words: { tokenizer: Tokenizer; template: ChatTemplate; stopTokens: number[] };
  maxTokens: number;
  selection: SelectionRequest;
  /** What a client allows for its first token; undefined: it waits. */
  firstTokenMsMax?: number | undefined;
  description: string;
}

const greedy: SamplingParams = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  seed: 0,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repetitionPenalty: 1,
  logitBias: [],
};

/** Makes the target; sends nothing. */
export function engineTarget(options: EngineTargetOptions): Target {
  return {
    description: options.description,
    openConversation: (tenant = 0) => new EngineConversation(options, namespaceOf(options, tenant)),
  };
}

function namespaceOf({ namespaces, referenceNamespace }: EngineTargetOptions, tenant: number): string {
  return tenant === REFERENCE_TENANT ? referenceNamespace : namespaces[tenant % namespaces.length]!;
}

class EngineConversation implements Conversation {
  readonly #options: EngineTargetOptions;
  readonly #namespace: string;
  readonly #id = `bench-${randomUUID()}`;
  readonly #messages: ChatMessage[] = [];
  #log: number[] = [];
  #spans: Span[] = [];

  constructor(options: EngineTargetOptions, namespace: string) {
    this.#options = options;
    this.#namespace = namespace;
  }

  async send({ text, signal, onText }: TurnCall): Promise<TurnUsage> {
    const { words, maxTokens } = this.#options;
    const messages: ChatMessage[] = [...this.#messages, { role: "user", content: text }];
    const rendered = words.template.render(messages, { addGenerationPrompt: true });
    const prompt = words.tokenizer.encode(rendered, { special: true });
    const turnStart = Math.min(commonPrefixLength(this.#log, prompt), prompt.length - 1);
    const spans = cutSpans(this.#spans, turnStart);
    try {
      const call = await openEngineCall({
        ...this.#peer(),
        request: this.#request(prompt, turnStart, spans),
        signal,
      });
      const decoder = words.tokenizer.decoder();
      const generated: number[] = [];
      let reply = "";
      for await (const event of eventsOf(call)) {
        if (event.type === "tokens") {
          const ids = bytesToIds(event.ids);
          generated.push(...ids);
          const delta = decoder.push(ids);
          reply += delta;
          if (delta !== "") await onText(delta);
        } else {
          const usage = checkUsage(event.usage, maxTokens);
          this.#log = [...prompt, ...generated];
          this.#spans = joinSpans(spans, event.spans, this.#log.length);
          this.#messages.splice(0, Number.POSITIVE_INFINITY, ...messages, { role: "assistant", content: reply });
          return usage;
        }
      }
    } catch (thrown) {
      throw turnError(thrown);
    }
    throw new TurnError("bad_stream", "The engine's answer ended without its terminal event.");
  }

  end(): Promise<void> {
    return deleteStored({ ...this.#peer(), namespace: this.#namespace, sessionId: this.#id });
  }

  /** Nobody picks this engine, so nobody asks for its context. */
  #peer() {
    const engine = { engineId: this.#options.engineId, url: this.#options.url, contextTokensMax: 0 };
    return { engine, engineKey: this.#options.engineKey ?? "", fetch: globalThis.fetch };
  }

  #request(prompt: readonly number[], turnStart: number, spans: Span[]): GenerateRequest {
    const { model, maxTokens, words, selection, firstTokenMsMax } = this.#options;
    return {
      version: PROTOCOL_VERSION,
      requestId: `bench-${randomUUID()}`,
      model,
      namespace: this.#namespace,
      session: { id: this.#id },
      tokens: idsToBytes(prompt),
      turnStart,
      spans,
      maxTokens,
      stopTokens: words.stopTokens,
      sampling: greedy,
      selection,
      firstTokenMsMax,
    };
  }
}

function commonPrefixLength(a: readonly number[], b: readonly number[]): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length += 1;
  return length;
}

function turnError(thrown: unknown): TurnError {
  if (thrown instanceof TurnError) return thrown;
  if (thrown instanceof QuireError) {
    const { retryAfterMs } = thrown;
    return new TurnError(thrown.code, thrown.message, {
      isRefusal: thrown.status === 429,
      retryAfterMs,
      cause: thrown,
    });
  }
  return new TurnError("client", String(thrown), { cause: thrown });
}

/** What an engine says of a generation, one by one. */
async function* eventsOf(call: EngineCall): AsyncGenerator<CallEvent> {
  try {
    for (const value of call.first) yield laterEvent(value);
    for (let batch = await call.next(); batch; batch = await call.next())
      for (const value of batch) yield laterEvent(value);
  } finally {
    await call.close();
  }
}
