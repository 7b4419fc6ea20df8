/** Lets requests of a tenant in, within its limits, and gives turns a place until they end. */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Tenant } from "../auth/authenticate.ts";
import { readTenantLimits, type TenantLimits } from "../auth/key-record.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { asRecord, Fields } from "../fields.ts";
import { logError } from "../log.ts";
import { rateHeaders, rateRefusal } from "./rate-headers.ts";
import type { Limits } from "./tenant-budget.ts";
import { limiterOf } from "./tenant-limiter.ts";

/** A body of unknown length counts as this many bytes until its turn is settled. */
const BYTES_UNKNOWN = 4_096;
/** Roughly a token of English text; what it really was is counted at the end. */
const BYTES_PER_TOKEN = 4;

/** A request and its caller. */
export interface Caller {
  request: Request;
  env: Env;
  tenant: Tenant;
}

/**
 * Reads a turn's body and asks for its place at the same time, so that the question costs nothing; then runs it. The session settles the
 * place at the turn's end; a turn that does not begin gives it back here.
 * @throws {QuireError} `rate_limit_exceeded` with `Retry-After`, and whatever `read` and `run` throw.
 */
export async function inPlace<Body>(
  caller: Caller,
  read: () => Promise<Body>,
  run: (body: Body, leaseId: string) => Promise<Response>,
): Promise<Response> {
  const { request, env, tenant } = caller;
  const leaseId = crypto.randomUUID();
  const declared = request.headers.get("content-length");
  const bytes = declared === null ? BYTES_UNKNOWN : Number(declared);
  const tokensEstimated = Math.ceil(Math.min(bytes || 0, LIMITS.requestBytesMax) / BYTES_PER_TOKEN);
  try {
    const [headers, body] = await Promise.all([admit(caller, { leaseId, tokensEstimated }), read()]);
    const response = await run(body, leaseId);
    for (const [name, value] of Object.entries(headers)) response.headers.set(name, value);
    return response;
  } catch (thrown) {
    await settlePlace(env, { namespace: tenant.namespace, leaseId }, 0);
    throw thrown;
  }
}

/** Counts a request that runs no turn. @throws {QuireError} `rate_limit_exceeded`. */
export async function countRequest(caller: Pick<Caller, "env" | "tenant">): Promise<void> {
  await admit(caller, { leaseId: undefined, tokensEstimated: 0 });
}

/** Where a turn has its place; without an id there is none. */
export interface PlaceName {
  namespace: string;
  leaseId?: string | undefined;
}

/** The turn of a place has begun. Nobody needs to wait for this, and it never rejects. */
export async function holdPlace(env: Env, { namespace, leaseId }: PlaceName): Promise<void> {
  if (leaseId === undefined) return;
  const held = limiterOf(env, namespace).hold(leaseId);
  await held.catch(() => undefined);
}

/** The turn of a place is over. Waits until that is known, at most `LIMITS.limiterMsMax`; never rejects. */
export async function settlePlace(env: Env, { namespace, leaseId }: PlaceName, tokens: number): Promise<void> {
  if (leaseId === undefined) return;
  const settled = limiterOf(env, namespace).settle(leaseId, tokens);
  await within(LIMITS.limiterMsMax, settled).catch(() => undefined);
}

/** @returns headers for the answer; none when the limiter does not answer: then a request goes uncounted rather than unanswered. */
async function admit(
  { env, tenant }: Pick<Caller, "env" | "tenant">,
  asked: { leaseId: string | undefined; tokensEstimated: number },
): Promise<Record<string, string>> {
  const limits = limitsOf(tenant.key.limits, env);
  const answer = within(LIMITS.limiterMsMax, limiterOf(env, tenant.namespace).admit({ ...asked, limits }));
  const admission = await answer.catch((thrown: unknown) => logError(`limits of ${tenant.name}`, thrown));
  if (!admission) return {};
  if (admission.refusedBy !== undefined) throw rateRefusal(admission, limits);
  return rateHeaders(admission);
}

/** A key's limits over the deployment's over the defaults. @throws {QuireError} `internal` for a deployment whose limits cannot be read. */
export function limitsOf(own: TenantLimits | undefined, env: Pick<Env, "QUIRE_LIMITS">): Limits {
  const deployed = env.QUIRE_LIMITS ? deployedLimits(env.QUIRE_LIMITS) : undefined;
  return {
    requestsPerMinute: own?.requestsPerMinute ?? deployed?.requestsPerMinute ?? LIMITS.requestsPerMinuteDefault,
    tokensPerMinute: own?.tokensPerMinute ?? deployed?.tokensPerMinute ?? LIMITS.tokensPerMinuteDefault,
    turnsConcurrent: own?.turnsConcurrent ?? deployed?.turnsConcurrent ?? LIMITS.turnsConcurrentDefault,
  };
}

function deployedLimits(text: string): TenantLimits | undefined {
  try {
    return readTenantLimits(new Fields(asRecord(JSON.parse(text), "QUIRE_LIMITS")));
  } catch (cause) {
    throw new QuireError("internal", "The server is not configured: its limits cannot be read.", { cause });
  }
}
