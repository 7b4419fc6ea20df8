/** The flags of `quire keys`. */
import { LIMITS } from "../../protocol/limits.ts";
import { SCOPES, type Scope } from "../../workers/auth/key-record.ts";
import { parseHttpUrl, parseInteger, parseText } from "../flags.ts";
import { UsageError } from "../usage-error.ts";

const unitS: Record<string, number> = { m: 60, h: 3_600, d: 86_400 };

/** A time span in seconds: a whole number with m, h or d. */
export function parseSpan(text: string): number {
  const [, count, unit = ""] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  const seconds = Number(count) * (unitS[unit] ?? Number.NaN);
  if (seconds >= 0) return seconds;
  throw new UsageError("must be a time such as 30m, 24h or 90d");
}

/** Scopes by name, with commas between them. */
export function parseScopes(text: string): Scope[] {
  const names = text.split(",");
  const scopes = SCOPES.filter((scope) => names.includes(scope));
  if (scopes.length > 0 && scopes.length === names.length) return scopes;
  throw new UsageError(`must be some of ${SCOPES.join(",")}`);
}

/** Where keys are kept; every action takes these. */
export const placeFlags = {
  edge: {
    help: "address of the edge whose key ring is meant; an operator's key comes from QUIRE_OPERATOR_KEY or --data",
    placeholder: "URL",
    env: "QUIRE_EDGE",
    fallback: "http://127.0.0.1:8787",
    parse: parseHttpUrl,
  },
  data: {
    help: "data folder of `quire start`, for its operator's key",
    placeholder: "FOLDER",
    env: "QUIRE_DATA",
    fallback: ".data",
    parse: parseText,
  },
  file: {
    help: "a table for the secret QUIRE_API_KEYS instead of an edge's key ring",
    placeholder: "FILE",
    parse: parseText,
  },
} as const;

/** What a new key may do. */
export const createFlags = {
  tenant: { help: "whose key it is; needed", placeholder: "NAME", parse: parseText },
  scopes: {
    help: `some of ${SCOPES.join(",")}; without it all but keys`,
    placeholder: "LIST",
    parse: parseScopes,
  },
  "expires-in": { help: "the key ends after this time, such as 90d", placeholder: "TIME", parse: parseSpan },
  label: { help: "your own words", placeholder: "TEXT", parse: parseText },
  "requests-per-minute": {
    help: "of the tenant; without it the deployment's",
    placeholder: "COUNT",
    parse: parseInteger({ min: 1, max: LIMITS.requestsPerMinuteMax }),
  },
  "tokens-per-minute": {
    help: "of the tenant; without it the deployment's",
    placeholder: "COUNT",
    parse: parseInteger({ min: 1, max: LIMITS.tokensPerMinuteMax }),
  },
  "turns-concurrent": {
    help: "of the tenant; without it the deployment's",
    placeholder: "COUNT",
    parse: parseInteger({ min: 1, max: LIMITS.turnsConcurrentMax }),
  },
  ...placeFlags,
} as const;

/** Which keys are listed. */
export const listFlags = {
  tenant: { help: "only this tenant's", placeholder: "NAME", parse: parseText },
  ...placeFlags,
} as const;

/** How long an old key lives on beside the new one. */
export const rotateFlags = {
  overlap: {
    help: "how long the old key still works; 0m ends it at once",
    placeholder: "TIME",
    fallback: "24h",
    parse: parseSpan,
  },
  ...placeFlags,
} as const;
