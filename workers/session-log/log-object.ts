/** The log of one conversation at rest: what can be asked of it, and how it is copied and deleted. Turns are `session-log.ts`. */
import { DurableObject } from "cloudflare:workers";
import type { SessionStatus } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { ifWithin, within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { fleetOf } from "../fleet.ts";
import { logError } from "../log.ts";
import { tryEnlist } from "../session-expiry.ts";
import { sessionOf } from "../stubs.ts";
import type { ForkPoint, SessionInfo } from "../turn-job.ts";
import { exportLog, imageTokens, type LogImage } from "./log-image.ts";
import { bornMsOf, LogStore, type SessionMeta } from "./log-store.ts";
import { type StoredSession, storedStatus } from "./stored-session.ts";
import { unpackValue } from "./wire.ts";

/** When it is noted that a session was forked. */
const TOUCH_MS = 20;

/** A Durable Object that holds one log, or none. */
export abstract class LogObject extends DurableObject<Env> {
  #store: LogStore | undefined;

  /** A turn runs. */
  protected abstract get isBusy(): boolean;

  /** Undefined for a session that does not exist. */
  async info(): Promise<SessionInfo | undefined> {
    const store = this.open();
    const meta = store.meta();
    if (!meta) return undefined;
    return {
      id: meta.id,
      model: meta.model,
      createdS: meta.createdS,
      tokens: store.tokenCount(),
      turns: meta.turnCount,
      parentId: meta.parentId,
      messages: store.outline(),
    };
  }

  /**
   * How much of the session is durable, as the engine that served it last knows, or else another one of its model; pending also while
   * a turn runs. Undefined for a session that does not exist, and when no engine says so within `LIMITS.statusMsMax`.
   */
  async stored(): Promise<SessionStatus | undefined> {
    const meta = this.open().meta();
    if (!meta) return undefined;
    const asked = this.#storedSession(meta).then((session) => session && storedStatus(session));
    const status = await within(LIMITS.statusMsMax, asked).catch(() => undefined);
    return status && { ...status, pending: status.pending || this.isBusy };
  }

  /**
   * The log as one frame ({@link LogImage}) for a fork, up to a message or whole; undefined when it does not exist or has changed. A session that is forked is
   * used, however long ago its own last turn was.
   */
  async image(point?: ForkPoint): Promise<Uint8Array | undefined> {
    const image = exportLog(this.open(), point);
    const usedMs = Date.now();
    // Behind the answer, which would wait for the disk otherwise.
    if (image) setTimeout(() => this.open().touch(usedMs), TOUCH_MS);
    return image;
  }

  /**
   * Becomes a fork of another session of the same tenant, with its whole log.
   * @returns false when there is no such session
   */
  async adopt(options: { id: string; parentId: string; namespace: string }): Promise<boolean> {
    const parent = sessionOf(this.env, options.namespace, options.parentId);
    const packed = await within(LIMITS.sessionMsMax, parent.image());
    if (!packed) return false;
    const { namespace } = options;
    const isListed = await tryEnlist(this.env, { namespace, objectId: this.objectId, usedMs: Date.now() });
    await this.#import(unpackValue<LogImage>(packed), { ...options, named: true, isListed });
    return true;
  }

  /** Starts as a copy of another session's beginning; when that is not to be had, as an empty session. */
  protected async adoptPrefix(id: string, namespace: string, fork: ForkPoint): Promise<void> {
    const asked = sessionOf(this.env, namespace, fork.sessionId).image(fork);
    const packed = await ifWithin(LIMITS.sessionMsMax, asked).catch((thrown: unknown) => {
      logError(`fork ${this.objectId}`, thrown);
      return undefined;
    });
    if (!packed) return;
    // Listed by its first turn, which is about to run: nobody waits for that here.
    const options = { id, parentId: fork.sessionId, namespace, named: false, isListed: false };
    await this.#import(unpackValue<LogImage>(packed), options);
  }

  async #import(
    image: LogImage,
    options: Pick<SessionMeta, "id" | "parentId" | "namespace" | "named" | "isListed">,
  ): Promise<void> {
    const usedMs = Date.now();
    const begun = { usedMs, bornMs: usedMs, createdS: Math.floor(usedMs / 1000) };
    const meta: SessionMeta = { ...image.meta, ...options, ...begun };
    this.open().commit({
      meta,
      keepTokens: 0,
      appendTokens: imageTokens(image),
      keepMessages: 0,
      appendMessages: image.messages,
      spans: image.spans,
    });
    await this.restAlarm();
  }

  /** The session's name in the list that has it asked whether it is time to go. */
  protected get objectId(): string {
    return this.ctx.id.toString();
  }

  /** Nobody uses the session now, or since then: it needs no alarm where a list has it, and else the one that ends it. */
  protected async restAlarm(sinceMs = Date.now()): Promise<void> {
    if (this.open().meta()?.isListed) await this.ctx.storage.deleteAlarm();
    else await this.ctx.storage.setAlarm(sinceMs + LIMITS.sessionIdleMsMax);
  }

  /** Has engines forget the session, those that are there now and those that are not. @throws {QuireError} when nobody has taken note of it */
  protected async endStored(meta: SessionMeta): Promise<void> {
    const { namespace, id, model } = meta;
    const ended = { namespace, id, model, bornMs: bornMsOf(meta) };
    await within(LIMITS.sessionMsMax + LIMITS.engineExpiryMs, fleetOf(this.env, namespace).endSession(ended));
  }

  async #storedSession({ model, engineId, namespace, id }: SessionMeta): Promise<StoredSession | undefined> {
    const engine = await fleetOf(this.env, namespace).find({ model, engineId });
    const engineKey = this.env.QUIRE_ENGINE_KEY;
    return engine && { engine, engineKey, namespace, sessionId: id, fetch: (input, init) => fetch(input, init) };
  }

  /** Leaves nothing of the session in the object. */
  protected async wipe(): Promise<void> {
    this.#store = undefined;
    await this.ctx.storage.deleteAlarm();
    await this.ctx.storage.deleteAll();
  }

  /** Opened on first use: an object without a session writes nothing. */
  protected open(): LogStore {
    this.#store ??= new LogStore(this.ctx.storage);
    return this.#store;
  }
}
