/** Durable Object, one per tenant: counts its requests, tokens and turns, wherever they come in. */
import { DurableObject } from "cloudflare:workers";
import { LIMITS } from "../../protocol/limits.ts";
import type { Env } from "../env.ts";
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

  /** See {@link TenantBudget.settle}. */
  async settle(leaseId: string, tokens: number): Promise<void> {
    this.#budget.settle(leaseId, tokens);
    this.#save();
  }

  /** What is in use now, for tests and operators. */
  get used(): { requests: number; tokens: number; turns: number } {
    const { requestsUsed, tokensUsed } = this.#budget.state;
    return { requests: requestsUsed, tokens: tokensUsed, turns: this.#budget.turnCount };
  }

  #save(): void {
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined;
      this.ctx.storage.kv.put(STATE_KEY, this.#budget.state);
    }, LIMITS.budgetSaveMs);
  }
}

/** The limiter of a tenant. */
export function limiterOf(env: Env, namespace: string): DurableObjectStub<TenantLimiter> {
  return env.TENANT_LIMITER.get(env.TENANT_LIMITER.idFromName(namespace));
}
