import type { KvGeometry } from "../../storage/geometry.ts";
import { type ObjectKeys, objectKeys } from "../../storage/keys.ts";

/** Object keys of every namespace for one engine's model, numerics and geometry. */
export class SessionKeys {
  readonly #space: { modelFingerprint: string; numericsId: string; geometry: KvGeometry };

  constructor(space: { modelFingerprint: string; numericsId: string; geometry: KvGeometry }) {
    this.#space = space;
  }

  /** @throws {AssertionError} for a namespace that is not 1-64 lower-case hex digits. */
  of(namespace: string): ObjectKeys {
    return objectKeys({ ...this.#space, namespace });
  }
}
