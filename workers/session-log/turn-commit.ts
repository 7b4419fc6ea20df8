/** What a finished turn changes in the log. Writes nothing itself. */
import { toQuireError } from "../../protocol/errors.ts";
import type { Span } from "../../protocol/generate.ts";
import { chainHashes } from "../chain.ts";
import type { ModelAssets } from "../model-assets.ts";
import type { IndexRow } from "../tenant-index.ts";
import type { TurnJob } from "../turn-job.ts";
import type { LogCommit, SessionMeta, StoredMessage } from "./log-store.ts";
import { renderedLength } from "./marked-text.ts";
import { hashText, type PreparedTurn } from "./prepare.ts";
import type { RenderMemory } from "./render-memory.ts";
import type { KeptReply } from "./reply.ts";
import { joinSpans } from "./spans.ts";

/** A turn at its end. */
export interface FinishedTurn {
  job: TurnJob;
  session: NonNullable<TurnJob["session"]>;
  prepared: PreparedTurn;
  assets: ModelAssets;
  kept: KeptReply;
  /** Spans in front of the turn, and behind them as the engine told. */
  spans: readonly Span[];
  newSpans: readonly Span[];
  engineId: string | undefined;
  /** The session before the turn; undefined for its first. */
  old: SessionMeta | undefined;
  /** When the log began, as engines were told. */
  bornMs: number;
  nowMs: number;
  /** Whether a list has the session: it is written when that is known. */
  isListed: Promise<boolean>;
  /** Given the text that the log stands for now. */
  memory: RenderMemory;
}

/** The change of the log: prompt and reply behind what is kept, with their borders. */
export async function buildCommit(turn: FinishedTurn): Promise<LogCommit> {
  const { job, session, prepared, kept, old } = turn;
  const ids = kept.endToken === undefined ? kept.ids : [...kept.ids, kept.endToken];
  const appendTokens = [...prepared.tokens.subarray(prepared.keepTokens), ...ids];
  const isChat = job.input.kind === "chat";
  const meta: SessionMeta = {
    id: session.id,
    namespace: job.namespace,
    model: job.model,
    kind: isChat ? "chat" : "raw",
    named: old?.named === true || !session.implicit,
    createdS: old?.createdS ?? Math.floor(turn.nowMs / 1000),
    bornMs: turn.bornMs,
    turnCount: (old?.turnCount ?? 0) + 1,
    parentId: old?.parentId,
    engineId: turn.engineId,
    usedMs: turn.nowMs,
    isListed: await turn.isListed,
    version: crypto.randomUUID(),
  };
  return {
    meta,
    keepTokens: prepared.keepTokens,
    appendTokens,
    keepMessages: prepared.keepMessages,
    appendMessages: isChat ? [...(await promptMessages(turn)), await replyMessage(turn)] : [],
    spans: joinSpans(turn.spans, turn.newSpans, prepared.keepTokens + appendTokens.length),
  };
}

/** The transcripts that the session can be found by: up to the prompt, and up to the reply. */
export function indexRows(commit: LogCommit): IndexRow[] {
  const { id: sessionId, named } = commit.meta;
  return commit.appendMessages.flatMap(({ chain, tokenEnd }, index) => {
    const messageCount = commit.keepMessages + index + 1;
    return tokenEnd === undefined ? [] : [{ chain, sessionId, named, messageCount, tokenCount: tokenEnd }];
  });
}

/** The new messages in front of the reply; the last one's border is the prompt's end. */
async function promptMessages({ prepared, memory }: FinishedTurn): Promise<StoredMessage[]> {
  const { newMessages, promptText } = prepared;
  const textHash = await hashText(promptText);
  memory.keep(textHash, promptText);
  return newMessages.map((message) => (message.textEnd === undefined ? message : { ...message, textHash }));
}

async function replyMessage(turn: FinishedTurn): Promise<StoredMessage> {
  const { prepared, kept } = turn;
  const message = { role: "assistant" as const, content: kept.content };
  const [chain = ""] = await chainHashes(prepared.promptChain, [message]);
  const tokenEnd = prepared.tokens.length + kept.ids.length;
  return { ...message, chain, reply: true, tokenEnd, ...(await replyBorder(turn)) };
}

/**
 * Where the kept ids of the reply end in the rendered text. Nothing for a template that does not show the reply as it is: the next turn
 * then goes on from the prompt's border.
 */
async function replyBorder({
  prepared,
  assets,
  kept,
  memory,
}: FinishedTurn): Promise<{ textEnd?: number; textHash?: string }> {
  const transcript = [...prepared.transcript, { role: "assistant" as const, content: kept.content }];
  let rendered: string;
  try {
    rendered = assets.template.render(transcript, { addGenerationPrompt: false });
  } catch (thrown) {
    if (toQuireError(thrown).code === "invalid_request") return {};
    throw thrown;
  }
  if (!rendered.startsWith(prepared.promptText)) return {};
  const length = renderedLength(rendered, prepared.promptText.length, kept.text);
  if (length === undefined) return {};
  const textEnd = prepared.promptText.length + length;
  const text = rendered.slice(0, textEnd);
  const textHash = await hashText(text);
  memory.keep(textHash, text);
  return { textEnd, textHash };
}
