/** Durable Objects "fleet", one or a few, sharded by tenant: engines register here with heartbeats, and turns ask here for one. */
import { DurableObject } from "cloudflare:workers";
import { QuireError } from "../protocol/errors.ts";
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { ReplayGuard } from "../protocol/signature.ts";
import { ifWithin } from "./deadline.ts";
import type { Env } from "./env.ts";
import { Deletions, type EndedSession } from "./fleet/deletions.ts";
import { callWakeHook, Waker } from "./fleet/wake.ts";
import { FleetTable, type PickedEngine, type PickRequest } from "./fleet-table.ts";
import { logError } from "./log.ts";
import { RecentMap } from "./recent-map.ts";
import { emptyCounts, type RoutingCounts, type RoutingOutcome } from "./routing-counts.ts";
import { deleteStored } from "./session-log/stored-session.ts";

/** A model that can be asked for now. */
export interface LiveModel {
  id: string;
  /** Unix seconds at which this fleet first saw it. */
  createdS: number;
}

/** What became of a model name. */
export type ResolvedModel = { status: "known"; id: string } | { status: "unknown" } | { status: "no_engine" };

/** Engines of which it is remembered that they were there. */
const SEEN_COUNT_MAX = 4_096;

/** Names that stand for whatever model is there. */
const ALIASES = ["quire", "default"];

/** The engine for a turn; without one, whether it is worth asking again: engines are being started. */
export interface PickAnswer {
  engine?: PickedEngine | undefined;
  waking: boolean;
}

/** Engines live in memory only: after a restart they are back with their next heartbeat, within a second. Deletions that they have to hear of do not. */
export class Fleet extends DurableObject<Env> {
  readonly #table = new FleetTable();
  readonly #replays = new ReplayGuard();
  readonly #waker = openWaker(this.env);
  readonly #routings = emptyCounts();
  readonly #seen = new RecentMap<true>({
    ...{ countMax: SEEN_COUNT_MAX, ageMsMax: LIMITS.deletionKeepMs },
    now: () => Date.now(),
  });
  readonly #deletions = new Deletions({
    sql: this.ctx.storage.sql,
    engines: (model) => this.#table.all(model, Date.now()),
    tell: (engine, { namespace, id: sessionId, bornMs }) => {
      const engineKey = this.env.QUIRE_ENGINE_KEY;
      const session = { engine, engineKey, namespace, sessionId };
      return deleteStored({ ...session, fetch: (input, init) => fetch(input, init) }, bornMs);
    },
    onFailure: ({ id }, cause) => logError(`delete ${id}`, cause),
    now: () => Date.now(),
  });

  /** False for a signed request that was here before. */
  async admitNonce(nonce: string, expiresMs: number): Promise<boolean> {
    return this.#replays.admit({ nonce, expiresMs }, Date.now());
  }

  /** @returns true for an engine that has been idle for so long that it may be let go (`QUIRE_IDLE_RELEASE_MS`) */
  async heartbeat(heartbeat: EngineHeartbeat): Promise<boolean> {
    await this.#tellDeletions(heartbeat);
    const key = modelKey(heartbeat.model);
    if (this.ctx.storage.kv.get(key) === undefined) this.ctx.storage.kv.put(key, Math.floor(Date.now() / 1000));
    this.#table.heartbeat(heartbeat, Date.now());
    if (!heartbeat.draining) this.#waker?.arrived(heartbeat.model);
    const idleMsMax = readMs(this.env.QUIRE_IDLE_RELEASE_MS);
    return idleMsMax !== undefined && this.#table.idleMs(heartbeat.engineId, Date.now()) >= idleMsMax;
  }

  /**
   * A session was deleted: every engine of its model is told, those that are there before this resolves (or `LIMITS.engineExpiryMs` are over), the others with
   * their next heartbeat. Noted first, so that it is done whoever dies meanwhile.
   */
  async endSession(session: EndedSession): Promise<void> {
    await this.#deletions.add(session);
  }

  /** One that was away hears of them before it gets a turn; nobody waits for the others. */
  async #tellDeletions({ engineId, url, model, contextTokensMax }: EngineHeartbeat): Promise<void> {
    const wasAway = this.#seen.get(engineId) === true && !this.#table.has(engineId, Date.now());
    this.#seen.put(engineId, true);
    const telling = this.#deletions.tellAll({ engineId, url, contextTokensMax }, model);
    if (wasAway) await ifWithin(LIMITS.engineExpiryMs, telling);
  }

  /** Sends an engine no more turns, unless it was given one just now. */
  async release(engineId: string): Promise<void> {
    this.#table.release(engineId);
  }

  /** Models of live engines. */
  async models(): Promise<LiveModel[]> {
    return this.#table
      .models(Date.now())
      .map((id) => ({ id, createdS: this.ctx.storage.kv.get<number>(modelKey(id)) ?? 0 }));
  }

  /**
   * Finds a model by name or alias. A model seen before whose engines are all gone is "no_engine", not "unknown"; where engines can be
   * started it is "known".
   */
  async resolveModel(name: string): Promise<ResolvedModel> {
    const live = this.#table.models(Date.now());
    if (live.includes(name)) return { status: "known", id: name };
    const [first] = live;
    if (first !== undefined && ALIASES.includes(name)) return { status: "known", id: first };
    const id = first === undefined && ALIASES.includes(name) ? this.#firstModel() : name;
    const isKnown = id !== undefined && this.ctx.storage.kv.get(modelKey(id)) !== undefined;
    if (isKnown && this.#waker) return { status: "known", id };
    return { status: first === undefined || isKnown ? "no_engine" : "unknown" };
  }

  /** The engine for a turn. Where none serves the model but engines can be started, the hook is called, and one is waited for up to `waitMs`. */
  async pick(request: PickRequest, waitMs: number): Promise<PickAnswer> {
    const endMs = Date.now() + waitMs;
    for (;;) {
      const engine = this.#table.pick(request, Date.now());
      if (engine || !this.#waker?.hasRoom || !this.#waker.wake(request.model)) return { engine, waking: false };
      const leftMs = endMs - Date.now();
      if (leftMs <= 0) return { waking: true };
      await this.#waker.arrival(leftMs);
    }
  }

  /** A turn went to an engine without asking: it counts there like any other. */
  async assign(engineId: string, missingTokens: number): Promise<void> {
    this.#table.assign(engineId, missingTokens);
  }

  /** What became of a prompt with `model: "auto"`. */
  async countRouting(outcome: RoutingOutcome): Promise<void> {
    this.#routings[outcome] += 1;
  }

  /** Since this object started. */
  async routingCounts(): Promise<RoutingCounts> {
    return this.#routings;
  }

  /** An engine to ask about a session, no turn: the one that served it, or any of its model. */
  async find(request: { model: string; engineId?: string | undefined }): Promise<PickedEngine | undefined> {
    return this.#table.find(request, Date.now());
  }

  /** The model that was seen first, of those that were ever here. */
  #firstModel(): string | undefined {
    const seen = [...this.ctx.storage.kv.list<number>({ prefix: modelKey("") })];
    const [first] = seen.sort(([, a], [, b]) => a - b);
    return first?.[0].slice(modelKey("").length);
  }
}

