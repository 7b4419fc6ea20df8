import { QuireError } from "../protocol/errors.ts";
import { type PoolForm, poolFormOf, storedFormsOf } from "../storage/block-encoding.ts";
import type { StoredEncoding } from "../storage/geometry.ts";

/**
 * What a pool's sealed blocks are to be, so that its pages can be stored in an encoding (default: the pool's own).
 * @throws {QuireError} `invalid_request`, one line, for pages that cannot be stored so: what is in the pool has other bits.
 */
export function poolForm(
  kvEncoding: PoolForm["encoding"],
  pageEncoding: StoredEncoding | undefined = kvEncoding,
): PoolForm {
  const forms = storedFormsOf(kvEncoding);
  if (forms.includes(pageEncoding)) return poolFormOf(pageEncoding);
  const message = `pages of an ${kvEncoding} pool are stored as ${forms.join(" or ")}, not ${pageEncoding}`;
  throw new QuireError("invalid_request", message, { param: "pageEncoding" });
}
