/**
 * Page store over the S3 API: R2, AWS, MinIO, and the local R2 of wrangler dev. Needs conditional writes (If-Match and
 * If-None-Match on PUT), which all of these have.
 */
import { createHash, randomUUID } from "node:crypto";
import { LIMITS } from "../protocol/limits.ts";
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "./contract.ts";
import { assertKey, assertPrefix, assertRange, isStoreKey } from "./key-rules.ts";
import { errorCodeOf, S3Client, type S3ClientOptions, type S3Response, xmlText } from "./s3-client.ts";

const LIST_KEYS_MAX = 1000;
const DELETE_KEYS_MAX = 1000;
/** Names one put, so that a retried one can tell its own earlier success from somebody else's. */
const WRITE_HEADER = "x-amz-meta-quire-write";

/** Where the bucket is and who asks; limits are by default those of `LIMITS`. */
export interface S3StoreOptions {
  endpoint: string;
  bucket: string;
  /** `auto` for R2. */
  region: string;
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string | undefined;
  getMsMax?: number;
  putMsMax?: number;
  concurrency?: number;
  /** Keys of one page of a list, at most (and by default) 1,000. */
  listKeysMax?: number;
  /** For tests; the platform's by default. */
  fetch?: S3ClientOptions["fetch"];
  random?: () => number;
}

/** A store over one bucket. */
export class S3Store implements PageStore {
  readonly name = "s3";
  readonly #client: S3Client;
  readonly #getMsMax: number;
  readonly #putMsMax: number;
  readonly #listKeysMax: number;

  constructor(options: S3StoreOptions) {
    this.#client = new S3Client({
      ...options,
      concurrency: options.concurrency ?? LIMITS.storeConcurrency,
      fetch: options.fetch ?? ((request, init) => fetch(request, init)),
      random: options.random ?? Math.random,
    });
    this.#getMsMax = options.getMsMax ?? LIMITS.storeGetMsMax;
    this.#putMsMax = options.putMsMax ?? LIMITS.storePutMsMax;
    this.#listKeysMax = Math.min(options.listKeysMax ?? LIST_KEYS_MAX, LIST_KEYS_MAX);
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    assertKey(key);
    assertRange(options.range);
    const { range, signal } = options;
    const headers: Record<string, string> =
      range === undefined ? {} : { range: `bytes=${range.offset}-${range.offset + range.bytes - 1}` };
    const response = await this.#client.send({ method: "GET", key, headers, deadlineMs: this.#getMsMax, signal });
    if (response.status === 404) return undefined;
    if (response.status === 416) throw beyondObject(key);
    const etag = etagOf(response, key);
    if (range === undefined) return { bytes: response.body, etag, objectBytes: response.body.byteLength };
    return { ...takeRange(response, range, key), etag };
  }

  /**
   * As the contract says. A put that met a changed object looks whether the object is its own: if so it was stored after all, by an
   * earlier try or by something on the way that delivered it twice. (If somebody has replaced it by then, the answer is `conflict`.)
   */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    assertKey(key);
    const { condition, signal } = options;
    const write = randomUUID();
    const headers: Record<string, string> = { "content-type": "application/octet-stream", [WRITE_HEADER]: write };
    if (condition === "absent") headers["if-none-match"] = "*";
    else if (condition !== undefined) headers["if-match"] = condition.etag;
    const response = await this.#client.send({
      method: "PUT",
      key,
      headers,
      body: bytes,
      deadlineMs: this.#putMsMax,
      signal,
    });
    if (response.status < 300) return { outcome: "stored", etag: etagOf(response, key) };
    // AWS answers 404 to If-Match where there is no object.
    if (condition === undefined || response.status === 416) {
      throw new StoreError("unavailable", `s3 store: PUT ${key} was answered with ${response.status}`);
    }
    return await this.#whoseObject(key, write, signal);
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) assertKey(key);
    for (let from = 0; from < keys.length; from += DELETE_KEYS_MAX) {
      await this.#deleteSome(keys.slice(from, from + DELETE_KEYS_MAX));
    }
  }

  async list(prefix: string, options: { cursor?: string; signal?: AbortSignal | undefined } = {}): Promise<ListPage> {
    assertPrefix(prefix);
    const query: Record<string, string> = { "list-type": "2", prefix, "max-keys": String(this.#listKeysMax) };
    if (options.cursor !== undefined) query["continuation-token"] = options.cursor;
    const { signal } = options;
    const response = await this.#client.send({ method: "GET", key: "", query, deadlineMs: this.#getMsMax, signal });
    const xml = new TextDecoder().decode(response.body);
    const entries = [...xml.matchAll(/<Contents>(.*?)<\/Contents>/gs)].map(([, entry = ""]) => listEntry(entry));
    const isTruncated = xmlText(xml, "IsTruncated") === "true";
    const cursor = isTruncated ? xmlText(xml, "NextContinuationToken") : undefined;
    // Whoever lists takes what is not in it for absent, and may delete what absent manifests named.
    const isWhole = xml.trimEnd().endsWith("</ListBucketResult>") && isTruncated === (cursor !== undefined);
    if (response.status !== 200 || !isWhole || !entries.every(isClear)) {
      throw new StoreError("unavailable", `s3 store: list was answered with ${response.status}, and not whole`);
    }
    // Objects that others put into the bucket under keys that are none of ours are not seen.
    const keys = entries.filter(({ key }) => isStoreKey(key));
    return cursor === undefined ? { keys } : { keys, cursor };
  }

  async close(): Promise<void> {}

  async #whoseObject(key: string, write: string, signal: AbortSignal | undefined): Promise<PutResult> {
    const response = await this.#client.send({ method: "HEAD", key, deadlineMs: this.#getMsMax, signal });
    const own = response.status === 200 && response.headers.get(WRITE_HEADER) === write;
    return own ? { outcome: "stored", etag: etagOf(response, key) } : { outcome: "conflict" };
  }

  async #deleteSome(keys: readonly string[]): Promise<void> {
    const objects = keys.map((key) => `<Object><Key>${key}</Key></Object>`).join("");
    const body = Buffer.from(`<Delete><Quiet>true</Quiet>${objects}</Delete>`, "utf8");
    const response = await this.#client.send({
      method: "POST",
      key: "",
      query: { delete: "" },
      headers: { "content-type": "application/xml", "content-md5": createHash("md5").update(body).digest("base64") },
      body,
      deadlineMs: this.#putMsMax,
    });
    const xml = new TextDecoder().decode(response.body);
    // A page of something on the way has no errors either.
    if (response.status !== 200 || (xml.trim() !== "" && !xml.includes("<DeleteResult"))) {
      throw new StoreError("unavailable", `s3 store: delete was answered with ${response.status}`);
    }
    const failure = /<Error>.*?<\/Error>/s.exec(xml)?.[0];
    if (failure !== undefined) {
      const code = errorCodeOf({ body: Buffer.from(failure) });
      throw new StoreError(code === "AccessDenied" ? "denied" : "unavailable", `s3 store: delete failed: ${code}`);
    }
  }
}

