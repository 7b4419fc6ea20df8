/** Durable Object, one per tenant: counts its requests, tokens and turns, wherever they come in. */
import { DurableObject } from "cloudflare:workers";
import { LIMITS } from "../../protocol/limits.ts";
import type { Env } from "../env.ts";
import type { PlaceRequest } from "./place.ts";
import { type Admission, type AdmissionRequest, type BudgetState, TenantBudget } from "./tenant-budget.ts";

const STATE_KEY = "budget";

/**
 * Counts in memory and writes at most once in `LIMITS.budgetSaveMs`, behind the answers: a request waits for no disk. An object that dies in
 * between forgets less than that of what was used.
 */
export class TenantLimiter extends DurableObject<Env> {
  readonly #budget: TenantBudget;
  #saving: ReturnType<typeof setTimeout> | undefined;

  constructor(state: DurableObjectState, env: Env) {
    super(state, env);
    this.#budget = new TenantBudget(state.storage.kv.get<BudgetState>(STATE_KEY));
  }

  /** See {@link TenantBudget.admit}. */
  async admit(request: AdmissionRequest): Promise<Admission> {
    this.#save();
    return this.#budget.admit(request, Date.now());
  }

  /** See {@link TenantBudget.hold}. */
  async hold(leaseId: string): Promise<void> {
    this.#budget.hold(leaseId, Date.now());
  }

  /** See {@link TenantBudget.settle}, and of the place of the turn that may come next {@link TenantBudget.reserve}. */
  async settle(leaseId: string, tokens: number, next?: PlaceRequest): Promise<Admission | undefined> {
    this.#budget.settle(leaseId, tokens);
    this.#save();
    return next && this.#budget.reserve(next, Date.now());
  }

  /** What is in use now, for tests and operators. */
  get used(): { requests: number; tokens: number; turns: number } {
    return this.#budget.used;
  }

  #save(): void {
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined;
      // Unconfirmed: an object's answers wait for writes otherwise. A storage that fails takes the object with it.
      this.ctx.storage.put(STATE_KEY, this.#budget.state, { allowUnconfirmed: true }).catch(() => undefined);
    }, LIMITS.budgetSaveMs);
  }
}

/** The limiter of a tenant. */
export function limiterOf(env: Env, namespace: string): DurableObjectStub<TenantLimiter> {
  return env.TENANT_LIMITER.get(env.TENANT_LIMITER.idFromName(namespace));
}
