/** A Quire edge as target, through the SDK: what a user's program sees. */
import {
  type Quire,
  QuireApiError,
  QuireConnectionError,
  type SendOptions,
  type Session,
  type Usage,
} from "../../sdk/index.ts";
import { type Conversation, checkUsage, type Target, type TurnCall, TurnError, type TurnUsage } from "./target.ts";

/** How turns are asked for. */
export interface EdgeTargetOptions {
  /** By number of the tenant, and {@link REFERENCE_TENANT}: each with its own key, where there is more than one. */
  quireOf(tenant: number): Quire;
  model: string;
  send: SendOptions & { maxTokens: number };
  description: string;
}

/** Makes the target; sends nothing. */
export function edgeTarget(options: EdgeTargetOptions): Target {
  return {
    description: options.description,
    openConversation: (tenant = 0) => new EdgeConversation(options, tenant),
  };
}

class EdgeConversation implements Conversation {
  readonly #session: Session;
  readonly #maxTokens: number;
  /** Tokens that the session's log holds at least: those of the turns that were answered. */
  #logTokens = 0;

  constructor({ quireOf, model, send }: EdgeTargetOptions, tenant: number) {
    this.#session = quireOf(tenant).session({ model, ...send });
    this.#maxTokens = send.maxTokens;
  }

  async send({ text, signal, onText }: TurnCall): Promise<TurnUsage> {
    try {
      const reply = this.#session.send(text, { signal });
      for await (const delta of reply) await onText(delta);
      const usage = checkUsage(turnUsage(await reply.usage), this.#maxTokens);
      if (usage.promptTokens <= this.#logTokens)
        throw new TurnError(
          "lost_turn",
          `A prompt of ${usage.promptTokens} tokens where ${this.#logTokens} were said.`,
        );
      this.#logTokens = usage.promptTokens + usage.completionTokens;
      return usage;
    } catch (thrown) {
      throw turnError(thrown);
    }
  }

  end(signal: AbortSignal): Promise<void> {
    return this.#session.delete({ signal });
  }
}

function turnUsage({ promptTokens, completionTokens, cachedTokens, quire }: Usage): TurnUsage {
  // Nothing reused needs no source; anything else without one does not add up.
  const source = quire.source ?? { device: 0, host: 0, store: 0 };
  return { promptTokens, completionTokens, cachedTokens, source };
}

function turnError(thrown: unknown): TurnError {
  if (thrown instanceof TurnError) return thrown;
  if (thrown instanceof QuireApiError) {
    const { status, code = `http_${status ?? "unknown"}` } = thrown;
    const isRefusal = status === 429 || thrown.type === "rate_limit_error";
    return new TurnError(code, thrown.message, { isRefusal, retryAfterMs: thrown.retryAfterMs, cause: thrown });
  }
  if (thrown instanceof QuireConnectionError) {
    // The platform's own errors mean the connection; without them it stood, and what came was not a whole reply.
    const { cause } = thrown;
    const isConnection = cause instanceof TypeError || cause instanceof DOMException;
    return new TurnError(isConnection ? "connection" : "bad_stream", thrown.message, { cause: thrown });
  }
  return new TurnError("client", String(thrown), { cause: thrown });
}
