/** What an operator does beside running turns: by the functions behind `quire verify`, `quire sessions` and `quire keys`. */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { StoreError } from "../../../storage/contract.ts";
import { FormatError } from "../../../storage/format-error.ts";
import { deleteManifestAndTail } from "../../../storage/gc.ts";
import { type ArchiveFile, exportSession, importSession } from "../../../storage/session-archive.ts";
import { type ListedSession, listSessions } from "../../../storage/session-list.ts";
import { Verifier } from "../../../storage/verify.ts";
import { Client } from "./client.ts";
import { Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import type { TenantName } from "./stack.ts";

/** Carried out of the store some time ago. */
interface Archive {
  namespace: string;
  sessionId: string;
  files: ArchiveFile[];
}

/** What one may do. */
export const OPERATOR_ACTS = ["verify", "remove", "export", "export", "import", "import", "rotate"] as const;

/** Has the store and the keys in hand. */
export class Operator {
  readonly #world: LifeWorld;
  readonly #next: () => number;
  readonly #archives: Archive[] = [];
  readonly #keyIds = new Map<TenantName, string>();
  /** Keys that were revoked. */
  readonly revoked: { key: string; atMs: number }[] = [];

  constructor(world: LifeWorld, next: () => number) {
    this.#world = world;
    this.#next = next;
  }

  /** What is no longer there, or changes meanwhile, is left alone. @throws {Violation} */
  async act(what: (typeof OPERATOR_ACTS)[number]): Promise<void> {
    if (what === "rotate") return this.#rotate();
    try {
      await this.#onStore(what);
    } catch (error) {
      if (!(error instanceof FormatError || error instanceof StoreError)) throw error;
    }
  }

  /** A key that works, and is revoked at once: in a while it must be refused everywhere. */
  async revokeOne(): Promise<void> {
    const made = await this.#makeKey("one");
    const used = await new Client(() => this.#world.stack.url, made.key).ask("GET", "/v1/models");
    const gone = await this.#world.clients.operators.ask("DELETE", `/v1/keys/${made.id}`);
    const statuses = [made.status, used?.status, gone?.status];
    if (statuses.join() !== "201,200,200") throw new Violation(`a key was made, used and revoked with ${statuses}`);
    this.revoked.push({ key: made.key, atMs: performance.now() });
  }

  async #onStore(what: "verify" | "remove" | "export" | "import"): Promise<void> {
    const { stack, report } = this.#world;
    const sessions = await this.#sessions();
    const chosen = this.#pick(sessions);
    if (what === "verify") {
      const verifier = new Verifier(stack.store, { repair: true });
      for (const { key } of sessions) {
        await verifier.session(key);
        report.verified += 1;
      }
    } else if (chosen === undefined) return;
    else if (what === "remove") {
      await deleteManifestAndTail(stack.store, chosen.key);
      report.removed += 1;
    } else if (what === "export") await this.#export(chosen);
    else await this.#import(chosen);
  }

  async #export({ key, namespace, record }: ListedSession): Promise<void> {
    const files: ArchiveFile[] = [];
    for await (const file of exportSession(this.#world.stack.store, key)) files.push(file);
    this.#archives.push({ namespace, sessionId: record?.sessionId ?? "", files });
    this.#world.report.exported += 1;
  }

  /** An archive of some age takes the place of its session, or of another one, of either tenant: what does not belong there is not to be believed. */
  async #import(session: ListedSession): Promise<void> {
    const archive = this.#pick(this.#archives);
    if (archive === undefined) return this.#export(session);
    const { namespace, record } = session;
    const isBack = this.#next() < 0.6;
    const { stack, report } = this.#world;
    const into = isBack ? archive : { namespace, sessionId: record?.sessionId ?? archive.sessionId };
    const files = archive.files.map(({ name, bytes }) => ({ name, bytes: bytes.slice() }));
    const { namespace: to, sessionId } = into;
    const done = await importSession(stack.store, files, {
      namespace: to,
      sessionId,
      replace: true,
      nowMs: Date.now(),
    });
    if (done) report.imported += 1;
  }

  /** The clients of a tenant get another key at once; the old one is revoked, whoever speaks by it now. */
  async #rotate(): Promise<void> {
    const { clients, report } = this.#world;
    const tenant = this.#next() < 0.5 ? "one" : "two";
    const made = await this.#makeKey(tenant);
    // Whether it was made nobody knows where the edge is not there.
    if (made.status !== 201 || made.id === undefined) return;
    const client = clients[tenant];
    const [oldKey, oldId] = [client.key, this.#keyIds.get(tenant)];
    client.key = made.key;
    this.#keyIds.set(tenant, made.id);
    report.keysRotated += 1;
    if (oldId === undefined) return;
    await sleep(200 * this.#next());
    const gone = await clients.operators.ask("DELETE", `/v1/keys/${oldId}`);
    if (gone?.status === 200) this.revoked.push({ key: oldKey, atMs: performance.now() });
  }

  async #makeKey(tenant: TenantName): Promise<{ key: string; id: string | undefined; status: number | undefined }> {
    const key = `qk-${randomUUID().replaceAll("-", "")}`;
    const hash = createHash("sha256").update(key).digest("hex");
    const made = await this.#world.clients.operators.ask("POST", "/v1/keys", { hash, tenant });
    return { key, status: made?.status, id: made?.status === 201 ? String(made.body.id) : undefined };
  }

  async #sessions(): Promise<ListedSession[]> {
    const sessions: ListedSession[] = [];
    for await (const session of listSessions(this.#world.stack.store, "kv/")) {
      if (session.record !== undefined) sessions.push(session);
    }
    return sessions;
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#next() * list.length)];
  }
}