function etagOf(response: S3Response, key: string): string {
  const etag = response.headers.get("etag");
  if (etag === null) throw new StoreError("unavailable", `s3 store: ${key} was answered without an etag`);
  return etag;
}

/** A server may answer a range with the range, with less where the object ends, or with the whole object. */
function takeRange(
  response: S3Response,
  range: { offset: number; bytes: number },
  key: string,
): { bytes: Uint8Array<ArrayBuffer>; objectBytes: number } {
  const { body, status } = response;
  if (status === 200) {
    const bytes = body.slice(range.offset, range.offset + range.bytes);
    if (bytes.byteLength === range.bytes) return { bytes, objectBytes: body.byteLength };
  }
  if (status === 206) {
    const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(response.headers.get("content-range") ?? "");
    const inPlace = match !== null && Number(match[1]) === range.offset && body.byteLength === range.bytes;
    if (inPlace) return { bytes: body, objectBytes: Number(match[3]) };
  }
  throw beyondObject(key);
}

function beyondObject(key: string): StoreError {
  return new StoreError("corrupt", `s3 store: range goes beyond the object: ${key}`);
}

function listEntry(entry: string): ListPage["keys"][number] {
  return {
    key: xmlText(entry, "Key") ?? "",
    bytes: Number(xmlText(entry, "Size")),
    modifiedMs: Date.parse(xmlText(entry, "LastModified") ?? ""),
  };
}

/** Whether an entry says how many bytes, and of when: quotas and ages are judged by them. */
function isClear({ bytes, modifiedMs }: ListPage["keys"][number]): boolean {
  return Number.isSafeInteger(bytes) && Number.isFinite(modifiedMs);
}
