/** Lets requests of a tenant in, within its limits, and gives turns a place until they end. */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Tenant } from "../auth/authenticate.ts";
import { readTenantLimits, type TenantLimits } from "../auth/key-record.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { asRecord, Fields } from "../fields.ts";
import { logError } from "../log.ts";
import { RecentMap } from "../recent-map.ts";
import { isolateCredit, Place, type PlaceRequest } from "./place.ts";
import { rateHeaders, rateRefusal } from "./rate-headers.ts";
import type { Admission, AdmissionRequest, Limits } from "./tenant-budget.ts";
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
 * place at the turn's end; a turn that does not begin gives it back here. The place of a tenant that had plenty left a moment ago is asked for
 * by the session ({@link Place.handOver}), beside its own work.
 * @throws {QuireError} `rate_limit_exceeded` with `Retry-After`, and whatever `read` and `run` throw.
 */
export async function inPlace<Body>(
  caller: Caller,
  read: () => Promise<Body>,
  run: (body: Body, place: Place) => Promise<Response>,
): Promise<Response> {
  const { env, tenant } = caller;
  const asked = placeRequest(caller);
  const isTaken = !isolateCredit.allows(tenant, asked.tokensEstimated);
  let place: Place | undefined;
  try {
    const [admission, body] = await Promise.all([isTaken ? admit(caller, asked) : undefined, read()]);
    place = new Place(asked, { isTaken, admission });
    const response = await run(body, place);
    if (place.admission) {
      isolateCredit.note(tenant, place.admission);
      for (const [name, value] of Object.entries(rateHeaders(place.admission))) response.headers.set(name, value);
    }
    return response;
  } catch (thrown) {
    isolateCredit.forget(tenant);
    // A request that comes to nothing counts like any other.
    const { leaseId } = place ?? asked;
    if (isTaken || place?.isAsked) await settlePlace(env, { namespace: tenant.namespace, leaseId }, 0);
    else await countRequest(caller);
    throw thrown;
  }
}

function placeRequest({ request, env, tenant }: Caller): PlaceRequest {
  const declared = request.headers.get("content-length");
  const bytes = declared === null ? BYTES_UNKNOWN : Number(declared);
  return {
    leaseId: crypto.randomUUID(),
    tokensEstimated: Math.ceil(Math.min(bytes || 0, LIMITS.requestBytesMax) / BYTES_PER_TOKEN),
    limits: limitsOf(tenant.key.limits, env),
  };
}

/** Counts a request that runs no turn. @throws {QuireError} `rate_limit_exceeded`. */
export async function countRequest(caller: Pick<Caller, "env" | "tenant">): Promise<void> {
  const { env, tenant } = caller;
  await admit(caller, { leaseId: undefined, tokensEstimated: 0, limits: limitsOf(tenant.key.limits, env) });
}

/** Where a turn has its place; without an id there is none. */
export interface PlaceName {
  namespace: string;
  leaseId?: string | undefined;
}

/** The turn of a place runs. Nobody needs to wait for this, and it never rejects. */
export async function holdPlace(env: Env, { namespace, leaseId }: PlaceName): Promise<void> {
  if (leaseId === undefined) return;
  const held = limiterOf(env, namespace).hold(leaseId);
  await held.catch(() => undefined);
}

/**
 * The turn of a place is over. Waits until that is known, at most `LIMITS.limiterMsMax`; never rejects.
 * @param next of a turn that may come soon
 * @returns the answer for the next turn's place, where it was reserved
 */
export async function settlePlace(
  env: Env,
  { namespace, leaseId }: PlaceName,
  tokens: number,
  next?: PlaceRequest,
): Promise<Admission | undefined> {
  if (leaseId === undefined) return undefined;
  const settled = limiterOf(env, namespace).settle(leaseId, tokens, next);
  return within(LIMITS.limiterMsMax, settled).catch(() => undefined);
}

/** @returns the limiter's answer. @throws {QuireError} `rate_limit_exceeded` where that is no. */
async function admit(
  { env, tenant }: Pick<Caller, "env" | "tenant">,
  asked: AdmissionRequest,
): Promise<Admission | undefined> {
  const admission = await askPlace(env, tenant.namespace, asked);
  if (admission?.refusedBy !== undefined) throw rateRefusal(admission, asked.limits);
  return admission;
}

/** @returns undefined when the limiter does not answer: then a request goes uncounted rather than unanswered. Never rejects. */
export async function askPlace(env: Env, namespace: string, asked: AdmissionRequest): Promise<Admission | undefined> {
  const answer = within(LIMITS.limiterMsMax, limiterOf(env, namespace).admit(asked));
  return answer.catch((thrown: unknown) => {
    logError(`limits of ${namespace}`, thrown);
    return undefined;
  });
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

/** One per isolate: what a text of the configuration says. */
const isolateDeployedLimits = new RecentMap<TenantLimits>({ countMax: 4 });

function deployedLimits(text: string): TenantLimits | undefined {
  const known = isolateDeployedLimits.get(text);
  if (known) return known;
  try {
    const limits = readTenantLimits(new Fields(asRecord(JSON.parse(text), "QUIRE_LIMITS")));
    if (limits) isolateDeployedLimits.put(text, limits);
    return limits;
  } catch (cause) {
    throw new QuireError("internal", "The server is not configured: its limits cannot be read.", { cause });
  }
}
