/** Reads a JSON request body within limits, before anything looks at it. */
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";

/** How much of a body is read. */
export interface BodyLimits {
  bytesMax?: number;
}

/**
 * The parsed JSON object of a request body.
 * @throws {QuireError} `request_too_large` over `bytesMax` (declared or counted), `invalid_request` for bytes that are not UTF-8,
 * text that is not JSON, nesting deeper than `LIMITS.jsonDepthMax`, or a value that is not an object.
 */
export async function readJsonObject(
  request: Request,
  { bytesMax = LIMITS.requestBytesMax }: BodyLimits = {},
): Promise<Record<string, unknown>> {
  return parseJsonObject(await readBytes(request, { bytesMax }));
}

/**
 * The JSON object that bytes hold.
 * @throws {QuireError} `invalid_request`, see {@link readJsonObject}.
 */
export function parseJsonObject(bytes: Uint8Array): Record<string, unknown> {
  const text = decodeUtf8(bytes);
  checkDepth(text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new QuireError("invalid_request", "We could not parse the JSON body of your request.", { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new QuireError("invalid_request", "The JSON body of your request must be an object.");
  }
  return value as Record<string, unknown>;
}

/** The bytes of a request body. @throws {QuireError} `request_too_large`. */
export async function readBytes(
  request: Request,
  { bytesMax = LIMITS.requestBytesMax }: BodyLimits = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const tooLarge = () =>
    new QuireError("request_too_large", `The request body is over the limit of ${bytesMax} bytes.`);
  // A declared length is only a chance to refuse early: bodies in chunks have none, and one that lies is counted.
  if (Number(request.headers.get("content-length") ?? 0) > bytesMax) throw tooLarge();
  if (request.body === null) return new Uint8Array(0);
  const chunks: Uint8Array[] = [];
  let byteCount = 0;
  const reader: ReadableStreamDefaultReader<Uint8Array> = request.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    byteCount += value.byteLength;
    if (byteCount > bytesMax) {
      await reader.cancel();
      throw tooLarge();
    }
    chunks.push(value);
  }
  const bytes = new Uint8Array(byteCount);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.byteLength;
  }
  return bytes;
}

function decodeUtf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: false }).decode(bytes);
  } catch (cause) {
    throw new QuireError("invalid_request", "The body of your request is not valid UTF-8.", { cause });
  }
}

/** Counts brackets outside strings: cheaper than parsing, and it runs before the parser recurses. */
function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (inString) {
      if (code === 0x5c) index += 1;
      else if (code === 0x22) inString = false;
    } else if (code === 0x22) {
      inString = true;
    } else if (code === 0x7b || code === 0x5b) {
      depth += 1;
      if (depth > LIMITS.jsonDepthMax) {
        throw new QuireError("invalid_request", `The JSON body is nested deeper than ${LIMITS.jsonDepthMax} levels.`);
      }
    } else if (code === 0x7d || code === 0x5d) {
      depth -= 1;
    }
  }
}