function openWaker({ QUIRE_WAKE_URL: url, QUIRE_ENGINE_KEY: key }: Env): Waker | undefined {
  if (!url) return undefined;
  const onFailure = (model: string, cause: unknown) =>
    logError("wake", new QuireError("no_engine", `The wake hook failed for '${model}'.`, { cause }));
  return new Waker({ call: (model) => callWakeHook(url, key, model), onFailure, now: () => Date.now() });
}

/** A setting in milliseconds; undefined when it is absent or none. */
function readMs(text: string | undefined): number | undefined {
  const value = text === undefined || text.trim() === "" ? Number.NaN : Number(text);
  return Number.isFinite(value) && value >= 0 ? value : undefined;
}

/** How long a turn waits for an engine that is being started. */
export function holdMsMax(env: Env): number {
  return Math.min(readMs(env.QUIRE_WAKE_WAIT_MS) ?? LIMITS.holdMsMax, LIMITS.holdMsMax);
}

function modelKey(model: string): string {
  return `model:${model}`;
}

/** The Fleet object that routes a tenant's turns; every one knows all engines, and counts the turns of its own tenants. */
export function fleetOf(env: Env, namespace: string): DurableObjectStub<Fleet> {
  const count = shardCount(env);
  return fleetShard(env, Number.parseInt(namespace.slice(0, 8), 16) % count, count);
}

/** All Fleet objects: what engines say goes to each of them. */
export function fleetShards(env: Env): DurableObjectStub<Fleet>[] {
  const count = shardCount(env);
  return Array.from({ length: count }, (_, index) => fleetShard(env, index, count));
}

function shardCount(env: Env): number {
  return Math.min(LIMITS.fleetShardCountMax, Math.max(1, Math.floor(Number(env.QUIRE_FLEET_SHARDS ?? 1)) || 1));
}

function fleetShard(env: Env, index: number, count: number): DurableObjectStub<Fleet> {
  return env.FLEET.get(env.FLEET.idFromName(count === 1 ? "fleet" : `fleet-${index}-of-${count}`));
}
