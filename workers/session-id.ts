/** Names of sessions: the client's choice, or made here. */
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { Fields } from "./fields.ts";

/** The header that names a session, in requests and in answers. */
export const SESSION_HEADER = "x-quire-session";

/**
 * The session of a request, from `quire.session_id` or the header.
 * @throws {QuireError} `invalid_request` when the two differ or a name is none (see {@link checkSessionId}).
 */
export function readSessionId(quire: Fields | undefined, headers: Headers): string | undefined {
  const inBody = quire?.string("session_id");
  const inHeader = headers.get(SESSION_HEADER) ?? undefined;
  if (inBody !== undefined && inHeader !== undefined && inBody !== inHeader) {
    throw new QuireError("invalid_request", `'quire.session_id' and the header ${SESSION_HEADER} name two sessions.`, {
      param: "quire.session_id",
    });
  }
  if (inBody !== undefined) return checkSessionId(inBody, "quire.session_id");
  return inHeader === undefined ? undefined : checkSessionId(inHeader, SESSION_HEADER);
}

/**
 * Returns a session's name if it can be one: no path ends in "." or "..", so a session of that name could not be deleted.
 * @throws {QuireError} `invalid_request` with `param` otherwise.
 */
export function checkSessionId(id: string, param: string): string {
  if (id.length <= LIMITS.sessionIdBytesMax && /^(?!\.{1,2}$)[A-Za-z0-9._:-]+$/.test(id)) return id;
  throw new QuireError(
    "invalid_request",
    `Invalid '${param}': a session id has 1 to ${LIMITS.sessionIdBytesMax} characters of A-Z a-z 0-9 . _ : - and is not "." or ".."`,
    { param },
  );
}

/**
 * The client's own name of a turn, from the header `Idempotency-Key`.
 * @throws {QuireError} `invalid_request` for one that is empty, longer than `LIMITS.sessionIdBytesMax` or not printable ASCII.
 */
export function readIdempotencyKey(headers: Headers): string | undefined {
  const key = headers.get("idempotency-key");
  if (key === null) return undefined;
  if (key.length <= LIMITS.sessionIdBytesMax && /^[\x21-\x7e]+$/.test(key)) return key;
  throw new QuireError(
    "invalid_request",
    `Invalid 'Idempotency-Key': expected 1 to ${LIMITS.sessionIdBytesMax} printable ASCII characters.`,
    { param: "Idempotency-Key" },
  );
}

/** A new session's name; 122 random bits. */
export function newSessionId(): string {
  return `s-${crypto.randomUUID()}`;
}
