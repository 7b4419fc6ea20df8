/** A hub on this machine that serves chosen files and, file by file, misbehaves as told. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** One request as the hub saw it. */
export interface SeenRequest {
  path: string;
  range: string | undefined;
  ifRange: string | undefined;
  authorization: string | undefined;
  status: number;
}

/** Answers in the hub's place; `body` is the file's content, `count` how often this file was asked for before. */
export type Misbehaviour = (
  request: IncomingMessage,
  response: ServerResponse,
  file: { body: Buffer; count: number },
) => void;

/** What a listing says of one file. */
export type ListedFile = Record<string, unknown>;

/** The commit of everything it serves. */
export const hubCommit = "0123456789abcdef0123456789abcdef01234567";

/** See {@link startHub}. */
export class HostileHub {
  readonly files = new Map<string, Buffer>();
  readonly misbehaviours = new Map<string, Misbehaviour>();
  readonly seen: SeenRequest[] = [];
  /** Listed beside, or instead of, what is true. */
  readonly listed = new Map<string, ListedFile>();
  /** Of the listing. */
  misbehaviour: Misbehaviour | undefined;
  commit = hubCommit;
  readonly #server: Server;

  constructor(server: Server) {
    this.#server = server;
    server.on("request", (request, response) => this.#answer(request, response));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Requests for contents, not for the listing. */
  get downloads(): SeenRequest[] {
    return this.seen.filter(({ path }) => !path.startsWith("/api/"));
  }

  requestsOf(name: string): SeenRequest[] {
    return this.downloads.filter(({ path }) => path.endsWith(`/${name}`));
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(new URL(request.url ?? "/", this.url).pathname);
    const { range, authorization } = request.headers;
    const ifRange = request.headers["if-range"] as string | undefined;
    const seen = { path, range, ifRange, authorization, status: 0 };
    const name = path.replace(/^.*\/resolve\/[^/]+\//, "").replace(/^\/cdn\//, "");
    const count = this.seen.filter((other) => other.path === path).length;
    this.seen.push(seen);
    response.on("close", () => {
      seen.status = response.statusCode;
    });
    const isListing = path.startsWith("/api/models/");
    const body = isListing ? Buffer.from(JSON.stringify(this.#listing())) : this.files.get(name);
    const misbehave = isListing ? this.misbehaviour : this.misbehaviours.get(path.startsWith("/cdn/") ? path : name);
    if (body === undefined) response.writeHead(404).end();
    else if (misbehave === undefined) serve(request, response, body);
    else misbehave(request, response, { body, count });
  }

  #listing(): unknown {
    const names = new Set([...this.files.keys(), ...this.listed.keys()]);
    const siblings = [...names].map((name) => this.listed.get(name) ?? listFile(name, this.files.get(name)!));
    return { id: "owner/name", sha: this.commit, siblings };
  }
}

/** What an honest hub says of a file: git's blob id, and SHA-256 for large ones. */
export function listFile(name: string, body: Buffer): ListedFile {
  const blobId = createHash("sha1").update(`blob ${body.length}\0`).update(body).digest("hex");
  const sha256 = createHash("sha256").update(body).digest("hex");
  const isLarge = /\.(safetensors|gguf)$/.test(name);
  return { rfilename: name, size: body.length, blobId, ...(isLarge ? { lfs: { sha256, size: body.length } } : {}) };
}

/** Ends in order, but too soon: what a client then has does not depend on timing, as it does after a cut. */
export function serveShort(response: ServerResponse, body: Buffer, bytes: number): void {
  const etag = `"${createHash("sha256").update(body).digest("hex")}"`;
  response.writeHead(200, { etag }).end(body.subarray(0, bytes));
}

/** So that the client reads what was sent before it hears of the cut. */
const cutDelayMs = 100;

/** Answers honestly, ranges too; `bytesMax` cuts the connection after so many bytes of the body. */
export function serve(
  request: IncomingMessage,
  response: ServerResponse,
  body: Buffer,
  bytesMax = Number.POSITIVE_INFINITY,
): void {
  const etag = `"${createHash("sha256").update(body).digest("hex")}"`;
  const ifRange = request.headers["if-range"];
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  const isPart = start > 0 && (ifRange === undefined || ifRange === etag);
  const rest = isPart ? body.subarray(start) : body;
  const range = isPart ? { "content-range": `bytes ${start}-${body.length - 1}/${body.length}` } : {};
  response.writeHead(isPart ? 206 : 200, { etag, "content-length": rest.length, ...range });
  if (rest.length <= bytesMax) response.end(rest);
  else response.write(rest.subarray(0, bytesMax), () => setTimeout(() => response.destroy(), cutDelayMs));
}

/** A hub on a free port of this machine. */
export async function startHub(): Promise<HostileHub> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return new HostileHub(server);
}
