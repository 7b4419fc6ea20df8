/** A Worker of the edge's guards alone, one path each, so that their costs can be told apart (`npm run bench -- guard`). */
import { authenticate } from "../../workers/auth/authenticate.ts";
import { engineHeaders } from "../../workers/auth/engine-headers.ts";
import { readJsonObject } from "../../workers/body.ts";
import type { Env } from "../../workers/env.ts";
import { askPlace, inPlace, settlePlace } from "../../workers/limits/admission.ts";

export { KeyRing } from "../../workers/auth/key-ring.ts";
export { TenantLimiter } from "../../workers/limits/tenant-limiter.ts";

const engineKey = "an-engine-key-of-enough-length";

const paths: Readonly<Record<string, (request: Request, env: Env) => Promise<unknown>>> = {
  "/nothing": (request) => request.arrayBuffer(),
  "/body": (request) => readJsonObject(request),
  async "/key"(request, env) {
    await authenticate(request, env, "generate");
    await request.arrayBuffer();
  },
  /** The way of a turn, without the turn: key, place beside body, settled at the end. */
  async "/turn"(request, env) {
    const tenant = await authenticate(request, env, "generate");
    let leaseId = "";
    await inPlace(
      { request, env, tenant },
      () => readJsonObject(request),
      async (_body, place) => {
        leaseId = place.leaseId;
        const asked = place.handOver();
        if (asked) place.answered(await askPlace(env, tenant.namespace, asked));
        return new Response(null);
      },
    );
    await settlePlace(env, { namespace: tenant.namespace, leaseId }, 100);
  },
  /** As large as the request's own body: the prompt of a turn as ids. */
  async "/sign"(request) {
    const body = new Uint8Array(await request.arrayBuffer());
    await engineHeaders({ engineKey, engineId: "engine-1", path: "/v1/generate", body });
  },
};

/** The Worker. */
export default {
  async fetch(request, env) {
    const answer = paths[new URL(request.url).pathname];
    if (!answer) return new Response(null, { status: 404 });
    await answer(request, env);
    return new Response("ok");
  },
} satisfies ExportedHandler<Env>;
