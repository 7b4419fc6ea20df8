/**
 * What the log of a conversation with house-0 must be, told from the words alone: the naive twin of the edge. Its tokens are bytes, so rendering a
 * transcript takes a screen; it shares no line with the edge.
 */
import type { Span } from "../../../protocol/generate.ts";

const [BOS, USER, ASSISTANT] = [256, 257, 258] as const;
/** Ends a reply. */
export const END = 259;

/** A message as clients send it. */
export interface Words {
  role: "system" | "user" | "assistant";
  content: string;
}

/** A message of a log. */
interface Said extends Words {
  /** Of a reply: what the model said, without an end token. */
  ids?: readonly number[];
}

/** A conversation as it must be logged. Never changed: a turn makes another one. */
export interface Transcript {
  ids: readonly number[];
  /** How each token was computed; neighbours of one kind stay apart where a turn began between them. */
  spans: readonly Span[];
  messages: readonly Said[];
  turnCount: number;
  /** A page was missed, or may have been: nothing that follows can be told. */
  isApproximate: boolean;
}

/** The log of a session that there is not. */
export const NO_TRANSCRIPT: Transcript = { ids: [], spans: [], messages: [], turnCount: 0, isApproximate: false };

/** A prompt, and what the log keeps in front of it. */
export interface Prompt {
  ids: readonly number[];
  messages: readonly Said[];
  /** Tokens of earlier turns. */
  turnStart: number;
  /** Of earlier turns. */
  spans: readonly Span[];
}

const utf8 = new TextEncoder();

/** Bytes of the text that tokens stand for; tokens that are no bytes have none. */
export function textOf(ids: readonly number[]): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.filter((id) => id < 256)));
}

/** What is said next: behind the log (`new`), or the whole transcript, of which what the log has is found again. */
export function promptOf(log: Transcript, sent: readonly Words[], isWhole: boolean): Prompt {
  let matched = 0;
  while (matched < log.messages.length && isSame(log.messages[matched], sent[matched])) matched += 1;
  const isReplay = isWhole || log.messages.slice(0, matched).some(({ role }) => role !== "user");
  const keptCount = isReplay ? Math.min(matched, sent.length - 1) : log.messages.length;
  const added = isReplay ? sent.slice(keptCount) : sent;
  const messages = [...log.messages.slice(0, keptCount), ...added];
  const ids = render(messages);
  let common = 0;
  while (common < ids.length && log.ids[common] === ids[common]) common += 1;
  const turnStart = Math.min(common, ids.length - 1);
  return { ids, messages, turnStart, spans: cut(log.spans, turnStart) };
}

/** Of raw text, to which house-0 adds nothing. */
export function rawPrompt(text: string): Prompt {
  return { ids: [...utf8.encode(text)], messages: [], turnStart: 0, spans: [] };
}

/** The log behind a turn whose reply is kept up to some token. @param how of the prompt and of the reply */
export function turnMade(
  log: Transcript,
  prompt: Prompt,
  reply: { ids: readonly number[]; isEnded: boolean; how: { prompt: string; reply: string } },
): Transcript {
  const ids = [...prompt.ids, ...reply.ids, ...(reply.isEnded ? [END] : [])];
  const said: Said = { role: "assistant", content: textOf(reply.ids), ids: reply.ids };
  const spans = [...prompt.spans];
  add(spans, prompt.ids.length, reply.how.prompt);
  add(spans, ids.length, reply.how.reply);
  const messages = [...prompt.messages, said];
  return { ids, spans, messages, turnCount: log.turnCount + 1, isApproximate: log.isApproximate };
}

function render(messages: readonly Said[]): number[] {
  const ids: number[] = [BOS];
  let system = "";
  for (const { role, content, ids: raw } of messages) {
    if (role === "system") system = `${content}\n`;
    else if (role === "user") {
      ids.push(USER, ...utf8.encode(system + content));
      system = "";
    } else ids.push(ASSISTANT, ...(raw ?? utf8.encode(content)), END);
  }
  return [...ids, ASSISTANT];
}

function isSame(a: Words | undefined, b: Words | undefined): boolean {
  return a !== undefined && b !== undefined && a.role === b.role && a.content === b.content;
}

function cut(spans: readonly Span[], end: number): Span[] {
  const kept: Span[] = [];
  for (const span of spans) {
    if ((kept.at(-1)?.end ?? 0) >= end) break;
    kept.push({ end: Math.min(span.end, end), how: span.how });
  }
  return kept;
}

function add(spans: Span[], end: number, how: string): void {
  if (end > (spans.at(-1)?.end ?? 0)) spans.push({ end, how });
}
