/**
 * What is kept of an API key: the SHA-256 of its text, and who may do what with it. The text itself is shown once, where it is made, and
 * stored nowhere. Keys are 256 random bits, so a plain hash is enough: there is nothing to guess.
 */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { equalInConstantTime } from "../../protocol/signature.ts";
import { asRecord, Fields, invalid } from "../fields.ts";

/** What a key may be used for. `keys` is for operators: it manages the keys of every tenant. */
export const SCOPES = ["generate", "sessions:read", "sessions:write", "keys"] as const;

/** One of {@link SCOPES}. */
export type Scope = (typeof SCOPES)[number];

/** Scopes of a key that names none. */
export const DEFAULT_SCOPES: readonly Scope[] = ["generate", "sessions:read", "sessions:write"];

/** What a tenant may ask for; absent fields follow the deployment's limits. */
export interface TenantLimits {
  requestsPerMinute?: number | undefined;
  /** Tokens that are new to a conversation, and tokens that are generated. */
  tokensPerMinute?: number | undefined;
  turnsConcurrent?: number | undefined;
}

/** A key as the edge knows it. */
export interface KeyRecord {
  /** Names the key in lists and commands; no secret. */
  id: string;
  tenant: string;
  scopes: readonly Scope[];
  /** Unix seconds; 0 where nobody noted it. */
  createdS: number;
  /** Unix seconds from which the key is refused; undefined: never. */
  expiresS?: number | undefined;
  /** The operator's own words. */
  label?: string | undefined;
  limits?: TenantLimits | undefined;
}

const HASH = /^[0-9a-f]{64}$/;
const TENANT = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const ID = /^key_[0-9a-f]{12}$/;
const SECONDS = { min: 0, max: 1e11, integer: true };

/** The id of a key, from its hash. */
export function keyIdOf(hash: string): string {
  return `key_${hash.slice(0, 12)}`;
}

/** @throws {QuireError} `invalid_request` for what is not the lower-case hex of a SHA-256. */
export function checkKeyHash(value: unknown): string {
  if (typeof value === "string" && HASH.test(value)) return value;
  throw invalid("hash", "Invalid 'hash': expected the SHA-256 of the key in lower-case hex.");
}

/** @throws {QuireError} `invalid_request` for what is not a key's id. */
export function checkKeyId(value: string): string {
  if (ID.test(value)) return value;
  throw invalid("id", "Invalid 'id': expected key_ and 12 hex digits.");
}

/**
 * Reads a record in its stored form (snake case, see {@link keyRecordJson}).
 * @throws {QuireError} `invalid_request` naming the field.
 */
export function readKeyRecord(hash: string, value: unknown): KeyRecord {
  const fields = new Fields(asRecord(value, "key"));
  fields.raw("id");
  const tenant = fields.string("tenant");
  if (tenant === undefined || !TENANT.test(tenant)) {
    throw invalid("tenant", "Invalid 'tenant': expected 1 to 64 characters of A-Z a-z 0-9 . _ -");
  }
  const label = fields.string("label");
  if (label !== undefined && label.length > LIMITS.keyLabelLengthMax) {
    throw invalid("label", `Invalid 'label': at most ${LIMITS.keyLabelLengthMax} characters.`);
  }
  const record: KeyRecord = {
    id: keyIdOf(hash),
    tenant,
    scopes: readScopes(fields),
    createdS: fields.number("created_s", SECONDS) ?? 0,
    expiresS: fields.number("expires_s", SECONDS),
    label,
    limits: readTenantLimits(fields.object("limits")),
  };
  fields.refuseOthers();
  return record;
}

/** The stored form of a record. */
export function keyRecordJson(record: KeyRecord): Record<string, unknown> {
  const { id, tenant, scopes, createdS, expiresS, label, limits } = record;
  return {
    id,
    tenant,
    scopes,
    created_s: createdS,
    expires_s: expiresS,
    label,
    limits: limits && {
      requests_per_minute: limits.requestsPerMinute,
      tokens_per_minute: limits.tokensPerMinute,
      turns_concurrent: limits.turnsConcurrent,
    },
  };
}

/** Reads limits in their stored form. @throws {QuireError} `invalid_request` naming the field. */
export function readTenantLimits(fields: Fields | undefined): TenantLimits | undefined {
  if (!fields) return undefined;
  const upTo = (max: number) => ({ min: 1, max, integer: true });
  const limits: TenantLimits = {
    requestsPerMinute: fields.number("requests_per_minute", upTo(LIMITS.requestsPerMinuteMax)),
    tokensPerMinute: fields.number("tokens_per_minute", upTo(LIMITS.tokensPerMinuteMax)),
    turnsConcurrent: fields.number("turns_concurrent", upTo(LIMITS.turnsConcurrentMax)),
  };
  fields.refuseOthers();
  return limits;
}

function readScopes(fields: Fields): readonly Scope[] {
  const names = fields.array("scopes");
  if (names === undefined) return DEFAULT_SCOPES;
  const scopes = SCOPES.filter((scope) => names.includes(scope));
  if (scopes.length > 0 && scopes.length === names.length) return scopes;
  throw invalid("scopes", `Invalid 'scopes': expected some of ${SCOPES.join(", ")}, each once.`);
}

/** A table of keys as the secret `QUIRE_API_KEYS` holds it: hash to record. */
export type KeyTable = ReadonlyMap<string, KeyRecord>;

/** @throws {QuireError} `invalid_request` for a text that is not a table of keys. */
export function readKeyTable(text: string): KeyTable {
  const entries = Object.entries(asRecord(JSON.parse(text), "keys"));
  if (entries.length > LIMITS.keyTableCountMax) {
    throw invalid(
      "keys",
      `A table holds at most ${LIMITS.keyTableCountMax} keys; more of them belong into the key ring.`,
    );
  }
  return new Map(entries.map(([hash, record]) => [checkKeyHash(hash), readKeyRecord(hash, record)]));
}

/** The stored form of a table. */
export function keyTableJson(table: KeyTable): Record<string, unknown> {
  return Object.fromEntries([...table].map(([hash, record]) => [hash, keyRecordJson(record)]));
}

const utf8 = new TextEncoder();

/** A table that is asked often. */
export class KeyIndex {
  readonly #entries: readonly { hash: Uint8Array; record: KeyRecord }[];

  constructor(table: KeyTable) {
    this.#entries = [...table].map(([hash, record]) => ({ hash: utf8.encode(hash), record }));
  }

  /** The record of a hash. All entries are compared, each in constant time: the time taken tells nothing of any of them. */
  find(hash: string): KeyRecord | undefined {
    const wanted = utf8.encode(hash);
    let found: KeyRecord | undefined;
    for (const entry of this.#entries) if (equalInConstantTime(entry.hash, wanted)) found = entry.record;
    return found;
  }
}

/** Refuses a key that may not do this. @throws {QuireError} `invalid_api_key` when it has expired, `permission_denied` without the scope. */
export function assertKeyAllows(record: KeyRecord, scope: Scope | undefined, nowS: number): void {
  if (record.expiresS !== undefined && record.expiresS <= nowS) {
    throw new QuireError("invalid_api_key", "This API key has expired.");
  }
  if (scope === undefined || record.scopes.includes(scope)) return;
  throw new QuireError("permission_denied", `This API key does not have the scope '${scope}'.`);
}
