/** From a job and the log to the ids of a prompt. Writes nothing. */

import { contentDigestHex } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { chainHashes, chainStart } from "../chain.ts";
import type { ModelAssets } from "../model-assets.ts";
import type { TurnInput, TurnJob } from "../turn-job.ts";
import { emptyLog } from "./log-memory.ts";
import type { KnownLog, StoredMessage } from "./log-store.ts";
import { RenderMemory } from "./render-memory.ts";
import { cutSpans } from "./spans.ts";
import { type Checkpoint, planTurn } from "./turn-plan.ts";

/** A prompt, and how it changes the log if the turn succeeds. */
export interface PreparedTurn {
  /** The whole prompt: what is kept of the log, and what is new. */
  tokens: Uint32Array<ArrayBuffer>;
  /** Of a list of prompts, those behind the first; they have no log. */
  otherPrompts: Uint32Array<ArrayBuffer>[];
  /** Log tokens that stay. */
  keepTokens: number;
  /** Spans of the kept tokens. */
  spans: Span[];
  keepMessages: number;
  /** Messages behind the kept ones; the last has its borders. Empty for raw text. */
  newMessages: StoredMessage[];
  /** All messages in front of the reply; empty for raw text. */
  transcript: ChatMessage[];
  /** The rendered transcript; empty for raw text. */
  promptText: string;
  /** Transcript hash in front of the reply; empty for raw text. */
  promptChain: string;
}

/** A session that has gone on since its transcript was looked up. */
export class SessionMoved extends Error {
  override readonly name = "SessionMoved";
}

/**
 * Plans a turn.
 * @throws {QuireError} `invalid_request` for a model or kind that is not the session's, a template that refuses, ids outside the
 * vocabulary, or a prompt without tokens.
 * @throws {SessionMoved} when the job expects the log elsewhere.
 */
export async function prepareTurn(
  job: TurnJob,
  known: KnownLog | undefined,
  assets: ModelAssets,
  memory: RenderMemory = new RenderMemory(),
): Promise<PreparedTurn> {
  checkVocabulary(job, assets);
  const meta = known?.meta;
  const kind = job.input.kind === "chat" ? "chat" : "raw";
  if (meta && meta.model !== job.model) {
    throw new QuireError("invalid_request", `This session belongs to the model '${meta.model}'.`, { param: "model" });
  }
  if (meta && meta.kind !== kind) {
    const owner = meta.kind === "chat" ? "chat completions" : "completions";
    throw new QuireError("invalid_request", `This session belongs to ${owner}.`, { param: "quire.session_id" });
  }
  const { tokens: log, spans, messages: stored } = known?.log ?? emptyLog();
  const prepared =
    job.input.kind === "chat"
      ? await prepareChat(job, job.input, { named: meta?.named === true, stored, log, memory }, assets)
      : prepareRaw(rawPrompts(job.input.prompts, assets, log.length === 0), log);
  if ([prepared.tokens, ...prepared.otherPrompts].some(({ length }) => length === 0)) {
    throw new QuireError("invalid_request", "The prompt has no tokens.", {
      param: kind === "chat" ? "messages" : "prompt",
    });
  }
  return { ...prepared, spans: cutSpans(spans, prepared.keepTokens) };
}

type Planned = Omit<PreparedTurn, "spans">;

/** Ids of each prompt, of which no more are read together than of one. */
function rawPrompts(prompts: readonly (string | number[])[], assets: ModelAssets, atStart: boolean): number[][] {
  let countMax: number = LIMITS.promptTokensMax;
  return prompts.map((prompt) => {
    const ids = typeof prompt === "string" ? rawIds(prompt, assets, { atStart, countMax }) : prompt;
    countMax -= ids.length;
    return ids;
  });
}

function rawIds(
  text: string,
  assets: ModelAssets,
  { atStart, countMax }: { atStart: boolean; countMax: number },
): number[] {
  const ids = encode(assets, text, "prompt", countMax);
  return atStart && assets.bosToken !== undefined && ids[0] !== assets.bosToken ? [assets.bosToken, ...ids] : ids;
}

function prepareRaw([first = [], ...others]: number[][], log: Uint32Array): Planned {
  const tokens = concat(log, first);
  return {
    tokens,
    otherPrompts: others.map((ids) => Uint32Array.from(ids)),
    keepTokens: log.length,
    keepMessages: 0,
    newMessages: [],
    transcript: [],
    promptText: "",
    promptChain: "",
  };
}

interface ChatLog {
  /** Somebody named the session since it was looked up. */
  named: boolean;
  stored: readonly StoredMessage[];
  log: Uint32Array;
  memory: RenderMemory;
}

