/** What the Worker is given: Durable Objects, the bucket, and secrets. */
import type { KeyRing } from "./auth/key-ring.ts";
import type { Fleet } from "./fleet.ts";
import type { TenantLimiter } from "./limits/tenant-limiter.ts";
import type { PromptRouterService } from "./prompt-router/contract.ts";
import type { SessionExpiry } from "./session-expiry.ts";
import type { SessionLog } from "./session-log/session-log.ts";
import type { TenantIndex } from "./tenant-index.ts";

/** Bindings (wrangler.toml) and secrets. */
export interface Env {
  SESSION_LOG: DurableObjectNamespace<SessionLog>;
  SESSION_EXPIRY: DurableObjectNamespace<SessionExpiry>;
  FLEET: DurableObjectNamespace<Fleet>;
  TENANT_INDEX: DurableObjectNamespace<TenantIndex>;
  KEY_RING: DurableObjectNamespace<KeyRing>;
  TENANT_LIMITER: DurableObjectNamespace<TenantLimiter>;
  /** Page store of the engines; the edge reads only `models/<id>/...` from it. */
  PAGES: R2Bucket;
  /** JSON: `{"<SHA-256 of a key, lower-case hex>": {"tenant": "<name>", ...}}`, see `auth/key-record.ts`; absent: the key ring alone. */
  QUIRE_API_KEYS?: string;
  /** Secret from which every tenant's namespace is derived. Changing it orphans all stored pages. */
  QUIRE_TENANT_SALT: string;
  /** Secret of edge and engines: they sign their requests to each other with it. */
  QUIRE_ENGINE_KEY: string;
  /** Optional JSON `{"requests_per_minute", "tokens_per_minute", "turns_concurrent"}`: of tenants whose keys say nothing else. */
  QUIRE_LIMITS?: string;
  /** Optional: called (POST, signed) when a turn needs an engine and none is there; turns wait for it. */
  QUIRE_WAKE_URL?: string;
  /** Optional: how long a turn waits for an engine then, at most `LIMITS.holdMsMax`. */
  QUIRE_WAKE_WAIT_MS?: string;
  /** Optional: an engine that was idle for so long is let go. Absent: never. */
  QUIRE_IDLE_RELEASE_MS?: string;
  /** Optional: how many Fleet objects share the tenants (1). Every engine's heartbeat goes to each. */
  QUIRE_FLEET_SHARDS?: string;
  /** Origins of web pages that may use the API: `*`, or some with commas between; absent: none but the playground's own. */
  QUIRE_CORS_ORIGINS?: string;
  /** Optional JSON `{"policy", "budget_tokens", "exact"}`: selection of requests that name none. */
  QUIRE_SELECTION?: string;
  /** Optional: the prompt router's Worker. With it there is a model `auto`; without it that is a name like any other. */
  PROMPT_ROUTER?: PromptRouterService;
}
