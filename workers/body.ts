/** Reads a JSON request body within limits, before anything looks at it. */
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import { jsonErrorIndex } from "./json-position.ts";

/** How much of a body is read, and for how long. */
export interface BodyLimits {
  bytesMax?: number;
  /** Between two pieces. */
  idleMsMax?: number;
  /** From the first to the last. */
  msMax?: number;
}

/**
 * The parsed JSON object of a request body.
 * @throws {QuireError} what {@link readBytes} and {@link parseJsonObject} throw.
 */
export async function readJsonObject(request: Request, limits: BodyLimits = {}): Promise<Record<string, unknown>> {
  return parseJsonObject(await readBytes(request, limits));
}

/**
 * The bytes of a request body.
 * @throws {QuireError} `request_too_large` over `bytesMax` (declared or counted), `request_timeout` for one that comes too slowly,
 * `unsupported_encoding` for one that is compressed: what it would become is not known before it has.
 */
export async function readBytes(request: Request, limits: BodyLimits = {}): Promise<Uint8Array<ArrayBuffer>> {
  const {
    bytesMax = LIMITS.requestBytesMax,
    idleMsMax = LIMITS.requestIdleMsMax,
    msMax = LIMITS.requestMsMax,
  } = limits;
  const encoding = request.headers.get("content-encoding");
  if (encoding !== null && encoding.toLowerCase() !== "identity") {
    throw new QuireError("unsupported_encoding", "A request body is taken as it is: send it without Content-Encoding.");
  }
  // A declared length is only a chance to refuse early: bodies in chunks have none, and one that lies is counted.
  const declared = Number(request.headers.get("content-length") ?? Number.NaN);
  if (declared > bytesMax) throw tooLarge(bytesMax);
  if (request.body === null) return new Uint8Array(0);
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let byteCount = 0;
  const reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>> = request.body.getReader();
  const endMs = Date.now() + msMax;
  const late = Promise.withResolvers<never>();
  const giveUp = () => late.reject(new QuireError("request_timeout", "The body of your request came too slowly."));
  let timer = setTimeout(giveUp, Math.min(idleMsMax, msMax));
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late.promise]);
      if (done) return concat(chunks, byteCount);
      byteCount += value.byteLength;
      if (byteCount > bytesMax) throw tooLarge(bytesMax);
      chunks.push(value);
      // All that was promised is there: its end is not worth another turn of the event loop.
      if (byteCount === declared) return concat(chunks, byteCount);
      clearTimeout(timer);
      timer = setTimeout(giveUp, Math.min(idleMsMax, endMs - Date.now()));
    }
  } catch (thrown) {
    // Not awaited: a client that says nothing may not answer to this, either.
    void reader.cancel().catch(() => undefined);
    throw thrown;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The JSON object that bytes hold.
 * @throws {QuireError} `invalid_request` for bytes that are not UTF-8, text that is not JSON, nesting deeper than `LIMITS.jsonDepthMax`, more
 * values than `LIMITS` allows, or a value that is not an object.
 */
export function parseJsonObject(bytes: Uint8Array): Record<string, unknown> {
  const text = decodeUtf8(bytes);
  checkShape(text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new QuireError("invalid_request", notJson(text), { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new QuireError("invalid_request", "The JSON body of your request must be an object.");
  }
  return value as Record<string, unknown>;
}

/** Says where, and quotes nothing. */
function notJson(text: string): string {
  if (text.trim() === "") return "The body of your request is empty: send a JSON object.";
  const index = jsonErrorIndex(text) ?? text.length;
  const before = text.slice(0, index).split("\n");
  const place = `line ${before.length}, column ${(before.at(-1) ?? "").length + 1}`;
  const what = index < text.length ? "it goes wrong at" : "it breaks off at";
  return `We could not parse the JSON body of your request: ${what} ${place}.`;
}

function tooLarge(bytesMax: number): QuireError {
  return new QuireError("request_too_large", `The request body is over the limit of ${bytesMax} bytes.`);
}

function concat(chunks: readonly Uint8Array<ArrayBuffer>[], byteCount: number): Uint8Array<ArrayBuffer> {
  const [first] = chunks;
  if (first && chunks.length === 1) return first;
  const bytes = new Uint8Array(byteCount);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.byteLength;
  }
  return bytes;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: false });

function decodeUtf8(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw new QuireError("invalid_request", "The body of your request is not valid UTF-8.", { cause });
  }
}

/** Counts brackets and commas outside strings: cheaper than parsing, and it runs before the parser recurses or allocates. */
function checkShape(text: string): void {
  let depth = 0;
  let containerCount = 0;
  let commaCount = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (inString) {
      if (code === 0x5c) index += 1;
      else if (code === 0x22) inString = false;
    } else if (code === 0x22) {
      inString = true;
    } else if (code === 0x2c) {
      commaCount += 1;
    } else if (code === 0x7b || code === 0x5b) {
      depth += 1;
      containerCount += 1;
      if (depth > LIMITS.jsonDepthMax) {
        throw new QuireError("invalid_request", `The JSON body is nested deeper than ${LIMITS.jsonDepthMax} levels.`);
      }
    } else if (code === 0x7d || code === 0x5d) {
      depth -= 1;
    }
  }
  if (containerCount > LIMITS.jsonContainerCountMax) {
    const message = `The JSON body has more than ${LIMITS.jsonContainerCountMax} objects and arrays.`;
    throw new QuireError("invalid_request", message);
  }
  if (commaCount + containerCount > LIMITS.jsonValueCountMax + LIMITS.jsonContainerCountMax) {
    throw new QuireError("invalid_request", `The JSON body has more than ${LIMITS.jsonValueCountMax} values.`);
  }
}
