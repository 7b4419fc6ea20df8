/** OpenAI's response objects, to the letter; `usage.quire` is the one addition. */
import type { EngineUsage, ResumeUsage, ReuseSource } from "../protocol/generate.ts";
import type { AnswerHead, TextLogprob, TurnUsage } from "./turn-job.ts";

/** What all objects of one response share. */
export interface ResponseFrame {
  kind: "chat" | "text";
  /** "chatcmpl-..." or "cmpl-...". */
  id: string;
  createdS: number;
  model: string;
  /** Names the numerics: equal seeds give equal text only under equal fingerprints. */
  fingerprint: string;
}

/** What all objects of an answer share. */
export function responseFrame({ kind, id, createdS, model }: AnswerHead, numericsId: string): ResponseFrame {
  return { kind, id, createdS, model, fingerprint: `fp_${numericsId}` };
}

/** Why a choice ended: the model or a stop string, or a limit. */
export type FinishReason = "stop" | "length";

/** One finished choice. */
export interface FinishedChoice {
  text: string;
  /** Undefined when the request asked for none. */
  logprobs: TextLogprob[] | undefined;
  reason: FinishReason;
}

/** A whole, unstreamed response. */
export function completionBody(frame: ResponseFrame, choices: readonly FinishedChoice[], usage: TurnUsage): object {
  const isChat = frame.kind === "chat";
  return {
    ...head(frame, isChat ? "chat.completion" : "text_completion"),
    choices: choices.map((choice, index) => (isChat ? chatChoice(choice, index) : textChoice(choice, index))),
    usage: usageBody(usage),
    system_fingerprint: frame.fingerprint,
  };
}

/** First chunk of a chat choice: the role. */
export function roleChunk(frame: ResponseFrame, index: number, includeUsage: boolean): object {
  const delta = { role: "assistant", content: "", refusal: null };
  return chunk(frame, [{ index, delta, logprobs: null, finish_reason: null }], includeUsage);
}

/** A piece of a choice's text. `offset` is how much text of the choice came before. */
export function textChunk(
  frame: ResponseFrame,
  piece: { index: number; text: string; logprobs: TextLogprob[] | undefined; offset: number },
  includeUsage: boolean,
): object {
  const { index, text, logprobs, offset } = piece;
  const choice =
    frame.kind === "chat"
      ? { index, delta: { content: text }, logprobs: chatLogprobs(logprobs), finish_reason: null }
      : { index, text, logprobs: textLogprobs(logprobs, offset), finish_reason: null };
  return chunk(frame, [choice], includeUsage);
}

/** Last chunk of a choice. */
export function finishChunk(frame: ResponseFrame, index: number, reason: FinishReason, includeUsage: boolean): object {
  const choice =
    frame.kind === "chat"
      ? { index, delta: {}, logprobs: null, finish_reason: reason }
      : { index, text: "", logprobs: null, finish_reason: reason };
  return chunk(frame, [choice], includeUsage);
}

/** The chunk with the usage and no choices, for `stream_options.include_usage`. */
export function usageChunk(frame: ResponseFrame, usage: TurnUsage): object {
  return {
    ...head(frame, chunkObject(frame)),
    choices: [],
    usage: usageBody(usage),
    system_fingerprint: frame.fingerprint,
  };
}

/** OpenAI's usage, and under `quire` where the reuse came from and what selection did. */
function usageBody(usage: TurnUsage): object {
  const cached = Math.min(usage.engine?.cachedTokens ?? 0, usage.promptTokens);
  return {
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    total_tokens: usage.promptTokens + usage.completionTokens,
    prompt_tokens_details: { cached_tokens: cached, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: 0,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0,
    },
    quire: {
      session_id: usage.sessionId ?? null,
      engines: usage.engineIds,
      ...(usage.engine && engineBody(usage.engine, cached)),
    },
  };
}

/** The answer of GET /v1/models/:id, and an element of GET /v1/models. */
export function modelBody(model: { id: string; createdS: number }): object {
  return { id: model.id, object: "model", created: model.createdS, owned_by: "quire" };
}

