/**
 * The SHA-256 chain that names KV: `chain[b] = SHA256(chain[b-1] | count u32 | ids u32[count] | provenance utf-8)` over blocks of 64 tokens,
 * all integers little-endian. Equal chains mean equal tokens attended in the same way, so equal bytes on one numerics id.
 */
import { createHash } from "node:crypto";

/** Where every chain starts. */
export const CHAIN_ROOT: string = createHash("sha256").update("quire chain 1").digest("hex");

/** Extends a chain (hex) by up to 64 tokens; a count below 64 names an unsealed tail. */
export function extendChain(previous: string, ids: Uint32Array, provenance: string): string {
  const count = Uint32Array.of(ids.length);
  return createHash("sha256")
    .update(Buffer.from(previous, "hex"))
    .update(new Uint8Array(count.buffer))
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .update(provenance)
    .digest("hex");
}
