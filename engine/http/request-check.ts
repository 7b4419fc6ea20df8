/** Checks a request at the engine's border: whatever comes in, one clear error that names the field, or a request that can be run. */
import type { KvPoolSpec } from "../../kernels/contract.ts";
import { chooseSelection } from "../../models/selection/calibration.ts";
import { namesHeadsOf, resolveHeads } from "../../models/selection/head-profile.ts";
import { BUDGET_TOKENS_MIN, type SelectionPolicy } from "../../models/selection/policy.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { QuireError } from "../../protocol/errors.ts";
import {
  AUTO_SELECTION,
  type GenerateRequest,
  PROTOCOL_VERSION,
  RESUME_MODES,
  type ResumeMode,
  type SamplingParams,
  type SelectionRequest,
  type SessionRequest,
  type Span,
} from "../../protocol/generate.ts";
import { bytesToIds } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { isCanonicalSelection, parseRequestedSelection } from "../../protocol/selection.ts";
import { DENSE, isHow, parseHow } from "../kv/provenance.ts";
import type { ResolvedSelection } from "../sequence/sequence.ts";
import type { EngineSettings } from "../settings.ts";

/** What a request is checked against. */
export interface RequestBounds {
  modelId: string;
  vocabularySize: number;
  contextTokensMax: number;
}

type Fields = Record<string, unknown>;

/** @throws {QuireError} `invalid_request`, `model_not_found` or `context_length_exceeded`, with the field in `param`. */
export function checkRequest(value: unknown, bounds: RequestBounds): GenerateRequest {
  const fields = object(value, "request");
  if (fields.version !== PROTOCOL_VERSION) refuse("version", `must be ${PROTOCOL_VERSION}`);
  const requestId = text(fields.requestId, "requestId", /^[A-Za-z0-9._:-]{1,128}$/);
  const model = text(fields.model, "model", /^[\w./:-]{1,200}$/);
  if (model !== bounds.modelId) {
    throw new QuireError("model_not_found", `This engine serves ${bounds.modelId}, not ${model}.`, { param: "model" });
  }
  const namespace = text(fields.namespace, "namespace", /^[0-9a-f]{8,64}$/);
  const tokens = checkTokens(fields.tokens, bounds.vocabularySize);
  const tokenCount = tokens.byteLength / 4;
  const turnStart = integer(fields.turnStart, "turnStart", 0, tokenCount - 1);
  const maxTokens = integer(fields.maxTokens, "maxTokens", 1, bounds.contextTokensMax);
  if (tokenCount + maxTokens > bounds.contextTokensMax) {
    const message = `${tokenCount} prompt tokens and max_tokens ${maxTokens} exceed the context of ${bounds.contextTokensMax}.`;
    throw new QuireError("context_length_exceeded", message, { param: "maxTokens" });
  }
  const session = checkSession(fields.session);
  const top = fields.topLogprobs;
  return {
    version: PROTOCOL_VERSION,
    requestId,
    model,
    namespace,
    ...(session ? { session } : {}),
    tokens,
    turnStart,
    spans: checkSpans(fields.spans, turnStart),
    ...(fields.replyStart === undefined || fields.replyStart === null
      ? {}
      : { replyStart: integer(fields.replyStart, "replyStart", Math.max(1, turnStart), tokenCount) }),
    maxTokens,
    stopTokens: ids(fields.stopTokens, "stopTokens", 64),
    sampling: checkSampling(fields.sampling, bounds.vocabularySize),
    selection: checkSelection(fields.selection),
    ...checkSpeculation(fields.speculation),
    ...checkResume(fields.resume),
    ...optional(fields, "priority", -1, 1),
    ...optional(fields, "firstTokenMsMax", 1, LIMITS.turnMsMax),
    ...(top === undefined || top === null
      ? {}
      : { topLogprobs: integer(top, "topLogprobs", 0, LIMITS.topLogprobsMax) }),
  };
}

/** @throws {QuireError} `invalid_request`. */
export function checkSessionRequest(value: unknown): Omit<SessionRequest, "version"> {
  const fields = object(value, "request");
  if (fields.version !== PROTOCOL_VERSION) refuse("version", `must be ${PROTOCOL_VERSION}`);
  const namespace = text(fields.namespace, "namespace", /^[0-9a-f]{8,64}$/);
  return { namespace, sessionId: sessionId(fields.sessionId, "sessionId"), ...checkBorn(fields, "bornMs") };
}

/** What selections are resolved against: the pool, and what was measured on its model. */
export type SelectionBasis = Pick<KvPoolSpec, "layerCount" | "kvHeadCount" | "summaryKinds"> &
  Pick<EngineSettings, "calibration" | "heads">;

