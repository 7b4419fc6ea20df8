/** What clients are told of their limits. */
import { QuireError } from "../../protocol/errors.ts";
import type { Admission, Limits } from "./tenant-budget.ts";

/** `x-ratelimit-*` as OpenAI has them. */
export function rateHeaders({
  requests,
  tokens,
}: Pick<Admission, "requests" | "tokens">): Readonly<Record<RateHeader, string>> {
  return {
    "x-ratelimit-limit-requests": String(requests.limit),
    "x-ratelimit-remaining-requests": String(requests.remaining),
    "x-ratelimit-reset-requests": duration(requests.resetMs),
    "x-ratelimit-limit-tokens": String(tokens.limit),
    "x-ratelimit-remaining-tokens": String(tokens.remaining),
    "x-ratelimit-reset-tokens": duration(tokens.resetMs),
  };
}

/** Names of {@link rateHeaders}, for browsers. */
export const RATE_HEADER_NAMES = [
  "x-ratelimit-limit-requests",
  "x-ratelimit-remaining-requests",
  "x-ratelimit-reset-requests",
  "x-ratelimit-limit-tokens",
  "x-ratelimit-remaining-tokens",
  "x-ratelimit-reset-tokens",
] as const;

type RateHeader = (typeof RATE_HEADER_NAMES)[number];

/** The error of a request that a limit refuses. */
export function rateRefusal(admission: Admission, limits: Limits): QuireError {
  const { requestsPerMinute, tokensPerMinute, turnsConcurrent } = limits;
  const what = {
    requests: `${requestsPerMinute} requests per minute`,
    tokens: `${tokensPerMinute} tokens per minute`,
    turns: `${turnsConcurrent} turns at a time`,
  }[admission.refusedBy ?? "requests"];
  const { retryAfterMs } = admission;
  const message = `Rate limit reached: ${what}. Please try again in ${duration(retryAfterMs)}.`;
  return new QuireError("rate_limit_exceeded", message, { retryAfterMs, headers: rateHeaders(admission) });
}

/** "120ms", "1.5s", "6m0s": a time span as OpenAI's headers write it. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.max(0, Math.round(ms))}ms`;
  const tenths = Math.round(ms / 100);
  if (tenths < 600) return `${tenths / 10}s`;
  const seconds = Math.round(ms / 1_000);
  return `${Math.floor(seconds / 60)}m${seconds % 60}s`;
}
