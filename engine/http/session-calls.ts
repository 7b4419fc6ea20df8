/** What the edge asks of an engine about a session beside its turns: how much of it is durable, and to delete what is stored of it. */
import type { SessionStatus } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import { endSession } from "../../storage/end-session.ts";
import { loadManifest } from "../../storage/manifest.ts";
import type { OpenedEngine } from "../open.ts";
import type { Clock, EngineSettings } from "../settings.ts";

/** The calls of one engine. */
export interface SessionCalls {
  /** Of a session that this engine does not know, as the store has it. */
  status(namespace: string, sessionId: string): Promise<SessionStatus>;
  /**
   * Ends a session for good, and its turns: what this engine holds of it alone is given up, what is stored is deleted, and whoever comes late with a
   * commit meets its tombstone. Can be repeated. One of the same id that began after `bornMs` stays (absent: turns that are over end, and those that run stay).
   * @throws {StoreError}
   */
  delete(namespace: string, sessionId: string, bornMs?: number): Promise<void>;
}

/** See {@link SessionCalls}. */
export function sessionCalls(
  opened: Pick<OpenedEngine, "engine" | "persister" | "keys">,
  store: PageStore,
  { settings, clock }: { settings: Pick<EngineSettings, "storeGetMsMax" | "storePutMsMax">; clock: Clock },
): SessionCalls {
  return {
    async status(namespace, sessionId) {
      const sessionKey = `${namespace}/${sessionId}`;
      const serving = opened.engine.serves(sessionKey);
      const known = opened.persister.status(sessionKey);
      if (known) return { ...known, pending: known.pending || serving };
      const signal = clock.deadline(settings.storeGetMsMax);
      const loaded = await loadManifest(store, opened.keys.of(namespace).session(sessionId), signal).catch(
        () => undefined,
      );
      return {
        persistedTokens: loaded?.manifest.tokenCount ?? 0,
        generation: loaded?.manifest.generation ?? 0,
        pending: serving,
      };
    },
    async delete(namespace, sessionId, bornMs) {
      const nowMs = clock.wallMs();
      const sessionKey = `${namespace}/${sessionId}`;
      const runsSinceMs = opened.engine.oldestTurnMs(sessionKey) ?? Number.POSITIVE_INFINITY;
      const overMs = bornMs === undefined ? Math.min(nowMs + 1, runsSinceMs) : bornMs + 1;
      // What a turn leaves is copied behind its terminal event, at which it may be deleted.
      await opened.engine.forget(sessionKey, overMs);
      await opened.persister.forget(sessionKey, overMs);
      const signal = clock.deadline(settings.storePutMsMax);
      const key = opened.keys.of(namespace).session(sessionId);
      const copies = await endSession(store, key, { sessionId, bornMs: overMs, nowMs, signal });
      for (const objectKey of copies) store.forget?.(objectKey);
    },
  };
}
