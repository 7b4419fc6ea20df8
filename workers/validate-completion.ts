/** POST /v1/completions: from a JSON body to a turn, or a 400 that names the field. */
import { LIMITS } from "../protocol/limits.ts";
import { checkNumber, Fields, invalid, invalidType } from "./fields.ts";
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
import type { ValidationContext } from "./validate-chat.ts";

/** A valid completion request. */
export interface CompletionRequest extends ResponseOptions {
  turn: TurnOptions;
}

/** OpenAI's own figures for this, the older, interface. */
const LOGPROBS_MAX = 5;
const MAX_TOKENS_DEFAULT = 16;

/**
 * Checks every field of a completion request.
 * @throws {QuireError} `invalid_request` with `param`, as `validateChat`.
 */
export function validateCompletion(body: Record<string, unknown>, context: ValidationContext): CompletionRequest {
  const fields = new Fields(body);
  const prompts = readPrompts(fields);
  const quire = fields.object("quire");
  const response = readResponse(fields, quire, context.headers);
  if (response.resumable && response.sessionId === undefined) {
    throw invalid("quire.resumable", "'quire.resumable' needs a session: name one in 'quire.session_id'.");
  }
  const choicesEach = readChoiceCount(fields, response.sessionId);
  checkListed(prompts, choicesEach, response.sessionId);
  const turn = {
    input: { kind: "raw" as const, prompts },
    choiceCount: prompts.length * choicesEach,
    maxTokens: fields.number("max_tokens", { min: 1, max: 1 << 30, integer: true }),
    maxTokensDefault: MAX_TOKENS_DEFAULT,
    maxTokensParam: "max_tokens",
    sampling: readSampling(fields, context.randomSeed),
    stopStrings: readStop(fields),
    ...readSpeculation(quire),
    ...readResume(quire),
    selection: readSelection(quire, context.selectionDefaults),
    topLogprobs: fields.number("logprobs", { min: 0, max: LOGPROBS_MAX, integer: true }),
  };
  fields.unsupported("best_of", (value) => value === choicesEach);
  fields.unsupported("echo", (value) => value === false);
  fields.unsupported("suffix", (value) => value === "");
  fields.label("user", "string");
  fields.refuseOthers();
  return { ...response, turn };
}

/** A string, an array of strings, an array of token ids, or an array of such arrays. */
function readPrompts(fields: Fields): (string | number[])[] {
  const prompt = fields.raw("prompt");
  if (prompt === undefined) throw invalid("prompt", "Missing required parameter: 'prompt'.");
  if (typeof prompt === "string") return [readText(prompt, "prompt")];
  if (!Array.isArray(prompt)) throw invalidType("prompt", "a string or an array of token ids", prompt);
  if (prompt.length === 0) throw invalid("prompt", "Invalid 'prompt': empty array.");
  const [first] = prompt;
  if (typeof first === "number") return [readIds(prompt, "prompt")];
  if (typeof first !== "string" && !Array.isArray(first)) {
    throw invalidType("prompt[0]", "a string or a token id", first);
  }
  return prompt.map((one, index) => {
    const path = prompt.length === 1 ? "prompt" : `prompt[${index}]`;
    if (typeof first === "string" && typeof one === "string") return readText(one, path);
    if (Array.isArray(first) && Array.isArray(one)) return readIds(one, `prompt[${index}]`);
    throw invalidType(`prompt[${index}]`, typeof first === "string" ? "a string" : "an array of token ids", one);
  });
}

function readText(prompt: string, path: string): string {
  if (prompt === "") throw invalid(path, `Invalid '${path}': it must not be empty.`);
  return prompt.toWellFormed();
}

function readIds(ids: unknown[], path: string): number[] {
  if (ids.length === 0) throw invalid(path, `Invalid '${path}': it must not be empty.`);
  // The model's vocabulary is known later; here an id only has to be one.
  const range = { min: 0, max: 2 ** 31 - 1, integer: true };
  return ids.map((id, index) => checkNumber(id, `${path}[${index}]`, range));
}

function checkListed(prompts: readonly unknown[], choicesEach: number, sessionId: string | undefined): void {
  if (prompts.length > 1 && sessionId !== undefined) {
    throw invalid("prompt", "Invalid 'prompt': a request with a session takes one prompt.");
  }
  const { listedChoiceCountMax: countMax } = LIMITS;
  if (prompts.length > 1 && prompts.length * choicesEach > countMax) {
    throw invalid("prompt", `Invalid 'prompt': a request has at most ${countMax} choices, the prompts times 'n'.`);
  }
}
