/** A log on its way from one session to a fork of it or to a Worker, and what a Worker adds to it on its way back. */
import { encodeFrame } from "../../protocol/frames.ts";
import type { Span } from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import type { ForkPoint } from "../turn-job.ts";
import type { KnownLog, LogCommit, LogStore, SessionMeta, StoredMessage } from "./log-store.ts";
import { cutSpans } from "./spans.ts";
import { unpackValue } from "./wire.ts";

/** What a fork starts with. */
export interface LogImage {
  meta: SessionMeta;
  /** Little-endian u32 ids. */
  tokenBytes: Uint8Array;
  messages: StoredMessage[];
  spans: Span[];
}

/** The ids of an image. */
export function imageTokens(image: LogImage): Uint32Array {
  return bytesToIds(image.tokenBytes);
}

/**
 * The log up to and including a message, or all of it, as one frame.
 * @returns undefined when the session does not exist, or its transcript at that message is another one now
 */
export function exportLog(store: LogStore, point: ForkPoint | undefined): Uint8Array | undefined {
  const meta = store.meta();
  if (!meta) return undefined;
  const all = store.messages();
  const count = point?.messageCount ?? all.length;
  if (point && all[count - 1]?.chain !== point.chain) return undefined;
  const messages = all.slice(0, count);
  const log = store.tokens();
  const isWhole = count === all.length;
  // Behind an earlier message the log goes on with what came after it. A message without a known border gives no ids at all: they are
  // tokenized again.
  const end = isWhole ? log.length : (messages.at(-1)?.tokenEnd ?? 0);
  const image: LogImage = {
    meta: { ...meta, turnCount: isWhole ? meta.turnCount : messages.filter(({ reply }) => reply).length },
    tokenBytes: idsToBytes(log.subarray(0, end)),
    messages: messages.map((message) =>
      (message.tokenEnd ?? 0) > end
        ? { ...message, tokenEnd: undefined, textEnd: undefined, textHash: undefined }
        : message,
    ),
    spans: cutSpans(store.spans(), end),
  };
  return encodeFrame(image);
}

/** A whole log as its session holds it, from an image of it. */
export function knownLog(packed: Uint8Array): KnownLog {
  const image = unpackValue<LogImage>(packed);
  const { meta, messages, spans } = image;
  return { meta, log: { tokens: new Uint32Array(imageTokens(image)), messages, spans } };
}

/** A change of a log as one frame. */
export function packCommit({ appendTokens, ...rest }: LogCommit): Uint8Array {
  return encodeFrame({ ...rest, tokenBytes: idsToBytes(Uint32Array.from(appendTokens)) });
}

/** What {@link packCommit} packed. */
export function unpackCommit(packed: Uint8Array): LogCommit {
  const { tokenBytes, ...rest } = unpackValue<Omit<LogCommit, "appendTokens"> & { tokenBytes: Uint8Array }>(packed);
  return { ...rest, appendTokens: bytesToIds(tokenBytes) };
}
