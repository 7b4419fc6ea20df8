/**
 * What the edge and an engine say to each other. One POST per generation: the body is one frame with a
 * {@link GenerateRequest}; the answer is a stream of frames, each an {@link EngineEvent}: first `admitted` or
 * `failed`, then `tokens`, and exactly one terminal event (`done` or `failed`). Token ids only, never text.
 */
import type { ErrorCode } from "./errors.ts";

/** Both sides refuse any other version. */
export const PROTOCOL_VERSION = 1;

/** Paths of an engine's HTTP interface, below the URL of its heartbeat; all POST, signed (`signature.ts`). */
export const ENGINE_PATHS = {
  generate: "/v1/generate",
  cancel: "/v1/cancel",
  sessionStatus: "/v1/sessions/status",
  sessionDelete: "/v1/sessions/delete",
  trace: "/v1/trace",
} as const;

/**
 * How the tokens up to `end` (exclusive; from the previous span's end) were attended when their KV was computed.
 * `how` is "dense", or a canonical selection string with its query group size, as `provenance.ts` writes it.
 */
export interface Span {
  end: number;
  how: string;
}

/** Names of the selection policies, as they cross the wire. */
export type SelectionPolicyName =
  | "dense"
  | "streaming"
  | "quest"
  | "mean-deviation"
  | "arkvale"
  | "infllm"
  | "sign-hash"
  | "residual-signs"
  | "tokenselect";

/** A policy, or one with modifiers behind it, as `selection.ts` reads it: `quest+scope(layer)`. */
export type SelectionConfiguration = SelectionPolicyName | `${SelectionPolicyName}+${string}`;

/** What a request may name instead: the engine chooses by the model's calibration (`quire calibrate`) and says in the usage what it chose. */
export const AUTO_SELECTION = "auto";
/** Budget of requests that name a policy and no budget, and of `auto` on a model that nobody has calibrated. */
export const BUDGET_TOKENS_DEFAULT = 2048;

/** What a request asks of selection; absent fields take the engine's defaults. */
export interface SelectionRequest {
  policy: SelectionConfiguration | typeof AUTO_SELECTION;
  /** Tokens that a decode step may attend to, sinks and recent pages included; a multiple of 16. With `auto`, 0: the engine's choice. */
  budgetTokens: number;
  /** Wait for missing pages before attending (true), or attend to what is resident and count the rest. */
  exact: boolean;
}

/** How the KV of earlier turns comes back where it is in the page store only. */
export const RESUME_MODES = ["lazy", "full", "recompute", "auto"] as const;
/**
 * `lazy`: summaries first, then what queries select, the rest behind it. `full`: all of it before the first step. `recompute`: from the log, as
 * if nothing were stored. `auto`: whichever the engine expects to be the quickest.
 */
export type ResumeMode = (typeof RESUME_MODES)[number];

/** How the next token is drawn; for the order of the steps see `SampleRow` in `kernels/contract.ts`. */
export interface SamplingParams {
  /** 0 is greedy. */
  temperature: number;
  /** 1 keeps everything. */
  topP: number;
  /** 0 keeps everything. */
  topK: number;
  /** 0 keeps everything. */
  minP: number;
  /** Noise is a function of (seed, position), so a step can be repeated. Unsigned 32 bit. */
  seed: number;
  frequencyPenalty: number;
  presencePenalty: number;
  /** 1 is none; divides positive and multiplies negative logits of every token of prompt and reply. */
  repetitionPenalty: number;
  /** Pairs [token id, added to its logit]. */
  logitBias: [number, number][];
}

/** One turn, edge to engine: the first and only frame of the request body. */
export interface GenerateRequest {
  version: typeof PROTOCOL_VERSION;
  requestId: string;
  /** Model id as the engine registered it. */
  model: string;
  /** Server-derived tenant salt, lower-case hex; names every byte that is stored. Never from the caller. */
  namespace: string;
  /** Absent: nothing is persisted, the prefix cache of the engine still serves. */
  session?:
    | {
        id: string;
        /** Fork: also look at this session's manifest. */
        parentId?: string;
        /**
         * When the log of this id began, milliseconds since 1970: tells a session from one of the same id that was deleted. Absent: what is
         * deleted is told by when the turn came.
         */
        bornMs?: number;
      }
    | undefined;
  /** The whole log and the new turn's prompt: little-endian u32 ids. */
  tokens: Uint8Array;
  /** Tokens before this one belong to earlier turns; `spans` covers exactly [0, turnStart). */
  turnStart: number;
  spans: Span[];
  /**
   * Tokens from here on are this turn's reply so far: another engine generated them and was lost. They are computed as that one did (row by
   * row where a policy selects) and count as reply for penalties, so the rest is what it would have said. Absent: `tokens` ends with the prompt.
   */
  replyStart?: number | undefined;
  maxTokens: number;
  stopTokens: number[];
  sampling: SamplingParams;
  selection: SelectionRequest;
  /** Guess next tokens from the context and check several in one step; the text is the same. Absent: no. */
  speculation?: boolean | undefined;
  /** Absent: the engine's setting. */
  resume?: ResumeMode | undefined;
  /** -1, 0 (absent) or 1: higher goes first among the requests of one tenant. */
  priority?: number | undefined;
  /** From its arrival at the engine: without a first token by then it ends with `deadline_exceeded`. The earlier due goes first. */
  firstTokenMsMax?: number | undefined;
  /** Undefined: no logprobs. Otherwise how many alternatives beside the chosen token, 0-20. */
  topLogprobs?: number | undefined;
}

