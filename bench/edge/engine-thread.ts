/** An engine that costs nothing, in a thread of its own: it admits at once, sends tokens at fixed times (the first one at once, too, unless told otherwise), and notes when it sent each. */
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { encodeFrame } from "../../protocol/frames.ts";
import type { EngineEvent } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";

/** What the thread is told. */
export interface EngineThreadData {
  tokenCount: number;
  gapMs: number;
  /** From the admission to the first token. */
  firstMs: number;
  /** Of the token; its text must be known to the reader. */
  tokenId: number;
  /** Float64, one per token of the generation that runs: when it was sent, milliseconds since 1970. */
  sentMs: SharedArrayBuffer;
}

const { tokenCount, gapMs, firstMs, tokenId, sentMs } = workerData as EngineThreadData;
const stamps = new Float64Array(sentMs);

const send = (response: ServerResponse, event: EngineEvent): void => {
  response.write(encodeFrame(event));
};

async function generate(response: ServerResponse): Promise<void> {
  response.writeHead(200, { "content-type": "application/x-quire-frames" });
  send(response, { type: "admitted", engineId: "bench", numericsId: "bench-1" });
  if (firstMs > 0) await sleep(firstMs);
  for (let index = 0; index < tokenCount; index++) {
    stamps[index] = performance.timeOrigin + performance.now();
    send(response, { type: "tokens", ids: idsToBytes([tokenId]) });
    await sleep(gapMs);
  }
  const usage = {
    ...{ promptTokens: 1, completionTokens: tokenCount, cachedTokens: 0, source: { device: 0, host: 0, store: 0 } },
    ...{ recomputedTokens: 0, bytesBeforeFirstToken: 0, bytesFetched: 0, pagesBeforeFirstToken: 0, pagesFetched: 0 },
    ...{ policy: "dense" as const, budgetTokens: 0, exact: true, pagesSelected: 0, pagesInContext: 0, pagesMissed: 0 },
    ...{ kvBytesRead: 0, metadataBytesRead: 0, queueMs: 0, firstTokenMs: 0, totalMs: 0 },
  };
  response.end(encodeFrame({ type: "done", reason: "length", usage, spans: [] } satisfies EngineEvent));
}

const server = createServer((request, response) => {
  request.resume().once("end", () => {
    if (request.url?.endsWith("/v1/generate")) void generate(response);
    else response.writeHead(204).end();
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => parentPort?.postMessage((server.address() as AddressInfo).port));
