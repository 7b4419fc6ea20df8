/** What clients are told of their limits. */
import { QuireError } from "../../protocol/errors.ts";
import type { Admission, Limits, Quota } from "./tenant-budget.ts";

/** `x-ratelimit-*` as OpenAI has them. */
export function rateHeaders({ requests, tokens }: Pick<Admission, "requests" | "tokens">): Record<string, string> {
  const of = (name: string, { limit, remaining, resetMs }: Quota) => ({
    [`x-ratelimit-limit-${name}`]: String(limit),
    [`x-ratelimit-remaining-${name}`]: String(remaining),
    [`x-ratelimit-reset-${name}`]: duration(resetMs),
  });
  return { ...of("requests", requests), ...of("tokens", tokens) };
}

/** Names of {@link rateHeaders}, for browsers. */
export const RATE_HEADER_NAMES: readonly string[] = ["requests", "tokens"].flatMap((name) =>
  ["limit", "remaining", "reset"].map((what) => `x-ratelimit-${what}-${name}`),
);

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
