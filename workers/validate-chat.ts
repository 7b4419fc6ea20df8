/** POST /v1/chat/completions: from a JSON body to a turn, or a 400 that names the field. */

import type { SelectionRequest } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ChatMessage } from "../tokenizer/contract.ts";
import { asRecord, Fields, invalid, invalidType, quoted } from "./fields.ts";
import type { TurnOptions } from "./turn-job.ts";
import {
  type ResponseOptions,
  readChoiceCount,
  readResponse,
  readResume,
  readSampling,
  readSelection,
  readSpeculation,
  readStop,
} from "./validate.ts";

/** What validation is given beside the body. */
export interface ValidationContext {
  headers: Headers;
  selectionDefaults: SelectionRequest;
  randomSeed: () => number;
}

/** A valid chat request; the transcript's hashes are added by the caller. */
export interface ChatRequest extends ResponseOptions {
  messages: ChatMessage[];
  turn: Omit<TurnOptions, "input">;
}

/**
 * Checks every field of a chat request.
 * @throws {QuireError} `invalid_request` with `param`: unknown fields, impossible values, and OpenAI fields that this server does
 * not have, unless they hold their no-op default.
 */
export function validateChat(body: Record<string, unknown>, context: ValidationContext): ChatRequest {
  const fields = new Fields(body);
  const messages = readMessages(fields);
  const quire = fields.object("quire");
  const response = readResponse(fields, quire, context.headers);
  const maxTokens = readMaxTokens(fields);
  const turn = {
    choiceCount: readChoiceCount(fields, response.sessionId),
    ...maxTokens,
    maxTokensDefault: LIMITS.completionTokensDefault,
    sampling: readSampling(fields, context.randomSeed),
    stopStrings: readStop(fields),
    ...readSpeculation(quire),
    ...readResume(quire),
    selection: readSelection(quire, context.selectionDefaults),
    topLogprobs: readTopLogprobs(fields),
  };
  if (!fields.isAllKnown) {
    refuseUnsupported(fields);
    fields.refuseOthers();
  }
  return { ...response, messages, turn };
}

function readMaxTokens(fields: Fields): { maxTokens: number | undefined; maxTokensParam: string } {
  const range = { min: 1, max: 1 << 30, integer: true };
  const older = fields.number("max_tokens", range);
  const newer = fields.number("max_completion_tokens", range);
  if (older !== undefined && newer !== undefined) {
    throw invalid("max_tokens", "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.");
  }
  return { maxTokens: newer ?? older, maxTokensParam: older === undefined ? "max_completion_tokens" : "max_tokens" };
}

function readTopLogprobs(fields: Fields): number | undefined {
  const wanted = fields.boolean("logprobs") ?? false;
  const top = fields.number("top_logprobs", { min: 0, max: LIMITS.topLogprobsMax, integer: true });
  if (top !== undefined && !wanted) {
    throw invalid("top_logprobs", "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.");
  }
  return wanted ? (top ?? 0) : undefined;
}

/** OpenAI's fields that a text-only server without tools cannot honour. */
function refuseUnsupported(fields: Fields): void {
  const isEmptyArray = (value: unknown) => Array.isArray(value) && value.length === 0;
  fields.unsupported("tools", isEmptyArray);
  fields.unsupported("functions", isEmptyArray);
  fields.unsupported("tool_choice", (value) => value === "none" || value === "auto");
  fields.unsupported("function_call", (value) => value === "none" || value === "auto");
  fields.label("parallel_tool_calls", "boolean");
  fields.unsupported("response_format", (value) => isTextFormat(value));
  fields.unsupported("modalities", (value) => Array.isArray(value) && value.length === 1 && value[0] === "text");
  fields.unsupported("audio", () => false);
  fields.unsupported("prediction", () => false);
  fields.unsupported("web_search_options", () => false);
  fields.unsupported("moderation", () => false);
  fields.unsupported("service_tier", (value) => value === "auto" || value === "default");
  fields.unsupported("reasoning_effort", (value) => value === "none" || value === "medium");
  fields.unsupported("verbosity", (value) => value === "medium");
  // A conversation is kept as a session whether it is asked for or not; no list of stored answers is there to be lied about.
  fields.label("store", "boolean");
  fields.label("metadata", "object");
  fields.label("user", "string");
  fields.label("safety_identifier", "string");
  fields.label("prompt_cache_key", "string");
  fields.label("prompt_cache_retention", "string");
  fields.label("prompt_cache_options", "object");
}

