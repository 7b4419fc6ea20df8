/** Tests say which device, store, model or client they really ran on; `npm test` sums it up at its end. */
import { beforeEach } from "vitest";

/** What a test can exercise. */
export type ExercisedKind = "device" | "store" | "model" | "client" | "runtime";

declare module "vitest" {
  interface TaskMeta {
    /** `kind: name` of everything that this test exercised. */
    exercised?: string[];
  }
}

/**
 * Call inside a `describe`: its tests are counted as having run on `name`, when they pass.
 * Example: `markExercised("device", "wasm, 2 threads")` in a conformance suite.
 */
export function markExercised(kind: ExercisedKind, name: string): void {
  beforeEach(({ task }) => {
    task.meta.exercised = [...(task.meta.exercised ?? []), `${kind}: ${name}`];
  });
}
