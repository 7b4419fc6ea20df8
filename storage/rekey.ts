/** Puts everything under the first key of a ring: what is not encrypted yet, and what an older key encrypted. */
import { LIMITS } from "../protocol/limits.ts";
import { chunkHeader, STORED_CHUNK_BYTES } from "./chunk-cipher.ts";
import type { PageStore } from "./contract.ts";
import { EncryptedStore } from "./encrypted-store.ts";
import { isDamage } from "./format-error.ts";
import { listAll } from "./gc.ts";
import type { KeyRing } from "./key-ring.ts";
import { parseObjectKey } from "./keys.ts";

/** What was found and done. */
export interface RekeyReport {
  objectCount: number;
  /** Objects that were written anew, or would be. */
  rekeyedCount: number;
  rekeyedBytes: number;
  /** Objects that changed while they were looked at: what wrote them used a key of its own. */
  changedCount: number;
  /** Objects that do not authenticate, or that the store finds damaged: nobody can read them, and they are left as they are. */
  damagedKeys: string[];
}

/**
 * Rewrites the objects of a prefix that are not under the ring's first key, each only if it has not changed meanwhile. Safe while engines
 * run that have the ring; may be ended and run again at any time.
 * @param inner the store without encryption
 * @throws {StoreError} when the store fails, or an object's key is not in the ring (`denied`).
 */
export async function rekeyStore(
  inner: PageStore,
  ring: KeyRing,
  options: { prefix: string; dryRun?: boolean; signal?: AbortSignal | undefined },
): Promise<RekeyReport> {
  const store = new EncryptedStore(inner, ring);
  const report: RekeyReport = { objectCount: 0, rekeyedCount: 0, rekeyedBytes: 0, changedCount: 0, damagedKeys: [] };
  const { signal } = options;
  const one = async (key: string, bytes: number): Promise<void> => {
    const range = { offset: 0, bytes: Math.min(bytes, STORED_CHUNK_BYTES) };
    const head = bytes === 0 ? new Uint8Array(0) : (await inner.get(key, { range, signal }))?.bytes;
    if (head === undefined) return;
    const keyId = chunkHeader(head)?.keyId;
    if (keyId === ring[0].id) return;
    if (options.dryRun !== true) {
      const object = await (keyId === undefined ? inner : store).get(key, { signal });
      if (object === undefined) return;
      const { outcome } = await store.put(key, object.bytes, { condition: { etag: object.etag }, signal });
      if (outcome === "conflict") report.changedCount += 1;
    }
    report.rekeyedCount += 1;
    report.rekeyedBytes += bytes;
  };
  const oneOrDamaged = async (key: string, bytes: number): Promise<void> => {
    try {
      await one(key, bytes);
    } catch (error) {
      if (!isDamage(error)) throw error;
      report.damagedKeys.push(key);
    }
  };
  let batch: Promise<void>[] = [];
  for await (const { key, bytes } of listAll(inner, options.prefix, signal)) {
    if (parseObjectKey(key) === undefined) continue;
    report.objectCount += 1;
    batch.push(oneOrDamaged(key, bytes));
    if (batch.length < LIMITS.storeConcurrency) continue;
    await Promise.all(batch);
    batch = [];
  }
  await Promise.all(batch);
  return report;
}
