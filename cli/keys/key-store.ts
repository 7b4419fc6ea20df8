/** Where `quire keys` reads and writes records; the text of a key never gets here. */
import type { KeyRecord } from "../../workers/auth/key-record.ts";

/** A new key as its store takes it. */
export type NewKeyRecord = Omit<KeyRecord, "id" | "createdS">;

/** Keys of a deployment: a file that becomes its secret, or the key ring of a running edge. */
export interface KeyStore {
  /** @throws {UsageError} for a record that the store refuses. */
  add(hash: string, record: NewKeyRecord): Promise<KeyRecord>;
  /** In the order of their ids. */
  list(tenant: string | undefined): Promise<KeyRecord[]>;
  /** @throws {UsageError} when there is none of that id. */
  get(id: string): Promise<KeyRecord>;
  /** Lets a key end at a time (Unix seconds), or when it would have anyway. @throws {UsageError} when there is none of that id. */
  expire(id: string, expiresS: number): Promise<KeyRecord>;
  /** @throws {UsageError} when there is none of that id. */
  revoke(id: string): Promise<void>;
}