/** Where so many reused tokens came from. An engine that took a turn over has reused words of the reply, too: they were computed last, and lie nearest. */
function sourceBody({ device, host, store }: ReuseSource, cachedTokens: number): ReuseSource {
  const fromStore = Math.min(store, cachedTokens);
  const fromHost = Math.min(host, cachedTokens - fromStore);
  return { device: Math.min(device, cachedTokens - fromStore - fromHost), host: fromHost, store: fromStore };
}

function engineBody(usage: EngineUsage, cachedTokens: number): object {
  return {
    source: sourceBody(usage.source, cachedTokens),
    ...(usage.resume === undefined ? {} : { resume: resumeBody(usage.resume) }),
    recomputed_tokens: usage.recomputedTokens,
    bytes_before_first_token: usage.bytesBeforeFirstToken,
    bytes_fetched: usage.bytesFetched,
    pages_before_first_token: usage.pagesBeforeFirstToken,
    pages_fetched: usage.pagesFetched,
    policy: usage.policy,
    budget_tokens: usage.budgetTokens,
    ...(usage.budgetTokensAsked === undefined ? {} : { budget_tokens_asked: usage.budgetTokensAsked }),
    exact: usage.exact,
    pages_selected: usage.pagesSelected,
    pages_in_context: usage.pagesInContext,
    ...(usage.pagesPassedOver === undefined ? {} : { pages_passed_over: usage.pagesPassedOver }),
    pages_missed: usage.pagesMissed,
    ...(usage.draftedTokens === undefined
      ? {}
      : { drafted_tokens: usage.draftedTokens, drafted_tokens_right: usage.draftedTokensRight }),
    kv_bytes_read: usage.kvBytesRead,
    metadata_bytes_read: usage.metadataBytesRead,
    queue_ms: usage.queueMs,
    first_token_ms: usage.firstTokenMs,
    total_ms: usage.totalMs,
  };
}

function resumeBody({ mode, asked, predictedMs }: ResumeUsage): object {
  return { mode, asked, ...(predictedMs === undefined ? {} : { predicted_ms: predictedMs }) };
}

function head(frame: ResponseFrame, object: string): object {
  return { id: frame.id, object, created: frame.createdS, model: frame.model };
}

/** The older interface calls its chunks what it calls its answers. */
function chunkObject(frame: ResponseFrame): string {
  return frame.kind === "chat" ? "chat.completion.chunk" : "text_completion";
}

function chunk(frame: ResponseFrame, choices: object[], includeUsage: boolean): object {
  const base = { ...head(frame, chunkObject(frame)), choices, system_fingerprint: frame.fingerprint };
  return includeUsage ? { ...base, usage: null } : base;
}

function chatChoice(choice: FinishedChoice, index: number): object {
  return {
    index,
    message: { role: "assistant", content: choice.text, refusal: null, annotations: [] },
    logprobs: chatLogprobs(choice.logprobs),
    finish_reason: choice.reason,
  };
}

function textChoice(choice: FinishedChoice, index: number): object {
  return { index, text: choice.text, logprobs: textLogprobs(choice.logprobs, 0), finish_reason: choice.reason };
}

function chatLogprobs(logprobs: readonly TextLogprob[] | undefined): object | null {
  if (!logprobs) return null;
  const content = logprobs.map(({ token, logprob, bytes, top }) => ({ token, logprob, bytes, top_logprobs: top }));
  return { content, refusal: null };
}

function textLogprobs(logprobs: readonly TextLogprob[] | undefined, offset: number): object | null {
  if (!logprobs) return null;
  const textOffset: number[] = [];
  let end = offset;
  for (const { token } of logprobs) {
    textOffset.push(end);
    end += token.length;
  }
  return {
    tokens: logprobs.map(({ token }) => token),
    token_logprobs: logprobs.map(({ logprob }) => logprob),
    top_logprobs: logprobs.map(({ top }) => Object.fromEntries(top.map(({ token, logprob }) => [token, logprob]))),
    text_offset: textOffset,
  };
}
