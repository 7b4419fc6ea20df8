/** Parameters that chat completions and completions share. */

import {
  AUTO_SELECTION,
  BUDGET_TOKENS_DEFAULT,
  RESUME_MODES,
  type ResumeMode,
  type SelectionRequest,
} from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { parseRequestedSelection } from "../protocol/selection.ts";
import { asRecord, checkNumber, type Fields, invalid, invalidType, quoted } from "./fields.ts";
import { readSessionId } from "./session-id.ts";
import type { SamplingOptions } from "./turn-job.ts";

/** What the Worker, not the session, has to know of a request. */
export interface ResponseOptions {
  model: string | undefined;
  sessionId: string | undefined;
  stream: boolean;
  includeUsage: boolean;
  /** `quire.resumable`. */
  resumable: boolean;
}

/** Reads sampling parameters. `randomSeed` serves requests without one. */
export function readSampling(fields: Fields, randomSeed: () => number): SamplingOptions {
  const seed = fields.number("seed", { min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, integer: true });
  // -1 is what other servers call "off"; the engine's word is 0.
  const topK = fields.number("top_k", { min: -1, max: 1_000_000, integer: true });
  const repetitionPenalty = fields.number("repetition_penalty", { min: 0.01, max: 10 });
  return {
    temperature: fields.number("temperature", { min: 0, max: 2 }),
    topP: fields.number("top_p", { min: 0, max: 1 }),
    topK: topK === undefined ? undefined : Math.max(0, topK),
    minP: fields.number("min_p", { min: 0, max: 1 }),
    frequencyPenalty: fields.number("frequency_penalty", { min: -2, max: 2 }),
    presencePenalty: fields.number("presence_penalty", { min: -2, max: 2 }),
    repetitionPenalty,
    seed: seed === undefined ? randomSeed() : ((seed % 2 ** 32) + 2 ** 32) % 2 ** 32,
    logitBias: readLogitBias(fields),
  };
}

/** Reads `stop`: a string or an array of strings. */
export function readStop(fields: Fields): string[] {
  const value = fields.raw("stop");
  if (value === undefined) return [];
  const stops = typeof value === "string" ? [value] : value;
  if (!Array.isArray(stops)) throw invalidType("stop", "a string or an array of strings", value);
  if (stops.length > LIMITS.stopStringCountMax) {
    throw invalid("stop", `Invalid 'stop': array too long. Expected at most ${LIMITS.stopStringCountMax} strings.`);
  }
  const encoder = new TextEncoder();
  return stops.map((stop: unknown, index) => {
    const param = typeof value === "string" ? "stop" : `stop[${index}]`;
    if (typeof stop !== "string") throw invalidType(param, "a string", stop);
    if (stop === "") throw invalid(param, `Invalid '${param}': a stop string must not be empty.`);
    if (encoder.encode(stop).byteLength > LIMITS.stopStringBytesMax) {
      throw invalid(param, `Invalid '${param}': a stop string has at most ${LIMITS.stopStringBytesMax} bytes.`);
    }
    // Half a character would be found in a whole one, and cut it.
    return stop.toWellFormed();
  });
}

/** Reads `n` and the session's name, from the body's `quire` object and the header, which must not disagree. */
export function readResponse(fields: Fields, quire: Fields | undefined, headers: Headers): ResponseOptions {
  const stream = fields.boolean("stream") ?? false;
  const streamOptions = fields.object("stream_options");
  if (streamOptions && !stream) {
    throw invalid("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.");
  }
  const includeUsage = streamOptions?.boolean("include_usage") ?? false;
  streamOptions?.unsupported("include_obfuscation", (value) => typeof value === "boolean");
  streamOptions?.refuseOthers();
  const resumable = quire?.boolean("resumable") ?? false;
  return { model: fields.string("model"), sessionId: readSessionId(quire, headers), stream, includeUsage, resumable };
}

/** Reads `n` against the session: a session has one history, so it takes one choice. */
export function readChoiceCount(fields: Fields, sessionId: string | undefined): number {
  const count = fields.number("n", { min: 1, max: LIMITS.choiceCountMax, integer: true }) ?? 1;
  if (count > 1 && sessionId !== undefined) {
    throw invalid("n", "Invalid 'n': a request with a session takes one choice (n = 1).");
  }
  return count;
}

/** Reads `quire.speculation`. */
export function readSpeculation(quire: Fields | undefined): { speculation?: boolean } {
  return quire?.boolean("speculation") === true ? { speculation: true } : {};
}

/** Reads `quire.resume`. */
export function readResume(quire: Fields | undefined): { resume?: ResumeMode } {
  const value = quire?.string("resume");
  if (value === undefined) return {};
  const resume = RESUME_MODES.find((mode) => mode === value);
  if (resume === undefined) {
    const known = RESUME_MODES.map((mode) => `'${mode}'`).join(", ");
    throw invalid("quire.resume", `Invalid value: '${quoted(value)}'. Supported values are: ${known}.`);
  }
  return { resume };
}

/** The budget of a request that names none: with `auto` the engine chooses it, otherwise there has to be one. */
function budgetOf(policy: SelectionRequest["policy"], defaults: SelectionRequest): number {
  if (policy === AUTO_SELECTION) return defaults.policy === AUTO_SELECTION ? defaults.budgetTokens : 0;
  return defaults.budgetTokens === 0 ? BUDGET_TOKENS_DEFAULT : defaults.budgetTokens;
}

/** Reads `quire.selection` over the server's defaults; the other fields of `quire` are read by {@link readResponse}. */
export function readSelection(quire: Fields | undefined, defaults: SelectionRequest): SelectionRequest {
  if (!quire) return defaults;
  const selection = quire.object("selection");
  quire.refuseOthers();
  if (!selection) return defaults;
  const policy = parseRequestedSelection(selection.string("policy") ?? defaults.policy);
  const { budgetTokensMin, budgetTokensMax, budgetTokensStep } = LIMITS;
  // Dense attention takes no notice of it.
  const min = policy === "dense" ? budgetTokensStep : budgetTokensMin;
  const budgetTokens = selection.number("budget_tokens", { min, max: budgetTokensMax, integer: true });
  const exact = selection.boolean("exact") ?? defaults.exact;
  selection.refuseOthers();
  if (budgetTokens !== undefined && budgetTokens % budgetTokensStep !== 0) {
    throw invalid(
      "quire.selection.budget_tokens",
      `Invalid 'quire.selection.budget_tokens': expected a multiple of ${budgetTokensStep}, but got ${budgetTokens} instead.`,
    );
  }
  return { policy, budgetTokens: budgetTokens ?? budgetOf(policy, defaults), exact };
}

/** Whether a valid body says itself how its turn selects. */
export function namesSelection(body: Readonly<Record<string, unknown>>): boolean {
  const { quire } = body;
  return typeof quire === "object" && quire !== null && "selection" in quire && quire.selection !== null;
}

function readLogitBias(fields: Fields): [number, number][] {
  const value = fields.raw("logit_bias");
  if (value === undefined) return [];
  const entries = Object.entries(asRecord(value, "logit_bias"));
  if (entries.length > LIMITS.logitBiasCountMax) {
    throw invalid("logit_bias", `Invalid 'logit_bias': at most ${LIMITS.logitBiasCountMax} tokens.`);
  }
  return entries.map(([id, bias]) => {
    if (!/^(0|[1-9]\d{0,8})$/.test(id)) {
      throw invalid("logit_bias", `Invalid key in 'logit_bias': '${quoted(id)}' is not a token id.`);
    }
    return [Number(id), checkNumber(bias, `logit_bias.${id}`, { min: -100, max: 100 })];
  });
}
