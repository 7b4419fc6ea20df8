/** What the edge knows of one conversation: the truth that every engine is told anew with each turn. */
import type { GenerateRequest, SelectionRequest, Span } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import type { TranscriptTwin } from "./transcript-twin.ts";

/** The exact token ids of a conversation, how each was computed, and the twin that follows it. */
export interface Log {
  id: string;
  namespace: string;
  /** When it began, simulated; of two of the same id the later one's is more. */
  bornMs: number;
  /** Of a fork until its first turn is over. */
  parentId: string | undefined;
  ids: number[];
  spans: Span[];
  selection: SelectionRequest;
  twin: TranscriptTwin;
}

/** A turn behind the log. */
export function turnRequest(
  log: Log,
  turn: {
    requestId: string;
    prompt: readonly number[];
    maxTokens: number;
    sampling: { temperature: number; seed: number };
  },
): GenerateRequest {
  return {
    version: 1,
    requestId: turn.requestId,
    model: "tiny",
    namespace: log.namespace,
    session: { id: log.id, bornMs: log.bornMs, ...(log.parentId === undefined ? {} : { parentId: log.parentId }) },
    tokens: idsToBytes([...log.ids, ...turn.prompt]),
    turnStart: log.ids.length,
    spans: log.spans.map((span) => ({ ...span })),
    maxTokens: turn.maxTokens,
    stopTokens: [],
    sampling: {
      ...turn.sampling,
      topP: 1,
      topK: 0,
      minP: 0,
      frequencyPenalty: 0,
      presencePenalty: 0,
      repetitionPenalty: 1,
      logitBias: [],
    },
    selection: log.selection,
    topLogprobs: 0,
  };
}

/** A conversation that begins as another one is now. */
export function forkLog(parent: Log, { id, bornMs, twin }: { id: string; bornMs: number; twin: TranscriptTwin }): Log {
  const spans = parent.spans.map((span) => ({ ...span }));
  return { ...parent, ids: [...parent.ids], spans, id, bornMs, parentId: parent.id, twin };
}

/** Takes back everything from token `end` on. */
export function cutLog(log: Log, end: number): void {
  const spans: Span[] = [];
  for (const span of log.spans) {
    if ((spans.at(-1)?.end ?? 0) < end) spans.push({ end: Math.min(span.end, end), how: span.how });
  }
  log.ids.length = end;
  log.spans = spans;
}
