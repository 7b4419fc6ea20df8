/** Lets requests of the edge in: a valid signature before the body is read, and the signed body before it is parsed. */
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { QuireError } from "../../protocol/errors.ts";
import { FrameDecoder } from "../../protocol/frames.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { engineAudience, equalInConstantTime, ReplayGuard, verifySignature } from "../../protocol/signature.ts";

/** Bytes in front of a frame that hold its length. */
const PREFIX_BYTES = 4;

/** Who stands behind the door, and what time it is there. */
export interface SignedDoorOptions {
  /** Secret shared with the edge; undefined lets everybody in. */
  key: string | undefined;
  engineId: string;
  nowMs: () => number;
}

/** One per engine: it remembers which signatures were used. */
export class SignedDoor {
  readonly #options: SignedDoorOptions;
  readonly #replays = new ReplayGuard();

  constructor(options: SignedDoorOptions) {
    this.#options = options;
  }

  /**
   * Looks at the headers of a request.
   * @returns the digest (SHA-256, lower-case hex) that its body must have, undefined when nobody signs here, or "refused"
   */
  async admit(request: IncomingMessage, path: string): Promise<string | undefined | "refused"> {
    const { key, engineId, nowMs } = this.#options;
    if (key === undefined) return undefined;
    const target = { audience: engineAudience(engineId), method: request.method ?? "", path };
    const now = nowMs();
    const claims = await verifySignature(key, target, request.headers.authorization ?? "", now);
    if (!claims || !this.#replays.admit(claims, now)) return "refused";
    return claims.digest;
  }
}

/**
 * The one frame of a request's body, read to its end and compared with the signed digest before it is decoded.
 * @returns "refused" for another body than the signed one
 * @throws {QuireError} `request_too_large`, `unsupported_encoding`, `invalid_request` for a body that is not one frame, and `cancelled` when the client
 * left in the middle of it
 */
export async function readFrame(request: IncomingMessage, digest: string | undefined): Promise<unknown> {
  const encoding = request.headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity") {
    throw new QuireError("unsupported_encoding", "Bodies are taken as they are: no Content-Encoding.");
  }
  const body = await readBody(request);
  if (digest !== undefined) {
    const found = createHash("sha256").update(body).digest("hex");
    if (!equalInConstantTime(Buffer.from(found), Buffer.from(digest))) return "refused";
  }
  const decoder = new FrameDecoder();
  const values = decoder.push(body);
  if (values.length !== 1 || !decoder.atBoundary) {
    throw new QuireError("invalid_request", "The body is not one whole frame.");
  }
  return values[0];
}

async function readBody(request: IncomingMessage): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let byteCount = 0;
  try {
    // Left open after an early end: the answer still has to go out on this connection.
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      byteCount += (chunk as Uint8Array).byteLength;
      if (byteCount > LIMITS.frameBytesMax + PREFIX_BYTES) {
        throw new QuireError("request_too_large", `The body is over the limit of ${LIMITS.frameBytesMax} bytes.`);
      }
      chunks.push(chunk as Uint8Array);
    }
  } catch (cause) {
    if (cause instanceof QuireError || !request.destroyed) throw cause;
    throw new QuireError("cancelled", "The client left before its request was whole.", { cause });
  }
  return Buffer.concat(chunks, byteCount);
}
