/** Random histories of a page store, held against a naive model. */
import { expect } from "vitest";
import type { PageStore } from "../../storage/contract.ts";
import { noise, seededRandom } from "./random.ts";

interface Modelled {
  bytes: Uint8Array;
  etag: string;
}

/** Runs `stepCount` random calls under `prefix`, each of whose answers must be the model's. */
export async function runHistory(store: PageStore, prefix: string, seed: number, stepCount: number): Promise<void> {
  const random = seededRandom(seed);
  const model = new Map<string, Modelled>();
  const etags: string[] = [];
  const names = ["a", "a/b", "a/b/c", "b", "b-c", "b/c"].map((name) => prefix + name);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  for (let step = 0; step < stepCount; step++) {
    const label = `seed ${seed}, step ${step}`;
    const key = pick(names);
    const action = random();
    if (action < 0.5) {
      const bytes = noise(seed + step, Math.floor(random() * 300));
      const stale = etags.length > 0 ? pick(etags) : undefined;
      const current = model.get(key)?.etag ?? stale;
      const choices = [undefined, "absent" as const, current, stale].map((it) =>
        it === undefined || it === "absent" ? it : { etag: it },
      );
      const condition = pick(choices);
      const result = await store.put(key, bytes, condition === undefined ? {} : { condition });
      expect(result.outcome, label).toBe(holds(model.get(key), condition) ? "stored" : "conflict");
      if (result.outcome === "stored") {
        model.set(key, { bytes, etag: result.etag });
        etags.push(result.etag);
      }
    } else if (action < 0.75) {
      const object = await store.get(key);
      expect(object?.etag, label).toBe(model.get(key)?.etag);
      expect(Buffer.from(object?.bytes ?? []).equals(model.get(key)?.bytes ?? new Uint8Array(0)), label).toBe(true);
    } else if (action < 0.9) {
      const doomed = names.filter(() => random() < 0.3);
      await store.delete(doomed);
      for (const name of doomed) model.delete(name);
    } else {
      const { keys } = await store.list(prefix);
      const expected = [...model].map(([name, { bytes }]) => ({ key: name, bytes: bytes.byteLength }));
      expected.sort((a, b) => (a.key < b.key ? -1 : 1));
      expect(
        keys.map(({ key: name, bytes }) => ({ key: name, bytes })),
        label,
      ).toEqual(expected);
    }
  }
  await store.delete(names);
}

function holds(current: Modelled | undefined, condition: { etag: string } | "absent" | undefined): boolean {
  if (condition === undefined) return true;
  return condition === "absent" ? current === undefined : current?.etag === condition.etag;
}
