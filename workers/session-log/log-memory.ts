/** The log of a session as its object last read or wrote it, so that the next turn need not read it again. */
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { LogCommit, StoredMessage } from "./log-store.ts";

/** All of a log. What it holds is not changed by anybody. */
export interface WholeLog {
  tokens: Uint32Array<ArrayBuffer>;
  spans: readonly Span[];
  messages: readonly StoredMessage[];
}

/** The log of a session that has not begun. */
export function emptyLog(): WholeLog {
  return { tokens: new Uint32Array(0), spans: [], messages: [] };
}

/** What a message takes beside its text. */
const MESSAGE_BYTES = 512;

/** Keeps one log of at most `LIMITS.logMemoryBytesMax`; a longer one is read again, which costs little beside computing with it. */
export class LogMemory {
  #log: WholeLog | undefined;
  #bytes = 0;

  /** Undefined when it is not kept. */
  get log(): WholeLog | undefined {
    return this.#log;
  }

  /** Of what is kept. */
  get bytes(): number {
    return this.#bytes;
  }

  keep(log: WholeLog): void {
    const bytes = bytesOf(log);
    const isKept = bytes <= LIMITS.logMemoryBytesMax;
    this.#log = isKept ? log : undefined;
    this.#bytes = isKept ? bytes : 0;
  }

  /** Follows a change that was written. */
  apply(commit: LogCommit): void {
    // A log that begins anew is known without having been read.
    const old = commit.keepTokens === 0 && commit.keepMessages === 0 ? emptyLog() : this.#log;
    if (!old) return;
    const tokens = new Uint32Array(commit.keepTokens + commit.appendTokens.length);
    tokens.set(old.tokens.subarray(0, commit.keepTokens));
    tokens.set(commit.appendTokens, commit.keepTokens);
    const kept = old.messages.slice(0, commit.keepMessages).map((message) => uncut(message, commit.keepTokens));
    this.keep({ tokens, spans: [...commit.spans], messages: [...kept, ...commit.appendMessages] });
  }
}

/** A border behind the cut is a border no more. */
function uncut(message: StoredMessage, keepTokens: number): StoredMessage {
  if ((message.tokenEnd ?? 0) <= keepTokens) return message;
  return { ...message, tokenEnd: undefined, textEnd: undefined, textHash: undefined };
}

function bytesOf({ tokens, spans, messages }: WholeLog): number {
  const text = messages.reduce((sum, { content, name }) => sum + 2 * (content.length + (name?.length ?? 0)), 0);
  return tokens.byteLength + MESSAGE_BYTES * (messages.length + spans.length) + text;
}
