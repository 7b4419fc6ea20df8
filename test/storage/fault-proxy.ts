/**
 * An HTTP proxy in front of an S3 API that goes wrong as networks, gateways and stores do, from a seed: what is between the S3 driver and a real
 * store in the tests. A request meets at most one fault.
 */
import { once } from "node:events";
import {
  type ClientRequest,
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request as requestOf,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import { seededRandom } from "./random.ts";

/** What happens to a request, or to its answer. */
export const PROXY_FAULTS = {
  delayed: "any request waits before it is passed on",
  dropped: "the connection ends before the request is passed on",
  error500: "answered 500, not passed on",
  error503: "answered 503, not passed on",
  slowDown: "answered 503 with a code and Retry-After, not passed on",
  page: "answered with a page that has an etag, 200 or 404, not passed on",
  cutAnswer: "the answer's body ends early, and the connection with it",
  shortAnswer: "the body of a read is shorter, and its length says so",
  wrongRange: "a ranged read is answered with as many bytes from another place, and says it were the right one",
  bitFlip: "one bit of a read is another",
  duplicated: "a write is carried out twice; the second answer is given",
  lostAnswer: "a write is carried out, and the connection ends without an answer",
} as const;

/** A key of {@link PROXY_FAULTS}. */
export type ProxyFault = keyof typeof PROXY_FAULTS;

const READ_FAULTS: ReadonlySet<ProxyFault> = new Set(["shortAnswer", "wrongRange", "bitFlip"]);
const WRITE_FAULTS: ReadonlySet<ProxyFault> = new Set(["duplicated", "lostAnswer"]);
const DELAY_MS_MAX = 20;

/** A running proxy. */
export interface FaultProxy {
  /** Where it listens, in place of the endpoint behind it. */
  endpoint: string;
  /** How often each fault has happened. */
  readonly counts: Record<ProxyFault, number>;
  requestCount: number;
  /** How often each fault happens to a request that it can happen to; may be changed while it runs. */
  rates: Partial<Record<ProxyFault, number>>;
  close(): Promise<void>;
}

/** What was sent, or came back, read whole. */
interface Message {
  headers: IncomingHttpHeaders;
  body: Buffer;
}

/** Starts one in front of an endpoint (`http://HOST:PORT/PATH`). */
export async function startFaultProxy(
  endpoint: string,
  { seed, rates }: { seed: number; rates: FaultProxy["rates"] },
): Promise<FaultProxy> {
  const behind = new URL(endpoint);
  const random = seededRandom(seed);
  const counts = Object.fromEntries(Object.keys(PROXY_FAULTS).map((fault) => [fault, 0])) as FaultProxy["counts"];
  const server = createServer((incoming, outgoing) => {
    proxy.requestCount += 1;
    const fault = chooseFault(incoming, proxy.rates, random);
    if (fault !== undefined) counts[fault] += 1;
    new Exchange({ incoming, outgoing, behind, random }).run(fault).catch(() => outgoing.destroy());
  });
  const proxy: FaultProxy = {
    endpoint: "",
    counts,
    requestCount: 0,
    rates,
    close: () => closeServer(server),
  };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  proxy.endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}${behind.pathname}`;
  return proxy;
}

/** One number is drawn a request, whatever the rates are. */
function chooseFault(
  { method, headers, url }: IncomingMessage,
  rates: FaultProxy["rates"],
  random: () => number,
): ProxyFault | undefined {
  const isRead = method === "GET" && !url?.includes("list-type=");
  let left = random();
  for (const fault of Object.keys(PROXY_FAULTS) as ProxyFault[]) {
    if (READ_FAULTS.has(fault) && !isRead) continue;
    if (WRITE_FAULTS.has(fault) && method !== "PUT") continue;
    if (fault === "wrongRange" && headers.range === undefined) continue;
    left -= rates[fault] ?? 0;
    if (left < 0) return fault;
  }
  return undefined;
}

/** A request and its answer. */
class Exchange {
  readonly #incoming: IncomingMessage;
  readonly #outgoing: ServerResponse;
  readonly #behind: URL;
  readonly #random: () => number;

  constructor(of: { incoming: IncomingMessage; outgoing: ServerResponse; behind: URL; random: () => number }) {
    this.#incoming = of.incoming;
    this.#outgoing = of.outgoing;
    this.#behind = of.behind;
    this.#random = of.random;
  }

  async run(fault: ProxyFault | undefined): Promise<void> {
    const sent = { headers: this.#incoming.headers, body: await bodyOf(this.#incoming) };
    if (fault === "delayed") await new Promise((resolve) => setTimeout(resolve, this.#random() * DELAY_MS_MAX));
    if (fault === "dropped") this.#outgoing.destroy();
    else if (fault === "error500") this.#outgoing.writeHead(500).end();
    else if (fault === "error503") this.#outgoing.writeHead(503).end();
    else if (fault === "slowDown") {
      this.#outgoing.writeHead(503, { "retry-after": "1", "content-type": "application/xml" });
      this.#outgoing.end("<Error><Code>SlowDown</Code></Error>");
    } else if (fault === "page") {
      const headers = { "content-type": "text/html", etag: '"page"' };
      this.#outgoing.writeHead(this.#random() < 0.5 ? 200 : 404, headers).end("<!DOCTYPE html><title>Moved</title>");
    } else await this.#passOn(sent, fault);
  }

  async #passOn(sent: Message, fault: ProxyFault | undefined): Promise<void> {
    if (fault === "duplicated") await this.#ask(sent);
    const answer = await this.#ask(fault === "wrongRange" ? elsewhere(sent) : sent);
    if (fault === "lostAnswer") {
      this.#outgoing.destroy();
      return;
    }
    const { status, headers } = answer;
    const body = this.#changed(answer.body, status, fault);
    const told = { ...headers };
    delete told["transfer-encoding"];
    if (this.#incoming.method !== "HEAD") told["content-length"] = String(body.byteLength);
    if (fault === "wrongRange" && told["content-range"] !== undefined) {
      const total = told["content-range"].split("/")[1];
      told["content-range"] = `${this.#incoming.headers.range?.replace("=", " ")}/${total}`;
    }
    this.#outgoing.writeHead(status, told);
    if (fault !== "cutAnswer" || body.byteLength === 0) {
      this.#outgoing.end(body);
      return;
    }
    this.#outgoing.write(body.subarray(0, Math.floor(this.#random() * body.byteLength)), () =>
      this.#outgoing.destroy(),
    );
  }

  #changed(body: Buffer, status: number, fault: ProxyFault | undefined): Buffer {
    if (status >= 300 || body.byteLength === 0) return body;
    if (fault === "shortAnswer") return body.subarray(0, Math.floor(this.#random() * body.byteLength));
    if (fault !== "bitFlip") return body;
    const flipped = Buffer.from(body);
    const bit = Math.floor(this.#random() * body.byteLength * 8);
    flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
    return flipped;
  }

  async #ask({ headers, body }: Message): Promise<Message & { status: number }> {
    const { hostname, port } = this.#behind;
    const { method, url } = this.#incoming;
    const asking: ClientRequest = requestOf({ hostname, port, method, path: url, headers, agent: false });
    asking.end(body);
    const [answer] = (await once(asking, "response")) as [IncomingMessage];
    return { status: answer.statusCode ?? 500, headers: answer.headers, body: await bodyOf(answer) };
  }
}

/** The same range of bytes, moved by half its length (towards the beginning where it can be). */
function elsewhere({ headers, body }: Message): Message {
  const [, from = "0", to = "0"] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "") ?? [];
  const length = Number(to) - Number(from) + 1;
  const offset = Number(from) >= length / 2 ? -Math.ceil(length / 2) : Math.ceil(length / 2);
  return { headers: { ...headers, range: `bytes=${Number(from) + offset}-${Number(to) + offset}` }, body };
}

async function bodyOf(message: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

async function closeServer(server: Server): Promise<void> {
  const closed = once(server, "close");
  server.close();
  server.closeAllConnections();
  await closed;
}
