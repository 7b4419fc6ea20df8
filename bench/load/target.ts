/** What a load is put on: conversations that answer, whatever is behind them. */
import type { ReuseSource } from "../../protocol/generate.ts";

/** Tokens of one turn, and what of the prompt did not have to be computed again. */
export interface TurnUsage {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  /** Sums to `cachedTokens`. */
  source: ReuseSource;
}

/** One turn to be sent. */
export interface TurnCall {
  text: string;
  signal: AbortSignal;
  /** Called as soon as each piece of the reply is there; the next is not read before it resolves (a slow reader takes its time). */
  onText(delta: string): void | Promise<void>;
}

/** One conversation; one turn at a time. */
export interface Conversation {
  /**
   * Sends a user's message and resolves when its reply is complete.
   * @throws {TurnError} for everything else.
   */
  send(call: TurnCall): Promise<TurnUsage>;
  /** Forgets what the target holds of it. @throws when the target does not say that it did. */
  end(signal: AbortSignal): Promise<void>;
}

/** The tenant of conversations that are to find nothing of the run's: what is compared with the run is computed anew. */
export const REFERENCE_TENANT = -1;

/** Something that holds conversations. */
export interface Target {
  /** What is measured, in words. */
  readonly description: string;
  /**
   * @param tenant number of the tenant whose conversation it is; a target with fewer takes it modulo their count. {@link REFERENCE_TENANT}: one
   * that no turn of the run belonged to, where the target can have such.
   */
  openConversation(tenant?: number): Conversation;
}

interface TurnErrorOptions {
  isRefusal?: boolean;
  retryAfterMs?: number | undefined;
  cause?: unknown;
}

/** A turn that did not come to its end. */
export class TurnError extends Error {
  override readonly name = "TurnError";
  /** What the report counts it under. */
  readonly code: string;
  /** Refused for want of room (HTTP 429): a load over the limit may expect it. */
  readonly isRefusal: boolean;
  /** When a refused client may come back, where the target said. */
  readonly retryAfterMs: number | undefined;

  constructor(code: string, message: string, options: TurnErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.isRefusal = options.isRefusal ?? false;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/**
 * Checks counts that any right answer satisfies.
 * @throws {TurnError} `bad_usage` naming what does not add up.
 */
export function checkUsage(usage: TurnUsage, maxTokens: number): TurnUsage {
  const { promptTokens, completionTokens, cachedTokens, source } = usage;
  const refuse = (what: string): never => {
    throw new TurnError("bad_usage", `The usage does not add up: ${what}.`);
  };
  const counts = [promptTokens, completionTokens, cachedTokens, source.device, source.host, source.store];
  if (!counts.every((count) => Number.isSafeInteger(count) && count >= 0)) refuse("a count is missing");
  if (promptTokens === 0) refuse("a prompt without tokens");
  if (completionTokens > maxTokens) refuse(`${completionTokens} tokens where ${maxTokens} were allowed`);
  if (cachedTokens > promptTokens) refuse("more cached tokens than prompt tokens");
  if (source.device + source.host + source.store !== cachedTokens) refuse("sources do not sum to the cached tokens");
  return usage;
}
