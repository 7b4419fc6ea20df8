/** Names of requests, in answers and logs. */

/** The header that carries a request's name, in requests and in answers. */
export const REQUEST_ID_HEADER = "x-request-id";

/** The caller's own id, for its logs and ours, or a new one; an id that is not well-formed is as good as none. It need not be unique. */
export function requestIdOf(headers: Headers): string {
  const id = headers.get(REQUEST_ID_HEADER);
  return id !== null && /^[A-Za-z0-9._:-]{1,64}$/.test(id) ? id : `req_${crypto.randomUUID()}`;
}
