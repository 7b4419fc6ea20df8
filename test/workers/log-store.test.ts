import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { LogStore, type SessionMeta, type StoredMessage } from "../../workers/session-log/log-store.ts";
import { indexOf, sessionOf } from "../../workers/stubs.ts";
import { edge, env, KEY_A, makeWorld } from "./world.ts";

const META: SessionMeta = {
  id: "s",
  namespace: "n",
  model: "m",
  kind: "chat",
  named: true,
  createdS: 1,
  turnCount: 1,
};

/** A small generator with a printed seed. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** The storage of an object, and the statements that were run in it, as an object keeps them compiled. */
function listening(storage: DurableObjectStorage): { storage: DurableObjectStorage; statements: Set<string> } {
  const statements = new Set<string>();
  const exec = (text: string, ...bindings: unknown[]) => {
    statements.add(text.trim());
    return storage.sql.exec(text, ...bindings);
  };
  const transactionSync = <T>(act: () => T) => storage.transactionSync(act);
  return { storage: { sql: { exec }, transactionSync } as unknown as DurableObjectStorage, statements };
}

describe("LogStore", () => {
  it("compiles no statement that finds nothing: those of a session's only turn make, and those of a later one do not", async () => {
    await runInDurableObject(env.SESSION_LOG.get(env.SESSION_LOG.newUniqueId()), async (_: object, state) => {
      const message: StoredMessage = { role: "user", content: "hi", chain: "c", reply: false };
      const change = { meta: META, appendTokens: [1, 2], appendMessages: [message] };
      const first = listening(state.storage);
      new LogStore(first.storage).commit({ ...change, keepTokens: 0, keepMessages: 0, spans: [{ end: 2, how: "h" }] });
      const verbs = (statements: Set<string>) => [...statements].map((text) => /^\w+/.exec(text)?.[0]).sort();
      // One asks whether there is a log.
      expect(verbs(first.statements)).toEqual(["CREATE", ...Array(5).fill("INSERT"), "SELECT"]);
      const later = listening(state.storage);
      const store = new LogStore(later.storage);
      store.commit({ ...change, keepTokens: 2, keepMessages: 1, spans: [{ end: 4, how: "h" }] });
      expect(verbs(later.statements)).not.toContain("CREATE");
      expect([...store.tokens()]).toEqual([1, 2, 1, 2]);
      expect(store.messages()).toHaveLength(2);
    });
  });

  it("is what a plain list would be, through cuts and appends across rows", { timeout: 120_000 }, async () => {
    const seed = 20261122;
    const random = randomOf(seed);
    await runInDurableObject(env.SESSION_LOG.get(env.SESSION_LOG.newUniqueId()), async (_: object, state) => {
      let tokens: number[] = [];
      let messages: StoredMessage[] = [];
      const store = new LogStore(state.storage);
      expect(store.meta()).toBeUndefined();
      for (let round = 0; round < 24; round++) {
        const keepTokens = random(3) === 0 ? random(tokens.length + 1) : tokens.length;
        const keepMessages = random(3) === 0 ? random(messages.length + 1) : messages.length;
        const size = random(4) === 0 ? random(2 * LIMITS.logRowIdsMax) : random(50);
        const appendTokens = Array.from({ length: size }, () => random(2 ** 32));
        const end = keepTokens + size;
        const appendMessages = Array.from(
          { length: random(3) },
          (__, index): StoredMessage => ({
            role: index % 2 === 0 ? "user" : "assistant",
            content: "\uFEFFé🙂".repeat(random(8) === 0 ? 120_000 : random(5)),
            chain: `chain-${round}-${index}`,
            reply: index % 2 === 1,
            tokenEnd: random(2) === 0 ? random(end + 1) : undefined,
            textEnd: 7,
            textHash: "hash",
            ...(random(2) === 0 && { name: "somebody" }),
          }),
        ).map((message) =>
          message.tokenEnd === undefined ? { ...message, textEnd: undefined, textHash: undefined } : message,
        );
        const spans: Span[] = end === 0 ? [] : [{ end, how: `how-${round}` }];
        store.commit({
          meta: { ...META, turnCount: round },
          keepTokens,
          appendTokens,
          keepMessages,
          appendMessages,
          spans,
        });
        tokens = [...tokens.slice(0, keepTokens), ...appendTokens];
        const kept = messages
          .slice(0, keepMessages)
          .map((message) =>
            (message.tokenEnd ?? 0) > keepTokens
              ? { ...message, tokenEnd: undefined, textEnd: undefined, textHash: undefined }
              : message,
          );
        messages = [...kept, ...appendMessages];
        // A fresh store on the same tables: nothing lives in memory only.
        const again = new LogStore(state.storage);
        // What is remembered is what was written; of a long log nothing is, and it would only be read once more.
        if (tokens.length < 20_000) {
          const remembered = store.whole();
          expect([...remembered.tokens], `seed ${seed} round ${round}`).toEqual(tokens);
          expect(remembered.messages).toEqual(messages);
          expect(remembered.spans).toEqual(spans);
        }
        const read = again.tokens();
        expect(read.length, `seed ${seed} round ${round}`).toBe(tokens.length);
        expect(
          read.every((id, index) => id === tokens[index]),
          `seed ${seed} round ${round}`,
        ).toBe(true);
        expect(again.messages()).toEqual(messages);
        expect(again.spans()).toEqual(spans);
        expect(again.meta()).toEqual({ ...META, turnCount: round });
        const rows = state.storage.sql.exec("SELECT length(ids) AS bytes FROM log_rows").toArray();
        for (const row of rows) expect(Number(row.bytes)).toBeLessThanOrEqual(4 * LIMITS.logRowIdsMax);
        if (tokens.length > 3 * LIMITS.logRowIdsMax) tokens = cutAll(store, messages);
      }
    });
  });

  it("writes nothing for a session that is only asked for", async () => {
    const id = `ghost-${crypto.randomUUID()}`;
    expect((await edge(`/v1/sessions/${id}`, { headers: { authorization: `Bearer ${KEY_A}` } })).status).toBe(404);
    const namespace = await namespaceOf("a", env.QUIRE_TENANT_SALT);
    await runInDurableObject(sessionOf(env, namespace, id), (_: object, state) => {
      const tables = state.storage.sql.exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'");
      expect(tables.toArray()).toEqual([]);
    });
  });

  it("goes when nobody used the session for long, and the index with it", async () => {
    const { chat } = await makeWorld();
    const response = await chat("hi");
    await response.text();
    const id = response.headers.get("x-quire-session") ?? "";
    const namespace = await namespaceOf("a", env.QUIRE_TENANT_SALT);
    const stub = sessionOf(env, namespace, id);
    const { chain, usedMs } = await runInDurableObject(stub, (_: object, state) => {
      const store = new LogStore(state.storage);
      return { chain: store.messages().map((message) => message.chain), usedMs: store.meta()?.usedMs ?? 0 };
    });
    expect(await indexOf(env, namespace).resolve(chain)).toMatchObject({ sessionId: id, messageCount: 2 });
    const time = vi.spyOn(Date, "now");
    onTestFinished(() => time.mockRestore());
    time.mockReturnValue(usedMs + LIMITS.sessionIdleMsMax - 1);
    await stub.expire();
    expect(await stub.info()).toBeDefined();
    time.mockReturnValue(usedMs + LIMITS.sessionIdleMsMax);
    await stub.expire();
    expect(await stub.info()).toBeUndefined();
    expect(await indexOf(env, namespace).resolve(chain)).toBeUndefined();
  });
});