function isTextFormat(value: unknown): boolean {
  return typeof value === "object" && value !== null && "type" in value && value.type === "text";
}

function readMessages(fields: Fields): ChatMessage[] {
  const messages = fields.array("messages");
  if (!messages) throw invalid("messages", "Missing required parameter: 'messages'.");
  if (messages.length === 0) {
    throw invalid("messages", "Invalid 'messages': empty array. Expected an array with minimum length 1.");
  }
  if (messages.length > LIMITS.messageCountMax) {
    throw invalid(
      "messages",
      `Invalid 'messages': array too long. Expected at most ${LIMITS.messageCountMax} messages.`,
    );
  }
  return messages.map((message, index) => plainMessage(message) ?? readMessage(message, `messages[${index}]`));
}

/** What nearly every message is: a role and a text, and nothing else. Undefined for any other. */
function plainMessage(value: unknown): ChatMessage | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { role, content } = value as Record<string, unknown>;
  const known = ROLES.find((name) => name === role);
  if (known === undefined || typeof content !== "string") return undefined;
  for (const name in value) if (name !== "role" && name !== "content") return undefined;
  return { role: known, content: content.toWellFormed() };
}

const ROLES = ["system", "developer", "user", "assistant"] as const;

function readMessage(value: unknown, path: string): ChatMessage {
  const fields = new Fields(asRecord(value, path), `${path}.`);
  const role = fields.string("role");
  if (role === undefined) throw invalid(`${path}.role`, `Missing required parameter: '${path}.role'.`);
  const known = ROLES.find((name) => name === role);
  if (known === undefined) {
    throw invalid(
      `${path}.role`,
      `Invalid value: '${quoted(role)}'. Supported values are: ${ROLES.map((name) => `'${name}'`).join(", ")}.`,
    );
  }
  if (known === "assistant") {
    // What a client has in hand when it sends back the message object that it received. One with tool calls has no content: they are what is refused.
    fields.unsupported("tool_calls", (calls) => Array.isArray(calls) && calls.length === 0);
    fields.unsupported("function_call", () => false);
    fields.unsupported("audio", () => false);
    fields.unsupported("refusal", () => false);
    fields.unsupported("annotations", (list) => Array.isArray(list) && list.length === 0);
  }
  const content = readContent(fields, known, path);
  const name = fields.string("name");
  fields.refuseOthers();
  return name === undefined ? { role: known, content } : { role: known, content, name: name.toWellFormed() };
}

function readContent(fields: Fields, role: ChatMessage["role"], path: string): string {
  const content = fields.raw("content");
  const param = `${path}.content`;
  // Unpaired surrogates cannot be stored or tokenized: they are what UTF-8 makes of them, from the start.
  if (typeof content === "string") return content.toWellFormed();
  if (content === undefined) throw invalid(param, `Missing required parameter: '${param}'.`);
  if (!Array.isArray(content)) throw invalidType(param, "a string or an array of content parts", content);
  if (content.length === 0)
    throw invalid(param, `Invalid '${param}': empty array. Expected at least one content part.`);
  return content.map((part, index) => readTextPart(part, role, `${param}[${index}]`)).join("");
}

function readTextPart(part: unknown, role: ChatMessage["role"], path: string): string {
  const fields = new Fields(asRecord(part, path), `${path}.`);
  const type = fields.string("type");
  if (type !== "text") {
    throw invalid(
      `${path}.type`,
      `Invalid value: '${quoted(type ?? "")}'. Content of a ${role} message has parts of type 'text' only.`,
    );
  }
  const text = fields.string("text");
  if (text === undefined) throw invalid(`${path}.text`, `Missing required parameter: '${path}.text'.`);
  fields.label("prompt_cache_breakpoint", "object");
  fields.refuseOthers();
  return text.toWellFormed();
}
