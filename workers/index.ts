/** The Worker: entry point and Durable Object classes. */
import type { Env } from "./env.ts";
import { handle } from "./router.ts";

export { KeyRing } from "./auth/key-ring.ts";
export { Fleet } from "./fleet.ts";
export { TenantLimiter } from "./limits/tenant-limiter.ts";
export { SessionExpiry } from "./session-expiry.ts";
export { SessionLog } from "./session-log/session-log.ts";
export { TenantIndex } from "./tenant-index.ts";

/** The Worker itself. */
export default {
  fetch: (request, env) => handle(request, env),
} satisfies ExportedHandler<Env>;