/** Empties the log, so that a long run stays small. */
function cutAll(store: LogStore, messages: readonly StoredMessage[]): number[] {
  store.commit({
    meta: META,
    keepTokens: 0,
    appendTokens: [],
    keepMessages: 0,
    appendMessages: messages.map((message) =>
      Object.assign(message, { tokenEnd: undefined, textEnd: undefined, textHash: undefined }),
    ),
    spans: [],
  });
  return [];
}

describe("TenantIndex", () => {
  it("finds the longest beginning, also among more hashes than a statement takes", async () => {
    const index = indexOf(env, `index-${crypto.randomUUID()}`);
    const chain = Array.from({ length: 500 }, (_, at) => `hash-${at}`);
    const row = (at: number, sessionId: string) => ({
      chain: chain[at] ?? "",
      sessionId,
      named: false,
      messageCount: at + 1,
      tokenCount: at,
    });
    await index.put([row(3, "early"), row(120, "middle"), row(121, "middle"), row(300, "late")]);
    expect(await index.resolve(chain)).toEqual(row(300, "late"));
    expect(await index.resolve(chain.slice(0, 300))).toEqual(row(121, "middle"));
    expect(await index.resolve(chain.slice(0, 4))).toEqual(row(3, "early"));
    expect(await index.resolve(chain.slice(0, 3))).toBeUndefined();
    await index.put([row(300, "newer")]);
    expect(await index.resolve(chain)).toEqual(row(300, "newer"));
    await index.forget("middle");
    expect(await index.resolve(chain.slice(0, 300))).toEqual(row(3, "early"));
  });

  it("drops what was used least when it is full", async () => {
    const index = indexOf(env, `index-${crypto.randomUUID()}`);
    const row = { sessionId: "s", named: false, messageCount: 1, tokenCount: 1 };
    await index.put([{ ...row, chain: "old" }]);
    const count = (state: DurableObjectState) =>
      state.storage.sql.exec("SELECT COUNT(*) AS n FROM transcripts").one().n;
    await runInDurableObject(index, (_: object, state) => {
      state.storage.sql.exec(
        `INSERT INTO transcripts WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         SELECT 'hash-' || i, 's', 0, 1, 1, ? + i FROM n`,
        LIMITS.indexRowCountMax - 1,
        Date.now(),
      );
      expect(count(state)).toBe(LIMITS.indexRowCountMax);
    });
    await evictDurableObject(index);
    await index.put([{ ...row, chain: "new" }]);
    await runInDurableObject(index, (_: object, state) => {
      expect(count(state)).toBe(LIMITS.indexRowCountMax + 1 - LIMITS.indexRowCountMax / 8);
    });
    expect(await index.resolve(["old"])).toBeUndefined();
    expect(await index.resolve([`hash-${LIMITS.indexRowCountMax - 1}`])).toBeDefined();
  });
});
