/** Asks a model about a document: the passage is read densely, once; each plan then reads each question and answers it. */
import { BLOCK_TOKENS, type SliceTraffic } from "../../kernels/contract.ts";
import type { ModelRunner } from "../../models/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { ChatMessage, ChatTemplate, Tokenizer } from "../../tokenizer/contract.ts";
import { logSoftmax } from "../distribution.ts";
import { type CaseTurn, casesOf, isRight, type RecallCase, type RecallDocument, userMessage } from "./cases.ts";
import type { Sequence, TurnPlan } from "./sequence.ts";

/** Longest reply; a longer one is cut. */
export const REPLY_TOKENS_MAX = 64;
/** Tokens between a question's first and its answer that a template may add. */
const MARKER_TOKENS = 16;

/** A model with its words. */
export interface Subject {
  runner: ModelRunner;
  sequence: Sequence;
  tokenizer: Tokenizer;
  template: ChatTemplate;
  /** Raw logits of the row that was sampled last. */
  logits(): Float32Array;
}

/** What came of one plan. */
export interface Reply {
  isRight: boolean;
  /** The reply to the last turn. */
  text: string;
  /** Of the steps that read the question and answered. */
  traffic: SliceTraffic;
}

/** Of each question one reply per plan, all from the same KV of the passage. */
export async function askDocument(
  subject: Subject,
  options: { document: RecallDocument; passage: string; plans: readonly TurnPlan[]; signal: AbortSignal },
): Promise<Reply[][]> {
  const { document, passage, plans, signal } = options;
  const { sequence } = subject;
  const questions = casesOf(document);
  const { kept, rests } = splitDocument(subject, document, passage);
  sequence.rewind(0);
  await sequence.read(kept, signal);
  const replies: Reply[][] = [];
  for (const [index, question] of questions.entries()) {
    const rest = rests[index] as readonly number[];
    const own: Reply[] = [];
    for (const plan of plans) {
      sequence.rewind(kept.length);
      const text = await converse(subject, { question, passage, ...plan, rest, signal });
      own.push({ isRight: isRight(text, question.turns.at(-1)?.expect ?? []), text, traffic: sequence.traffic });
    }
    replies.push(own);
  }
  return replies;
}

/** The prompts of the first turns of all of a document's questions: whole blocks that they begin with, and what each has behind them. */
export function splitDocument(
  subject: Pick<Subject, "tokenizer" | "template">,
  document: RecallDocument,
  passage: string,
): { kept: number[]; rests: number[][] } {
  const prompts = casesOf(document).map((question) => splitPrompt(subject, question, passage));
  const kept = sharedBlocks(prompts.map((prompt) => prompt.kept));
  return { kept, rests: prompts.map((prompt) => [...prompt.kept.slice(kept.length), ...prompt.rest]) };
}

/** Whole blocks that several prompts begin with. */
function sharedBlocks(prompts: readonly (readonly number[])[]): number[] {
  const [first = [], ...others] = prompts;
  const differs = (prompt: readonly number[]): number => {
    const at = first.findIndex((id, index) => prompt[index] !== id);
    return at < 0 ? first.length : at;
  };
  const shared = Math.min(first.length, ...others.map(differs));
  return first.slice(0, Math.floor(shared / BLOCK_TOKENS) * BLOCK_TOKENS);
}

/** A prompt in two: what is read once, and what each plan reads. */
export interface SplitPrompt {
  kept: number[];
  rest: number[];
}

/** The prompt of a case's first turn: whole blocks of the passage, and the rest with the question. */
export function splitPrompt(
  subject: Pick<Subject, "tokenizer" | "template">,
  question: RecallCase,
  passage: string,
): SplitPrompt {
  const prompt = encodePrompt(subject, [userMessage(question, 0, passage)]);
  const questionTokens = subject.tokenizer.encode(question.turns[0]?.ask ?? "").length + MARKER_TOKENS;
  const kept = Math.max(0, Math.floor((prompt.length - questionTokens) / BLOCK_TOKENS) * BLOCK_TOKENS);
  return { kept: prompt.slice(0, kept), rest: prompt.slice(kept) };
}

/** The reply to the last turn, from where the sequence is; earlier replies are the model's own. */
export async function converse(
  subject: Subject,
  options: TurnPlan & {
    question: RecallCase;
    passage: string;
    rest: readonly number[];
    signal: AbortSignal;
  },
): Promise<string> {
  const { question, passage, signal, rest, ...how } = options;
  const { sequence, tokenizer, template, runner } = subject;
  const endIds = runner.config.eosTokenIds;
  const messages: ChatMessage[] = [];
  let prompt = rest;
  let reply = "";
  for (let turn = 0; turn < question.turns.length; turn++) {
    messages.push(userMessage(question, turn, passage));
    const { choices } = question.turns[turn] as CaseTurn;
    if (choices !== undefined) {
      assert(question.turns.length === 1, "an answer is chosen in a conversation of one turn");
      return await likeliest(subject, { ...how, turn: question.turns[0] as CaseTurn, choices, prompt, signal });
    }
    const ids = await sequence.answer(prompt, { ...how, tokensMax: REPLY_TOKENS_MAX, endIds, signal });
    const ended = endIds.includes(ids.at(-1) as number);
    reply = tokenizer.decode(ended ? ids.slice(0, -1) : ids);
    if (turn === question.turns.length - 1) break;
    const said = template.render(messages, { addGenerationPrompt: true }) + reply;
    messages.push({ role: "assistant", content: reply });
    const next = [...messages, userMessage(question, turn + 1, passage)];
    const following = template.render(next, { addGenerationPrompt: true }).slice(said.length);
    // The last id of a reply is not in the cache yet; an end token is what the template writes next.
    prompt = [...(ended ? [] : ids.slice(-1)), ...tokenizer.encode(following, { special: true })];
  }
  return reply;
}

/** The words of a turn's `choices` that the model, having begun the answer, holds for likeliest; the first of equals. */
async function likeliest(
  subject: Subject,
  options: TurnPlan & { turn: CaseTurn; choices: readonly string[]; prompt: readonly number[]; signal: AbortSignal },
): Promise<string> {
  const { turn, choices, prompt, signal, ...how } = options;
  const { sequence, tokenizer } = subject;
  const start = sequence.length;
  const begun = [...prompt, ...tokenizer.encode(turn.answer.split(` ${turn.expect[0]}`)[0] as string)];
  const scores: number[] = [];
  for (const choice of choices) {
    sequence.rewind(start);
    const ids = tokenizer.encode(` ${choice}`);
    await sequence.answer(begun, { ...how, tokensMax: 1, endIds: [], signal });
    let score = 0;
    for (const [place, id] of ids.entries()) {
      if (place > 0) await sequence.advance(ids[place - 1] as number, how.plan);
      score += logSoftmax(subject.logits())[id] as number;
    }
    scores.push(score);
  }
  return choices[scores.indexOf(Math.max(...scores))] as string;
}

function encodePrompt(
  { tokenizer, template }: Pick<Subject, "tokenizer" | "template">,
  messages: readonly ChatMessage[],
): number[] {
  return tokenizer.encode(template.render(messages, { addGenerationPrompt: true }), { special: true });
}
