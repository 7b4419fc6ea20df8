/** What an isolate knows of sessions whose turns ran in it. It is only ever a guess: the session's object says whether it is still so. */
import { LIMITS } from "../../protocol/limits.ts";
import { RecentMap } from "../recent-map.ts";
import { LogMemory } from "../session-log/log-memory.ts";
import { type KnownLog, type LogCommit, type SessionMeta, versionOf } from "../session-log/log-store.ts";
import { NextTurn, newMemory, type TurnMemory } from "../session-log/next-turn.ts";
import { indexRows } from "../session-log/turn-commit.ts";
import type { IndexRow } from "../tenant-index.ts";

/** A session between two turns. */
export interface KnownSession {
  meta: SessionMeta | undefined;
  log: LogMemory;
  memory: TurnMemory;
}

/** The log, where it is kept and has a version to be asked for. */
export function guessOf({ meta, log }: KnownSession): KnownLog | undefined {
  const whole = log.log;
  return meta && whole && versionOf(meta) !== "" ? { meta, log: whole } : undefined;
}

/** A session of which nothing is known. */
export function unknownSession(now: () => number): KnownSession {
  return { meta: undefined, log: new LogMemory(), memory: newMemory(new NextTurn(now)) };
}

/** What one takes beside its log, its text and the names of its blocks. */
const SESSION_BYTES = 4_096;

/** Sessions by namespace and id, and their transcripts; those that ended a turn longest ago go first. */
export class KnownSessions {
  readonly #bytesMax: number;
  readonly #sessions = new Map<string, { session: KnownSession; bytes: number }>();
  readonly #transcripts: RecentMap<IndexRow>;
  #bytes = 0;

  constructor(options: { bytesMax: number; transcriptCountMax: number }) {
    this.#bytesMax = options.bytesMax;
    this.#transcripts = new RecentMap({ countMax: options.transcriptCountMax });
  }

  /** The session, for one turn: it is not known again before that has ended. */
  take(namespace: string, id: string): KnownSession | undefined {
    const name = `${namespace}/${id}`;
    const found = this.#sessions.get(name);
    if (!found) return undefined;
    this.#sessions.delete(name);
    this.#bytes -= found.bytes;
    return found.session;
  }

  /** A turn of the session was written. */
  put(session: KnownSession, commit: LogCommit): void {
    const { namespace, id } = commit.meta;
    session.log.apply(commit);
    session.meta = commit.meta;
    if (session.log.log === undefined) return;
    this.take(namespace, id);
    const { render, router } = session.memory;
    const bytes = SESSION_BYTES + session.log.bytes + render.bytes + router.bytes;
    this.#sessions.set(`${namespace}/${id}`, { session, bytes });
    this.#bytes += bytes;
    for (const row of indexRows(commit)) this.#transcripts.put(`${namespace}/${row.chain}`, row);
    for (const [name, oldest] of this.#sessions) {
      if (this.#bytes <= this.#bytesMax) break;
      this.#sessions.delete(name);
      this.#bytes -= oldest.bytes;
    }
  }

  /** The session that a transcript goes on from, where it is known and goes on in just that: the index says the rest. */
  find(namespace: string, chain: readonly string[]): IndexRow | undefined {
    for (let count = chain.length - 1; count > 0; count--) {
      const row = this.#transcripts.get(`${namespace}/${chain[count - 1]}`);
      if (row) return this.#sessions.has(`${namespace}/${row.sessionId}`) && !row.named ? row : undefined;
    }
    return undefined;
  }
}

/** One per isolate: names begin with the namespace, so tenants do not meet in it. */
export const isolateSessions = new KnownSessions({
  bytesMax: LIMITS.sessionMemoryBytesMax,
  transcriptCountMax: 8_192,
});
