/** Which web pages of other origins may use the API. Keys travel in a header and there are no cookies, so this is no defence of its own. */
import type { Env } from "./env.ts";
import { RATE_HEADER_NAMES } from "./limits/rate-headers.ts";
import { REQUEST_ID_HEADER } from "./request-id.ts";
import { SESSION_HEADER } from "./session-id.ts";

const EXPOSED = [REQUEST_ID_HEADER, SESSION_HEADER, "retry-after", ...RATE_HEADER_NAMES].join(", ");

/**
 * Headers of an answer to a request with this `Origin`. `QUIRE_CORS_ORIGINS` is `*`, or origins with commas between; without it no
 * other origin may read anything. Origins are compared as a whole: no wildcards, no suffixes.
 */
export function corsHeaders(origin: string | null, env: Pick<Env, "QUIRE_CORS_ORIGINS">): Record<string, string> {
  const configured = (env.QUIRE_CORS_ORIGINS ?? "").split(",").map((part) => part.trim());
  if (configured.includes("*")) {
    return { "access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED };
  }
  // Also for an origin that is not allowed: a cache must not give its answer to one that is.
  const vary = { vary: "origin" };
  // Sandboxed pages and files all have the origin "null": whoever is that could be anybody.
  const isAllowed = origin !== null && origin !== "" && origin !== "null" && configured.includes(origin);
  if (!isAllowed) return vary;
  return { ...vary, "access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED };
}

/** What a browser asks for before a request of another origin. */
export function preflight(): Response {
  return new Response(null, {
    status: 204,
    headers: {
      "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
      // Browsers do not take "*" for authorization, and the clients' own headers (x-stainless-*) are many.
      "access-control-allow-headers": `*, authorization, content-type, ${SESSION_HEADER}`,
      "access-control-max-age": "86400",
    },
  });
}
