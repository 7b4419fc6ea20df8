/** Keys in the key ring of a running edge, through its `/v1/keys`. */
import { fetchFailure } from "../../protocol/fetch-failure.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { type KeyRecord, keyRecordJson, readKeyRecord } from "../../workers/auth/key-record.ts";
import { UsageError } from "../usage-error.ts";
import type { KeyStore } from "./key-store.ts";

const answerMsMax = 10_000;

/** An edge and who is asking. */
export interface EdgeKeysOptions {
  url: string;
  /** A key with the scope `keys`. */
  operatorKey: string;
  fetch: typeof fetch;
}

/** The keys of an edge's key ring. */
export function edgeKeys(options: EdgeKeysOptions): KeyStore {
  const call = (method: string, path: string, body?: unknown) => callEdge(options, method, path, body);
  return {
    async add(hash, record) {
      const { id: _, created_s: __, ...fields } = keyRecordJson({ ...record, id: "", createdS: 0 });
      return recordOf(await call("POST", "/v1/keys", { hash, ...fields }));
    },
    async list(tenant) {
      const records: KeyRecord[] = [];
      for (;;) {
        const query = new URLSearchParams();
        if (tenant !== undefined) query.set("tenant", tenant);
        const last = records.at(-1)?.id;
        if (last !== undefined) query.set("after", last);
        const page = (await call("GET", `/v1/keys?${query}`)) as { data: unknown[]; has_more: boolean };
        records.push(...page.data.map(recordOf));
        if (!page.has_more || page.data.length === 0 || records.length >= LIMITS.keyRingCountMax) return records;
      }
    },
    get: async (id) => recordOf(await call("GET", `/v1/keys/${id}`)),
    expire: async (id, expiresS) => recordOf(await call("POST", `/v1/keys/${id}/expire`, { expires_s: expiresS })),
    async revoke(id) {
      await call("DELETE", `/v1/keys/${id}`);
    },
  };
}

/** The edge does not tell hashes, so a record's id is what it says. */
function recordOf(body: unknown): KeyRecord {
  const { object: _, id, ...record } = body as Record<string, unknown>;
  return { ...readKeyRecord("", record), id: String(id) };
}

async function callEdge(options: EdgeKeysOptions, method: string, path: string, body: unknown): Promise<unknown> {
  let response: Response;
  let answer: unknown;
  try {
    response = await options.fetch(options.url + path, {
      method,
      headers: { authorization: `Bearer ${options.operatorKey}`, "content-type": "application/json" },
      body: body === undefined ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(answerMsMax),
    });
    answer = await response.json();
  } catch (error) {
    throw new UsageError(
      `the edge at ${options.url} cannot be asked (${fetchFailure(error)}); without one, use --file`,
    );
  }
  if (response.ok) return answer;
  const { message } = (answer as { error?: { message?: string } } | null)?.error ?? {};
  throw new UsageError(`the edge at ${options.url} answered ${response.status}: ${message ?? "nothing"}`);
}
