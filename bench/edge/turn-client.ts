/** A client that does nothing but note when tokens come: over one connection, one turn at a time. */
import { Agent, request } from "node:http";

/** When the parts of one turn came; milliseconds since 1970. */
export interface TurnTimes {
  sentMs: number;
  tokenMs: number[];
}

/** A turn to send, and what shows a token in its answer. */
export interface TurnOptions {
  agent: Agent;
  headers: Record<string, string>;
  body: Uint8Array;
  mark: Buffer;
  tokenCount: number;
}

/** Sends a turn and notes each time at which `mark` comes in its answer. @throws {Error} for a status that is not 200, or another count of marks. */
export function timeTurn(url: string, options: TurnOptions): Promise<TurnTimes> {
  const { agent, body, mark, tokenCount } = options;
  const headers = { ...options.headers, "content-length": body.byteLength };
  const times: TurnTimes = { sentMs: now(), tokenMs: [] };
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: "POST", agent, headers }, (answer) => {
      // A mark may be cut by the border of two chunks.
      let rest: Buffer = Buffer.alloc(0);
      answer.on("data", (chunk: Buffer) => {
        const atMs = now();
        const bytes = Buffer.concat([rest, chunk]);
        let from = 0;
        for (let at = bytes.indexOf(mark); at >= 0; at = bytes.indexOf(mark, from)) {
          times.tokenMs.push(atMs);
          from = at + mark.length;
        }
        rest = bytes.subarray(Math.max(from, bytes.length - mark.length + 1));
      });
      answer.once("error", reject);
      answer.once("end", () => {
        if (answer.statusCode === 200 && times.tokenMs.length === tokenCount) resolve(times);
        else reject(new Error(`${url} answered ${answer.statusCode} with ${times.tokenMs.length} tokens: ${rest}`));
      });
    });
    sent.once("error", reject).end(body);
  });
}

/** One connection that is kept. */
export function openConnection(): Agent {
  return new Agent({ keepAlive: true, maxSockets: 1 });
}

function now(): number {
  return performance.timeOrigin + performance.now();
}
