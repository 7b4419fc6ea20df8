/** The whole edge in a bare workerd, which has no bucket: the model's words come from a text binding (`npm run bench -- edge`). */
import { env as bindings } from "cloudflare:workers";
import type { Env } from "../../workers/env.ts";
import { handle } from "../../workers/router.ts";
import { SessionLog as EdgeSessionLog } from "../../workers/session-log/session-log.ts";

export { KeyRing } from "../../workers/auth/key-ring.ts";
export { Fleet } from "../../workers/fleet.ts";
export { TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
export { SessionExpiry } from "../../workers/session-expiry.ts";
export { TenantIndex } from "../../workers/tenant-index.ts";

/** JSON: the texts of `models/<id>/...` by name. */
type BenchEnv = Env & { MODEL_FILES: string };

/** Files in the place of the bucket, read once per isolate as a binding would be shared: a copy per session was most of what the edge held. */
const edgeEnv: Env = { ...(bindings as BenchEnv), PAGES: bucketOf((bindings as BenchEnv).MODEL_FILES) };

/** The session log with that bucket. */
export class SessionLog extends EdgeSessionLog {
  constructor(state: DurableObjectState) {
    super(state, edgeEnv);
  }
}

function bucketOf(json: string): R2Bucket {
  const files = JSON.parse(json) as Record<string, string>;
  const get = async (key: string) => {
    const text = files[key.split("/").at(-1) ?? ""];
    return text === undefined ? null : new Response(text);
  };
  return { get } as unknown as R2Bucket;
}

/** The Worker. */
export default { fetch: (request) => handle(request, edgeEnv) } satisfies ExportedHandler<Env>;