/**
 * Body (one frame) of POST {@link ENGINE_PATHS}.cancel: the edge saw a stop string, or its client left. The generation ends at its next step, and
 * its own stream with `done`, reason "cancelled", usage and spans of what was computed (a closed connection could not carry them).
 * Answered 204, also for a request that is unknown or over.
 */
export interface CancelRequest {
  version: typeof PROTOCOL_VERSION;
  requestId: string;
}

/**
 * Body (one frame) of POST sessionStatus and sessionDelete. Delete answers 204 when this engine has ended the session's turns and holds nothing that is
 * its alone, manifest and tail are gone from the page store, and nothing of it can be stored any more.
 */
export interface SessionRequest {
  version: typeof PROTOCOL_VERSION;
  namespace: string;
  sessionId: string;
  /** Delete: when the session's log began; one of the same id that began later stays. Absent: what is over by now ends. */
  bornMs?: number | undefined;
}

/** Answer (JSON) of POST sessionStatus: how much of a session would survive this engine. */
export interface SessionStatus {
  /** Tokens whose KV the last manifest made durable; 0 where there is none. */
  persistedTokens: number;
  generation: number;
  /** A commit waits or is under way in this engine. */
  pending: boolean;
}

/** Body (one frame) of POST {@link ENGINE_PATHS}.trace: what happened to a request, by its id or by that of the HTTP request it is part of. */
export interface TraceRequest {
  version: typeof PROTOCOL_VERSION;
  requestId: string;
}

/** One moment of a request: milliseconds after its arrival, and numbers that go with it (units in their names). */
export interface TraceEvent {
  atMs: number;
  name: string;
  fields: Record<string, number>;
}

/** Answer (JSON) of POST trace; 404 where the engine does not remember the request. Times and counts, never content. */
export interface RequestTrace {
  requestId: string;
  events: TraceEvent[];
  /** Events beyond the most that one trace holds. */
  droppedCount: number;
}

/** Log probability of a generated token and of its strongest rivals, of the raw logits' softmax. */
export interface TokenLogprob {
  logprob: number;
  /** Best first, [token id, logprob]. */
  top: [number, number][];
}

/** Where reused KV came from, in tokens; sums to `cachedTokens`. */
export interface ReuseSource {
  device: number;
  host: number;
  store: number;
}

/** How a turn's session came back, and with `auto` what each way that could be predicted was expected to take. */
export interface ResumeUsage {
  mode: Exclude<ResumeMode, "auto">;
  asked: ResumeMode;
  predictedMs?: Partial<Record<Exclude<ResumeMode, "auto">, number>> | undefined;
}

/** What a turn really cost and really reused; counted, never estimated. */
export interface EngineUsage {
  promptTokens: number;
  completionTokens: number;
  /** Prompt tokens whose KV was reused. */
  cachedTokens: number;
  source: ReuseSource;
  /** Where there were tokens of earlier turns to be had from the page store. */
  resume?: ResumeUsage | undefined;
  /** Tokens of earlier turns whose KV had to be computed again from the log. */
  recomputedTokens: number;
  /** Read from the page store for this request before its first token, and in all. */
  bytesBeforeFirstToken: number;
  bytesFetched: number;
  pagesBeforeFirstToken: number;
  pagesFetched: number;
  policy: SelectionConfiguration;
  budgetTokens: number;
  /** The budget that was asked for, where the engine was too busy and took a smaller one (an engine setting, off by default). */
  budgetTokensAsked?: number | undefined;
  exact: boolean;
  /** Pages attended to / pages in context, summed over steps, layers and KV heads where selection ran. */
  pagesSelected: number;
  pagesInContext: number;
  /** Where a selection scores blocks first: pages that it did not score one by one, summed as those. */
  pagesPassedOver?: number | undefined;
  /** Selected pages that were not resident and not waited for (default mode). */
  pagesMissed: number;
  /** With `speculation`: tokens that were guessed, and those of them that were right. */
  draftedTokens?: number | undefined;
  draftedTokensRight?: number | undefined;
  kvBytesRead: number;
  metadataBytesRead: number;
  queueMs: number;
  firstTokenMs: number;
  totalMs: number;
}

/** Why a turn ended: a stop token, `maxTokens` or the context, or a cancel. */
export type FinishReason = "stop" | "length" | "cancelled";

/** One frame of the answer; see the head of this file for their order. */
export type EngineEvent =
  | { type: "admitted"; engineId: string; numericsId: string }
  | {
      type: "tokens";
      /** Little-endian u32 ids. */
      ids: Uint8Array;
      logprobs?: TokenLogprob[] | undefined;
    }
  | {
      type: "done";
      reason: FinishReason;
      usage: EngineUsage;
      /** Spans of [turnStart, turnStart + prompt + completion): to be appended to the log's. */
      spans: Span[];
    }
  | { type: "failed"; code: ErrorCode; message: string; param?: string | undefined; retryAfterMs?: number | undefined };

/** Body of POST /v1/engines/heartbeat, engine to edge (JSON). */
export interface EngineHeartbeat {
  engineId: string;
  /** Base URL at which the edge reaches the engine. */
  url: string;
  model: string;
  modelFingerprint: string;
  contextTokensMax: number;
  device: string;
  numericsId: string;
  runningCount: number;
  queuedCount: number;
  queueMax: number;
  freeBlockCount: number;
  blockCount: number;
  draining: boolean;
  /** Which prefixes it holds on its device (`prefix-filter.ts`, base64). */
  residentPrefixes?: string | undefined;
  /** Measured: one more prompt token. */
  prefillMsPerToken?: number | undefined;
  /** Prompt tokens of its requests that are still to be computed or found. */
  waitingTokens?: number | undefined;
  /** Stored bytes of one token, all layers. */
  kvBytesPerToken?: number | undefined;
}
