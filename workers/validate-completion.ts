/** POST /v1/completions: from a JSON body to a turn, or a 400 that names the field. */
import { checkNumber, Fields, invalid, invalidType } from "./fields.ts";
import type { TurnInput, TurnOptions } from "./turn-job.ts";
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
  const input = readPrompt(fields);
  const quire = fields.object("quire");
  const response = readResponse(fields, quire, context.headers);
  if (response.resumable && response.sessionId === undefined) {
    throw invalid("quire.resumable", "'quire.resumable' needs a session: name one in 'quire.session_id'.");
  }
  const choiceCount = readChoiceCount(fields, response.sessionId);
  const turn = {
    input,
    choiceCount,
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
  fields.unsupported("best_of", (value) => value === choiceCount);
  fields.unsupported("echo", (value) => value === false);
  fields.unsupported("suffix", (value) => value === "");
  fields.label("user", "string");
  fields.refuseOthers();
  return { ...response, turn };
}

/** A string, an array with one string, an array of token ids, or an array with one such array. */
function readPrompt(fields: Fields): TurnInput {
  const prompt = fields.raw("prompt");
  if (prompt === undefined) throw invalid("prompt", "Missing required parameter: 'prompt'.");
  if (typeof prompt === "string") return readText(prompt);
  if (!Array.isArray(prompt)) throw invalidType("prompt", "a string or an array of token ids", prompt);
  if (prompt.length === 0) throw invalid("prompt", "Invalid 'prompt': empty array.");
  const [first] = prompt;
  if (typeof first === "number") return readIds(prompt, "prompt");
  if (prompt.length > 1) {
    throw invalid("prompt", "Invalid 'prompt': this server takes one prompt per request.");
  }
  if (typeof first === "string") return readText(first);
  if (Array.isArray(first)) return readIds(first, "prompt[0]");
  throw invalidType("prompt[0]", "a string or a token id", first);
}

function readText(prompt: string): TurnInput {
  if (prompt === "") throw invalid("prompt", "Invalid 'prompt': it must not be empty.");
  return { kind: "raw", text: prompt.toWellFormed() };
}

function readIds(ids: unknown[], path: string): TurnInput {
  if (ids.length === 0) throw invalid("prompt", "Invalid 'prompt': it must not be empty.");
  // The model's vocabulary is known later; here an id only has to be one.
  const range = { min: 0, max: 2 ** 31 - 1, integer: true };
  return { kind: "raw-ids", ids: ids.map((id, index) => checkNumber(id, `${path}[${index}]`, range)) };
}
