/** What the edge asks of an engine about a session beside its turns: how much of it is durable, and to delete what is stored of it. */
import type { SessionStatus } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import { deleteSession } from "../../storage/gc.ts";
import { loadManifest } from "../../storage/manifest.ts";
import type { OpenedEngine } from "../open.ts";
import type { EngineSettings } from "../settings.ts";

/** The calls of one engine. */
export interface SessionCalls {
  /** Of a session that this engine does not know, as the store has it. */
  status(namespace: string, sessionId: string): Promise<SessionStatus>;
  /** Deletes what is stored of a session, and what turns that are over have left to be stored. @throws {StoreError} */
  delete(namespace: string, sessionId: string): Promise<void>;
}

/** See {@link SessionCalls}. */
export function sessionCalls(
  opened: Pick<OpenedEngine, "engine" | "persister" | "keys">,
  store: PageStore,
  settings: Pick<EngineSettings, "storeGetMsMax" | "storePutMsMax">,
): SessionCalls {
  return {
    async status(namespace, sessionId) {
      const sessionKey = `${namespace}/${sessionId}`;
      const serving = opened.engine.serves(sessionKey);
      const known = opened.persister.status(sessionKey);
      if (known) return { ...known, pending: known.pending || serving };
      const signal = AbortSignal.timeout(settings.storeGetMsMax);
      const loaded = await loadManifest(store, opened.keys.of(namespace).session(sessionId), signal).catch(
        () => undefined,
      );
      return {
        persistedTokens: loaded?.manifest.tokenCount ?? 0,
        generation: loaded?.manifest.generation ?? 0,
        pending: serving,
      };
    },
    async delete(namespace, sessionId) {
      // What a turn leaves is copied behind its terminal event, at which it may be deleted: it would be stored for good.
      const sessionKey = `${namespace}/${sessionId}`;
      await opened.engine.ended(sessionKey);
      await opened.persister.forget(sessionKey);
      const signal = AbortSignal.timeout(settings.storePutMsMax);
      await deleteSession(store, opened.keys.of(namespace), sessionId, signal);
    },
  };
}