/**
 * Resolves a request's selection against what the pool keeps; `auto` by the model's calibration, dense where the pool does not keep what
 * that needs; a share of the heads by the model's profile.
 * @throws {QuireError} when the summaries of a policy that was named are not kept, or its heads are not known.
 */
export function resolveSelection(
  { selection: { exact, ...asked }, tokens }: Pick<GenerateRequest, "selection" | "tokens">,
  basis: SelectionBasis,
): ResolvedSelection {
  const { summaryKinds: kinds, calibration } = basis;
  const { budgetTokens } = asked;
  const contextTokens = tokens.byteLength / 4;
  const chosen = isAuto(asked) ? chooseSelection(calibration, { contextTokens, budgetTokens }) : asked;
  const isKept = ({ summary }: Pick<SelectionPolicy, "summary">) => summary === undefined || kinds.includes(summary);
  const wanted = policyNamed(resolveHeads(chosen.policy, basis));
  const policy = isAuto(asked) && !isKept(wanted) ? policyNamed(DENSE) : wanted;
  if (!isKept(policy)) {
    const message = `policy ${policy.name} needs ${policy.summary} summaries, which this engine does not keep.`;
    throw new QuireError("invalid_request", message, { param: "quire.selection.policy" });
  }
  const { firstTurnBudgetTokens } = policy;
  if (policy.name !== "dense") policy.plan(chosen.budgetTokens);
  if (firstTurnBudgetTokens !== undefined) policy.plan(firstTurnBudgetTokens);
  return {
    policy: policy.name,
    version: policy.version,
    groupTokens: policy.groupTokens,
    budgetTokens: chosen.budgetTokens,
    ...(firstTurnBudgetTokens === undefined ? {} : { firstTurnBudgetTokens }),
    exact: exact || policy.name === "dense",
  };
}

function isAuto(selection: { policy: SelectionRequest["policy"] }): selection is { policy: typeof AUTO_SELECTION } {
  return selection.policy === AUTO_SELECTION;
}

function checkTokens(value: unknown, vocabularySize: number): Uint8Array {
  if (!(value instanceof Uint8Array) || value.byteLength === 0 || value.byteLength % 4 !== 0) {
    refuse("tokens", "must be little-endian u32 ids, at least one");
  }
  for (const id of bytesToIds(value)) {
    if (id >= vocabularySize) refuse("tokens", `has the id ${id}; the vocabulary has ${vocabularySize}`);
  }
  return value;
}

function checkSession(value: unknown): GenerateRequest["session"] {
  if (value === undefined || value === null) return undefined;
  const fields = object(value, "session");
  const id = sessionId(fields.id, "session.id");
  const parent = fields.parentId;
  const born = checkBorn(fields, "session.bornMs");
  if (parent === undefined || parent === null) return { id, ...born };
  return { id, parentId: sessionId(parent, "session.parentId"), ...born };
}

function checkBorn({ bornMs }: Fields, param: string): { bornMs?: number } {
  if (bornMs === undefined || bornMs === null) return {};
  return { bornMs: integer(bornMs, param, 0, Number.MAX_SAFE_INTEGER - 1) };
}

function sessionId(value: unknown, param: string): string {
  if (typeof value !== "string" || value.length === 0) refuse(param, "must be a string that is not empty");
  if (Buffer.byteLength(value) > LIMITS.sessionIdBytesMax)
    refuse(param, `is longer than ${LIMITS.sessionIdBytesMax} bytes`);
  return value;
}

function checkSpans(value: unknown, turnStart: number): Span[] {
  if (!Array.isArray(value)) refuse("spans", "must be an array");
  const spans: Span[] = [];
  let end = 0;
  for (const item of value as unknown[]) {
    const fields = object(item, "spans");
    const next = integer(fields.end, "spans.end", end + 1, turnStart);
    const how = fields.how;
    if (typeof how !== "string" || !isHow(how)) refuse("spans.how", "is not a provenance");
    checkHow(how);
    spans.push({ end: next, how });
    end = next;
  }
  if (end !== turnStart) refuse("spans", `cover ${end} tokens of ${turnStart}`);
  return spans;
}

function checkHow(how: string): void {
  const parsed = parseHow(how);
  if (parsed === undefined) return;
  const { policy, budgetTokens } = parsed;
  if (policy === DENSE || !isCanonicalSelection(policy)) refuse("spans.how", `has the unknown policy ${policy}`);
  try {
    policyNamed(policy).plan(budgetTokens);
  } catch (error) {
    if (error instanceof QuireError) refuse("spans.how", `has the impossible budget ${budgetTokens}`);
    throw error;
  }
}

