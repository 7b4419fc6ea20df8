/** What the Worker and a SessionLog say to each other about one turn: a job in, a stream of events out. */
import { type ErrorCode, QuireError } from "../protocol/errors.ts";
import type { EngineUsage, ResumeMode, SelectionRequest } from "../protocol/generate.ts";
import type { ChatMessage } from "../tokenizer/contract.ts";
import type { PlaceRequest } from "./limits/place.ts";
import type { Admission } from "./limits/tenant-budget.ts";

/** Sampling as the client asked for it; what is absent follows the model's generation_config.json, then OpenAI's defaults. */
export interface SamplingOptions {
  temperature?: number | undefined;
  topP?: number | undefined;
  topK?: number | undefined;
  minP?: number | undefined;
  frequencyPenalty?: number | undefined;
  presencePenalty?: number | undefined;
  repetitionPenalty?: number | undefined;
  /** Unsigned 32 bit; the choice's index is added to it. */
  seed: number;
  logitBias: [number, number][];
}

/** The words of a turn. */
export type TurnInput =
  | { kind: "chat"; messages: ChatMessage[] /** Transcript hash after each message (`chain.ts`). */; chain: string[] }
  /** Texts or token ids. With a session there is one; of several each has as many choices, in their order. */
  | { kind: "raw"; prompts: readonly (string | number[])[] };

/** A validated request, before it has a session. */
export interface TurnOptions {
  input: TurnInput;
  choiceCount: number;
  maxTokens?: number | undefined;
  /** Used without `maxTokens`, and lowered to what the context leaves. */
  maxTokensDefault: number;
  /** The field that `maxTokens` came from. */
  maxTokensParam: string;
  sampling: SamplingOptions;
  stopStrings: string[];
  selection: SelectionRequest;
  /** `quire.speculation`: the engine may guess next tokens and check several at once. */
  speculation?: boolean;
  /** `quire.resume`: how earlier turns come back from the page store; absent: the engine's setting. */
  resume?: ResumeMode;
  /** Undefined: no logprobs; otherwise alternatives beside the chosen token. */
  topLogprobs?: number | undefined;
}

/** Where a new session starts from: another session's log, up to and including a message. */
export interface ForkPoint {
  sessionId: string;
  messageCount: number;
  /** Transcript hash at that message: a parent that has changed since is not forked. */
  chain: string;
}

/** What all objects of an answer share, and whoever resumes its stream has to be told. */
export interface AnswerHead {
  kind: "chat" | "text";
  /** "chatcmpl-..." or "cmpl-...". */
  id: string;
  createdS: number;
  model: string;
  /** `stream_options.include_usage`. */
  includeUsage: boolean;
}

/** In which form the events leave the session (`session-log/event-coding.ts`): frames of {@link TurnEvent}, or what a client of SSE reads. */
export type AnswerForm = "frames" | "sse";

/** Everything a SessionLog needs to run one turn. */
export interface TurnJob extends TurnOptions {
  requestId: string;
  model: string;
  namespace: string;
  head: AnswerHead;
  form: AnswerForm;
  /** The turn runs on when its client goes away, and its events are kept for when it comes back. */
  resumable: boolean;
  /** The client's own name of a resumable turn: asked for again under it, the turn goes on and is not run twice. */
  idempotencyKey?: string | undefined;
  /** SHA-256 of the request's body, in hex, where it has such a name: that is one request's alone. */
  bodyDigest?: string | undefined;
  /** The turn's place among its tenant's, see `limits/`; absent for one that nobody counts. */
  leaseId?: string | undefined;
  /** The session asks for that place, and lets nothing out before it has it; absent: it is taken. */
  place?: PlaceRequest | undefined;
  /** Absent: nothing is logged, and the engine persists nothing. */
  session?: {
    id: string;
    /** Nobody named this session: it is found by its transcript, and vanishes when its first turn fails. */
    implicit: boolean;
    /** The log must be exactly here (transcript hash), or the answer is "moved". */
    expectChain?: string | undefined;
    forkFrom?: ForkPoint | undefined;
  };
}

/** An error on its way to the client; the message is safe text. */
export interface WireError {
  code: ErrorCode;
  message: string;
  param?: string | undefined;
  retryAfterMs?: number | undefined;
}

/** The error of another object. */
export function readError(error: WireError): QuireError {
  return new QuireError(error.code, error.message, { param: error.param, retryAfterMs: error.retryAfterMs });
}

/** What `GET /v1/sessions/:id` tells; no text. */
export interface SessionInfo {
  id: string;
  model: string;
  createdS: number;
  tokens: number;
  turns: number;
  parentId?: string | undefined;
  messages: {
    role: string /** Log length behind this message, where that is known. */;
    tokenEnd?: number | undefined;
  }[];
}

/** First answer of a SessionLog: known before any response header is sent. */
export type TurnAnswer = (
  | { status: "refused"; error: WireError }
  /** "long": the session's log is too long to leave its object, where the turn has to run. */
  | { status: "limited" | "moved" | "long" }
  | ({ status: "streaming" } & TurnFeed)
) & {
  /** The limiter's answer, where the session asked for the turn's place or had one reserved. */
  admission?: Admission | undefined;
  /** Of the place that it had reserved: that is the turn's. */
  leaseId?: string | undefined;
};

/** A turn's events on their way, in the form that was asked for. */
export interface TurnFeed {
  /** Names the turn; with an event's number it is the SSE id. */
  streamId: string;
  numericsId: string;
  head: AnswerHead;
  stream: ReadableStream<Uint8Array>;
}

/** Which turn of a session; without any name, its last one. */
export interface TurnName {
  streamId?: string | undefined;
  idempotencyKey?: string | undefined;
}

/** A client that comes back for the rest of a turn, from the event of this number on. */
export interface ResumeRequest extends TurnName {
  /** Of the request that is made again, to be held against the first one's. */
  bodyDigest?: string | undefined;
  from: number;
  form: AnswerForm;
}

/** One token of `logprobs`, in words. */
export interface TextLogprob {
  token: string;
  logprob: number;
  bytes: number[];
  top: { token: string; logprob: number; bytes: number[] }[];
}

/** Usage of a turn over all its choices; `engine` is the first choice's, undefined when the engine never said. */
export interface TurnUsage {
  promptTokens: number;
  completionTokens: number;
  sessionId?: string | undefined;
  /** Engines that served the turn, in order. */
  engineIds: string[];
  engine?: EngineUsage | undefined;
}

/**
 * Events of a turn, with ascending numbers (heartbeats have none): for chat one `begin` per choice, then its `text` in order, one `finish`
 * per choice, `usage`, and exactly one terminal event: `end` (the log is written) or `error` (the log is as before the turn).
 * `heartbeat` while nothing else is said. Each of them, alone, is what one SSE event is made of.
 */
export type TurnEvent =
  | { type: "begin"; choice: number }
  | {
      type: "text";
      choice: number;
      text: string;
      /** Length of the choice's text before this. */
      offset: number;
      logprobs?: TextLogprob[] | undefined;
    }
  | { type: "finish"; choice: number; reason: "stop" | "length" }
  | { type: "usage"; usage: TurnUsage }
  | { type: "end" }
  | { type: "error"; error: WireError }
  | { type: "heartbeat" };
