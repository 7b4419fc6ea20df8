/** What crosses the wire, and what it looks like in this library. */
import type { EngineUsage, SelectionRequest } from "../protocol/generate.ts";
import { isRecord, QuireConnectionError } from "./errors.ts";

/** One message of a conversation. */
export interface Message {
  role: "system" | "developer" | "user" | "assistant";
  content: string;
  name?: string;
}

/** What a reply is sampled with, and how its attention selects; absent fields take the server's defaults. */
export interface SendOptions {
  maxTokens?: number;
  /** 0 is greedy. */
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  seed?: number;
  stop?: string | readonly string[];
  frequencyPenalty?: number;
  presencePenalty?: number;
  repetitionPenalty?: number;
  /**
   * The server goes on when the connection is lost, and the reply is resumed without a gap. Default true; with false the server ends a
   * reply whose reader went away, also one that fell silent without a word, and a lost connection is an error, also before the first token: the turn may
   * be in the session's log.
   */
  resumable?: boolean;
  selection?: { policy?: SelectionRequest["policy"]; budgetTokens?: number; exact?: boolean };
}

/** What the engine did for a reply: reuse, bytes moved, pages selected. */
export type QuireUsage = Partial<Omit<EngineUsage, "promptTokens" | "completionTokens" | "cachedTokens">> & {
  sessionId?: string;
  /** Engines that served the turn, in order: more than one when one was lost. */
  engines?: string[];
};

/** Tokens of a reply, and how many of the prompt did not have to be computed again. */
export interface Usage {
  promptTokens: number;
  completionTokens: number;
  totalTokens: number;
  cachedTokens: number;
  quire: QuireUsage;
}

/** "stop" (a stop string or the model's own end), "length" (a limit), or a word of a later server. */
export type FinishReason = "stop" | "length" | (string & {});

const SEND_FIELDS = {
  maxTokens: "max_tokens",
  temperature: "temperature",
  topP: "top_p",
  topK: "top_k",
  minP: "min_p",
  seed: "seed",
  stop: "stop",
  frequencyPenalty: "frequency_penalty",
  presencePenalty: "presence_penalty",
  repetitionPenalty: "repetition_penalty",
} as const satisfies Record<Exclude<keyof SendOptions, "selection" | "resumable">, string>;

/** The body of a streamed turn of a session: only the new messages, everything else is in the session's log. */
export function turnBody(
  turn: { model: string; sessionId: string; messages: readonly Message[] },
  options: SendOptions,
): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model: turn.model,
    messages: turn.messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const [option, field] of Object.entries(SEND_FIELDS)) {
    const value = options[option as keyof typeof SEND_FIELDS];
    if (value !== undefined) body[field] = value;
  }
  const quire: Record<string, unknown> = { session_id: turn.sessionId, resumable: options.resumable ?? true };
  const { selection } = options;
  if (selection !== undefined) {
    quire.selection = { policy: selection.policy, budget_tokens: selection.budgetTokens, exact: selection.exact };
  }
  return { ...body, quire };
}

/** What one chunk of a streamed completion brings. */
export interface Chunk {
  delta: string;
  finishReason: FinishReason | undefined;
  usage: Usage | undefined;
}

/**
 * Reads a `chat.completion.chunk`.
 * @throws {QuireConnectionError} for an object of another shape.
 */
export function readChunk(value: unknown): Chunk {
  if (!isRecord(value) || !Array.isArray(value.choices)) {
    throw new QuireConnectionError("The server sent an event that is not a part of a completion.");
  }
  const choice: unknown = value.choices[0];
  const fields = isRecord(choice) ? choice : {};
  const delta = isRecord(fields.delta) ? fields.delta.content : undefined;
  const { finish_reason: finishReason } = fields;
  return {
    delta: typeof delta === "string" ? delta : "",
    finishReason: typeof finishReason === "string" ? finishReason : undefined,
    usage: isRecord(value.usage) ? readUsage(value.usage) : undefined,
  };
}

function readUsage(usage: Record<string, unknown>): Usage {
  const details = isRecord(usage.prompt_tokens_details) ? usage.prompt_tokens_details : {};
  const count = (value: unknown): number => (typeof value === "number" ? value : 0);
  return {
    promptTokens: count(usage.prompt_tokens),
    completionTokens: count(usage.completion_tokens),
    totalTokens: count(usage.total_tokens),
    cachedTokens: count(details.cached_tokens),
    quire: isRecord(usage.quire) ? (camelCase(usage.quire) as QuireUsage) : {},
  };
}

/** Names of a JSON object from snake_case to camelCase, nested objects too. */
function camelCase(record: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(record).map(([name, value]) => [
      name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()),
      isRecord(value) ? camelCase(value) : value,
    ]),
  );
}