/**
 * Spans that this engine can replay. What was attended by another version of a policy, with summaries that this pool does not keep, or by heads of
 * another model, is taken as dense: it is never found and always recomputed, instead of being passed off as what it is not.
 */
export function replayableSpans(spans: readonly Span[], pool: Omit<SelectionBasis, "calibration" | "heads">): Span[] {
  return spans.map((span) => {
    const how = parseHow(span.how);
    if (how === undefined) return span;
    const { version, summary } = policyNamed(how.policy);
    const isKept = summary === undefined || pool.summaryKinds.includes(summary);
    const replayable = version === how.version && isKept && namesHeadsOf(how.policy, pool);
    return replayable ? span : { end: span.end, how: DENSE };
  });
}

function checkSampling(value: unknown, vocabularySize: number): SamplingParams {
  const fields = object(value, "sampling");
  const at = (name: string) => `sampling.${name}`;
  const bias = fields.logitBias;
  if (!Array.isArray(bias) || bias.length > LIMITS.logitBiasCountMax) {
    refuse("sampling.logitBias", `must be an array of at most ${LIMITS.logitBiasCountMax} pairs`);
  }
  return {
    temperature: number(fields.temperature, at("temperature"), 0, 100),
    topP: number(fields.topP, at("topP"), 0, 1),
    topK: integer(fields.topK, at("topK"), 0, vocabularySize),
    minP: number(fields.minP, at("minP"), 0, 1),
    seed: integer(fields.seed, at("seed"), 0, 0xffff_ffff),
    frequencyPenalty: number(fields.frequencyPenalty, at("frequencyPenalty"), -100, 100),
    presencePenalty: number(fields.presencePenalty, at("presencePenalty"), -100, 100),
    repetitionPenalty: number(fields.repetitionPenalty, at("repetitionPenalty"), 0.01, 100),
    logitBias: (bias as unknown[]).map((pair) => {
      if (!Array.isArray(pair) || pair.length !== 2) refuse("sampling.logitBias", "must hold pairs");
      const id = integer(pair[0], at("logitBias"), 0, vocabularySize - 1);
      return [id, number(pair[1], at("logitBias"), -1000, 1000)];
    }),
  };
}

function checkSelection(value: unknown): SelectionRequest {
  const fields = object(value, "selection");
  const name = parseRequestedSelection(String(fields.policy));
  const budgetTokens = integer(
    fields.budgetTokens,
    "quire.selection.budget_tokens",
    name === "dense" || (name === AUTO_SELECTION && fields.budgetTokens === 0) ? 0 : BUDGET_TOKENS_MIN,
    LIMITS.budgetTokensMax,
  );
  const exact = fields.exact;
  if (typeof exact !== "boolean") refuse("quire.selection.exact", "must be true or false");
  return { policy: name, budgetTokens, exact };
}

function checkSpeculation(value: unknown): { speculation?: boolean } {
  if (value === undefined || value === null) return {};
  if (typeof value !== "boolean") refuse("quire.speculation", "must be true or false");
  return { speculation: value };
}

function checkResume(value: unknown): { resume?: ResumeMode } {
  if (value === undefined || value === null) return {};
  const mode = RESUME_MODES.find((known) => known === value);
  if (mode === undefined) refuse("quire.resume", `must be one of ${RESUME_MODES.join(", ")}`);
  return { resume: mode };
}

/** A whole number that may be absent. */
function optional<Name extends string>(
  fields: Fields,
  name: Name,
  min: number,
  max: number,
): { [key in Name]?: number } {
  const value = fields[name];
  return value === undefined || value === null
    ? {}
    : ({ [name]: integer(value, name, min, max) } as { [key in Name]: number });
}

function refuse(param: string, problem: string): never {
  throw new QuireError("invalid_request", `${param} ${problem}.`, { param });
}

function object(value: unknown, param: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Uint8Array)
    refuse(param, "must be an object");
  return value as Fields;
}

function text(value: unknown, param: string, pattern: RegExp): string {
  if (typeof value !== "string" || !pattern.test(value)) refuse(param, `must match ${pattern.source}`);
  return value;
}

function integer(value: unknown, param: string, min: number, max: number): number {
  const found = number(value, param, min, max);
  if (!Number.isSafeInteger(found)) refuse(param, "must be a whole number");
  return found;
}

function number(value: unknown, param: string, min: number, max: number): number {
  if (typeof value !== "number" || !(value >= min && value <= max))
    refuse(param, `must be a number from ${min} to ${max}`);
  return value;
}

function ids(value: unknown, param: string, countMax: number): number[] {
  if (!Array.isArray(value) || value.length > countMax) refuse(param, `must be an array of at most ${countMax} ids`);
  return (value as unknown[]).map((id) => integer(id, param, 0, 0xffff_ffff));
}
