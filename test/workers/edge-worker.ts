/** The whole edge in a bare workerd, which has no bucket: the model's words come from a text binding (`npm run bench -- edge`). */
import type { Env } from "../../workers/env.ts";
import { handle } from "../../workers/router.ts";
import { SessionLog as EdgeSessionLog } from "../../workers/session-log/session-log.ts";

export { KeyRing } from "../../workers/auth/key-ring.ts";
export { Fleet } from "../../workers/fleet.ts";
export { TenantLimiter } from "../../workers/limits/tenant-limiter.ts";
export { TenantIndex } from "../../workers/tenant-index.ts";

/** JSON: the texts of `models/<id>/...` by name. */
type BenchEnv = Env & { MODEL_FILES: string };

/** The session log with files in the place of the bucket; both are read once per isolate. */
export class SessionLog extends EdgeSessionLog {
  constructor(state: DurableObjectState, env: BenchEnv) {
    super(state, { ...env, PAGES: bucketOf(env.MODEL_FILES) });
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
export default { fetch: (request, env) => handle(request, env) } satisfies ExportedHandler<Env>;
