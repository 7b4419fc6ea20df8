/** Durable Objects "fleet", one or a few, sharded by tenant: engines register here with heartbeats, and turns ask here for one. */
import { DurableObject } from "cloudflare:workers";
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { ReplayGuard } from "../protocol/signature.ts";
import type { Env } from "./env.ts";
import { FleetTable, type PickedEngine, type PickRequest } from "./fleet-table.ts";

/** A model that can be asked for now. */
export interface LiveModel {
  id: string;
  /** Unix seconds at which this fleet first saw it. */
  createdS: number;
}

/** What became of a model name. */
export type ResolvedModel = { status: "known"; id: string } | { status: "unknown" } | { status: "no_engine" };

/** Names that stand for whatever model is there. */
const ALIASES = ["quire", "default"];

/** Engines live in memory only: after a restart they are back with their next heartbeat, within a second. */
export class Fleet extends DurableObject<Env> {
  readonly #table = new FleetTable();
  readonly #replays = new ReplayGuard();

  /** False for a signed request that was here before. */
  async admitNonce(nonce: string, expiresMs: number): Promise<boolean> {
    return this.#replays.admit({ nonce, expiresMs }, Date.now());
  }

  async heartbeat(heartbeat: EngineHeartbeat): Promise<void> {
    const key = modelKey(heartbeat.model);
    if (this.ctx.storage.kv.get(key) === undefined) this.ctx.storage.kv.put(key, Math.floor(Date.now() / 1000));
    this.#table.heartbeat(heartbeat, Date.now());
  }

  /** Models of live engines. */
  async models(): Promise<LiveModel[]> {
    return this.#table
      .models(Date.now())
      .map((id) => ({ id, createdS: this.ctx.storage.kv.get<number>(modelKey(id)) ?? 0 }));
  }

  /** Finds a model by name or alias. A model seen before whose engines are all gone is "no_engine", not "unknown". */
  async resolveModel(name: string): Promise<ResolvedModel> {
    const live = this.#table.models(Date.now());
    if (live.includes(name)) return { status: "known", id: name };
    const [first] = live;
    if (first === undefined) return { status: "no_engine" };
    if (ALIASES.includes(name)) return { status: "known", id: first };
    return { status: this.ctx.storage.kv.get(modelKey(name)) === undefined ? "unknown" : "no_engine" };
  }

  /** The engine for a turn; undefined when none serves the model. */
  async pick(request: PickRequest): Promise<PickedEngine | undefined> {
    return this.#table.pick(request, Date.now());
  }

  /** An engine to ask about a session, no turn: the one that served it, or any of its model. */
  async find(request: { model: string; engineId?: string | undefined }): Promise<PickedEngine | undefined> {
    return this.#table.find(request, Date.now());
  }
}

function modelKey(model: string): string {
  return `model:${model}`;
}

/** The Fleet object that routes a tenant's turns; every one knows all engines, and counts the turns of its own tenants. */
export function fleetOf(env: Env, namespace: string): DurableObjectStub<Fleet> {
  const shards = fleetShards(env);
  return shards[Number.parseInt(namespace.slice(0, 8), 16) % shards.length] as DurableObjectStub<Fleet>;
}

/** All Fleet objects: what engines say goes to each of them. */
export function fleetShards(env: Env): DurableObjectStub<Fleet>[] {
  const count = Math.min(LIMITS.fleetShardCountMax, Math.max(1, Math.floor(Number(env.QUIRE_FLEET_SHARDS ?? 1)) || 1));
  return Array.from({ length: count }, (_, index) =>
    env.FLEET.get(env.FLEET.idFromName(count === 1 ? "fleet" : `fleet-${index}-of-${count}`)),
  );
}