async function prepareChat(
  job: TurnJob,
  input: Extract<TurnInput, { kind: "chat" }>,
  { named, stored, log, memory }: ChatLog,
  assets: ModelAssets,
): Promise<Planned> {
  const { messages: sent, chain: sentChain } = input;
  const expected = job.session?.expectChain;
  if (expected !== undefined && (named || stored.at(-1)?.chain !== expected)) throw new SessionMoved();
  const matched = countMatching(stored, sentChain);
  // Without a session's name, a request is its whole transcript.
  const replay = job.session?.implicit !== false || isReplay(stored, matched);
  // A transcript that ends within the log (a turn asked for again) writes its last message anew: the prompt's border is its.
  const keepMessages = replay ? Math.min(matched, sent.length - 1) : stored.length;
  const added = replay ? sent.slice(keepMessages) : sent;
  const start = stored[keepMessages - 1]?.chain ?? chainStart(job.model);
  const addedChain = replay ? sentChain.slice(keepMessages) : await chainHashes(start, added);
  const transcript = [...stored.slice(0, keepMessages), ...added].map(plainMessage);
  if (transcript.length > LIMITS.messageCountMax) {
    throw new QuireError("invalid_request", `A session has at most ${LIMITS.messageCountMax} messages.`, {
      param: "messages",
    });
  }
  const newText = assets.template.render(transcript, { addGenerationPrompt: true });
  const { oldText, checkpoints } = stored.length === 0 ? NO_TEXT : await describeLog(stored, assets, memory);
  const { keep, appended } = planTurn({
    ...{ log, checkpoints, oldText, newText },
    encode: (text) => encode(assets, text, "messages"),
  });
  const tokens = concat(log.subarray(0, keep), appended);
  // Its hash is the log's affair, when the turn is written (`turn-commit.ts`).
  const border = { tokenEnd: tokens.length, textEnd: newText.length };
  const newMessages = added.map((message, index): StoredMessage => {
    const chain = addedChain[index] ?? "";
    return { ...plainMessage(message), chain, reply: false, ...(index === added.length - 1 && border) };
  });
  return {
    tokens,
    otherPrompts: [],
    keepTokens: keep,
    keepMessages,
    newMessages,
    transcript,
    promptText: newText,
    promptChain: addedChain.at(-1) ?? start,
  };
}

/** @throws {QuireError} `context_length_exceeded` for a text of more tokens than any context: it is not read to its end */
function encode(
  { tokenizer }: ModelAssets,
  text: string,
  param: string,
  countMax: number = LIMITS.promptTokensMax,
): number[] {
  const ids = countMax < 1 ? [] : tokenizer.encode(text, { special: true, countMax });
  if (countMax > 0 && ids.length <= countMax) return ids;
  const message = `The ${param} ${param === "messages" ? "have" : "has"} more than ${LIMITS.promptTokensMax} tokens, which no model here takes.`;
  throw new QuireError("context_length_exceeded", message, { param });
}

/** How many leading messages of the log the client has sent again. */
function countMatching(stored: readonly StoredMessage[], sentChain: readonly string[]): number {
  let count = 0;
  while (count < stored.length && stored[count]?.chain === sentChain[count]) count += 1;
  return count;
}

/**
 * Whether what the client sent is the transcript again (then it replaces what differs) or only what is new. A message that merely
 * repeats the first words of the user is new; one that comes with the system prompt or a reply in front is the transcript.
 */
function isReplay(stored: readonly StoredMessage[], matched: number): boolean {
  return stored.slice(0, matched).some((message) => message.role !== "user");
}

/** Of a log that nothing is known of. */
const NO_TEXT: { oldText: string; checkpoints: readonly Checkpoint[] } = { oldText: "", checkpoints: [] };

/**
 * The text that the log stands for, up to its last border, and where the two are known to agree. Nothing when the template now renders
 * the same messages differently (a date in it, another model file): then nothing can be relied on.
 */
async function describeLog(
  stored: readonly StoredMessage[],
  assets: ModelAssets,
  memory: RenderMemory,
): Promise<typeof NO_TEXT> {
  const borders = stored.slice(0, stored.findLastIndex(({ textEnd }) => textEnd !== undefined) + 1);
  const last = borders.at(-1);
  if (!last) return NO_TEXT;
  const kept = last.textHash === undefined ? undefined : memory.find(last.textHash);
  const oldText = kept ?? (await renderAgain(borders, assets));
  if (oldText === undefined) return NO_TEXT;
  const checkpoints = borders.flatMap(({ tokenEnd, textEnd }) =>
    tokenEnd === undefined || textEnd === undefined ? [] : [{ tokens: tokenEnd, textLength: textEnd }],
  );
  return { oldText, checkpoints };
}

/** The text of a log up to its last border; undefined when it is not what it was. */
async function renderAgain(borders: readonly StoredMessage[], assets: ModelAssets): Promise<string | undefined> {
  const last = borders.at(-1);
  const options = { addGenerationPrompt: !last?.reply };
  const text = assets.template.render(borders.map(plainMessage), options).slice(0, last?.textEnd);
  return (await hashText(text)) === last?.textHash ? text : undefined;
}

const utf8 = new TextEncoder();

/** Names a rendered text. */
export async function hashText(text: string): Promise<string> {
  return contentDigestHex(utf8.encode(text));
}

/** A message without what the log knows of it. */
function plainMessage({ role, content, name }: ChatMessage): ChatMessage {
  return name === undefined ? { role, content } : { role, content, name };
}

function checkVocabulary(job: TurnJob, assets: ModelAssets): void {
  const size = assets.tokenizer.vocabularySize;
  const refuse = (param: string, id: number): never => {
    throw new QuireError("invalid_request", `Invalid '${param}': the model has no token ${id}.`, { param });
  };
  for (const [id] of job.sampling.logitBias) if (id >= size) refuse("logit_bias", id);
  if (job.input.kind === "chat") return;
  for (const prompt of job.input.prompts) {
    if (typeof prompt !== "string") for (const id of prompt) if (id >= size) refuse("prompt", id);
  }
}

function concat(head: Uint32Array, tail: readonly number[]): Uint32Array<ArrayBuffer> {
  const whole = new Uint32Array(head.length + tail.length);
  whole.set(head);
  whole.set(tail, head.length);
  return whole;
}
