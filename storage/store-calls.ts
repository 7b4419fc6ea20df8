/** What became of the calls of a store: numbers for its metrics. */
import { StoreError, type StoreErrorCode } from "./contract.ts";

/** The calls of a `PageStore`. */
export type StoreCall = "get" | "put" | "delete" | "list";

/** `ok`: answered, also that there is none or that a condition does not hold. `outrun`: the second request for the same bytes was quicker. */
export type StoreOutcome = "ok" | "outrun" | StoreErrorCode;

/** Counts from 0 on; every pair that can be is there from the beginning. */
export class StoreCalls {
  readonly #counts = new Map<StoreCall, Map<StoreOutcome, number>>();

  constructor() {
    const outcomes: StoreOutcome[] = ["ok", "unavailable", "timeout", "denied", "corrupt", "aborted"];
    for (const call of ["get", "put", "delete", "list"] as const)
      this.#counts.set(call, new Map(outcomes.map((outcome) => [outcome, 0])));
    this.#counts.get("get")?.set("outrun", 0);
  }

  note(call: StoreCall, outcome: StoreOutcome): void {
    const counts = this.#counts.get(call);
    counts?.set(outcome, (counts.get(outcome) ?? 0) + 1);
  }

  /** All counts. */
  entries(): { call: StoreCall; outcome: StoreOutcome; count: number }[] {
    return [...this.#counts].flatMap(([call, counts]) =>
      [...counts].map(([outcome, count]) => ({ call, outcome, count })),
    );
  }
}

/** What a thrown error says of the store. A deadline of the caller's is a store that took too long; its leaving is `aborted`. */
export function failureOutcome(error: unknown): StoreOutcome {
  if (!(error instanceof StoreError)) return "unavailable";
  const { cause } = error as { cause?: { name?: unknown } };
  return error.code === "aborted" && cause?.name === "TimeoutError" ? "timeout" : error.code;
}
