/** A scripted engine over real HTTP; many named ones in one process, each with its own queue of scripts and record of calls. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { encodeFrame, FrameDecoder } from "../../../protocol/frames.ts";
import type { EngineUsage, GenerateRequest, SessionStatus } from "../../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../../protocol/ids.ts";
import { engineAudience, verifySignature } from "../../../protocol/signature.ts";
import type { Call, Step } from "./script.ts";

interface Engine {
  scripts: Step[][];
  calls: Call[];
  cancels: Map<string, () => void>;
  /** Scripts that hold on, first come first released. */
  holds: (() => void)[];
  /** Bodies of POST /v1/sessions/delete. */
  deletes: unknown[];
  /** What they are answered: that it is done, that it is not, or nothing. */
  deleteAnswer: "done" | "failed" | "none";
  /** Bodies of POST /v1/sessions/status. */
  statusRequests: unknown[];
  /** What POST /v1/sessions/status answers; undefined: nothing, ever. */
  status: unknown;
}

const END = 259;
const ANSWER: Step[] = [
  { do: "admit" },
  { do: "tokens", ids: [...Buffer.from("ok"), END] },
  { do: "done", reason: "stop" },
];

const STATUS: SessionStatus = { persistedTokens: 0, generation: 0, pending: false };

/** Starts the server on a free port. */
export async function startFakeEngines(): Promise<{ url: string; close: () => Promise<void> }> {
  const engines = new Map<string, Engine>();
  const server = createServer((request, response) => {
    void answer(engines, request, response).catch(() => response.destroy());
  });
  // As an engine does: a connection that is idle is the edge's to close. Closed here, it takes a call with it that is just being sent.
  server.keepAliveTimeout = 600_000;
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(engines: Map<string, Engine>, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const [, , name = "", ...rest] = (request.url ?? "").split("/");
  let engine = engines.get(name);
  if (!engine) {
    engine = {
      ...{ scripts: [], calls: [], cancels: new Map(), holds: [], deletes: [], deleteAnswer: "done" },
      ...{ statusRequests: [], status: STATUS },
    };
    engines.set(name, engine);
  }
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const body = Buffer.concat(chunks);
  const path = rest.join("/");
  if (path.startsWith("v1/") && !(await isSigned(name, `/${path}`, request, body))) {
    response.writeHead(401).end();
    return;
  }
  if (path === "script") {
    engine.scripts.push(JSON.parse(body.toString()) as Step[]);
    response.end("{}");
  } else if (path === "release") {
    const release = engine.holds.shift();
    response.writeHead(release ? 204 : 409).end();
    release?.();
  } else if (path === "calls") {
    response.end(JSON.stringify(engine.calls));
  } else if (path === "v1/cancel") {
    const [{ requestId }] = new FrameDecoder().push(body) as [{ requestId: string }];
    engine.cancels.get(requestId)?.();
    response.writeHead(204).end();
  } else if (path === "v1/sessions/delete") {
    engine.deletes.push(...new FrameDecoder().push(body));
    if (engine.deleteAnswer !== "none") response.writeHead(engine.deleteAnswer === "done" ? 204 : 500).end();
  } else if (path === "delete-answer") {
    engine.deleteAnswer = body.toString() as Engine["deleteAnswer"];
    response.end("{}");
  } else if (path === "deletes") {
    response.end(JSON.stringify(engine.deletes));
  } else if (path === "v1/sessions/status") {
    engine.statusRequests.push(...new FrameDecoder().push(body));
    if (engine.status !== undefined) response.end(JSON.stringify(engine.status));
  } else if (path === "status") {
    engine.status = (JSON.parse(body.toString()) as { status?: unknown }).status;
    response.end("{}");
  } else if (path === "status-requests") {
    response.end(JSON.stringify(engine.statusRequests));
  } else if (path === "v1/generate") {
    await generate(engine, body, request, response);
  } else {
    response.writeHead(404).end();
  }
}

/** As an engine of that name with the tests' key does it. */
async function isSigned(name: string, path: string, request: IncomingMessage, body: Buffer): Promise<boolean> {
  const target = { audience: engineAudience(name), method: request.method ?? "", path };
  const header = request.headers.authorization ?? "";
  const claims = await verifySignature("engine-key-for-tests", target, header, Date.now());
  return claims?.digest === createHash("sha256").update(body).digest("hex");
}

async function generate(
  engine: Engine,
  body: Buffer,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const [sent] = new FrameDecoder().push(body) as [GenerateRequest];
  const call: Call = {
    request: JSON.parse(JSON.stringify({ ...sent, tokens: [...bytesToIds(sent.tokens)] })) as Call["request"],
    authorization: request.headers.authorization ?? "",
    startedMs: Date.now(),
    finished: false,
  };
  engine.calls.push(call);
  const steps = engine.scripts.shift() ?? ANSWER;
  const closed = Promise.withResolvers<"closed">();
  response.on("close", () => {
    if (!call.finished) call.abortedMs = Date.now();
    closed.resolve("closed");
  });
  const cancelled = Promise.withResolvers<"cancelled">();
  engine.cancels.set(sent.requestId, () => {
    call.cancelledMs = Date.now();
    cancelled.resolve("cancelled");
  });
  const over = Promise.race([closed.promise, cancelled.promise]);
  let generatedCount = 0;
  const finish = (step: Extract<Step, { do: "done" }>) => {
    const end = call.request.tokens.length + generatedCount;
    const spans = step.spans ?? [{ end, how: "dense" }];
    const usage = { ...usageOf(call, generatedCount), ...step.usage };
    call.finished = true;
    response.end(encodeFrame({ type: "done", reason: step.reason, usage, spans }));
  };
  for (const step of steps) {
    if (response.destroyed) return;
    if (call.cancelledMs !== undefined) return finish({ do: "done", reason: "cancelled" });
    switch (step.do) {
      case "status":
        call.finished = true;
        response.writeHead(step.status, { "content-type": "text/plain" }).end("no");
        return;
      case "admit":
        response.writeHead(200, { "content-type": "application/x-quire-frames" });
        response.write(encodeFrame({ type: "admitted", engineId: "fake", numericsId: "fake-1" }));
        break;
      case "tokens":
        generatedCount += step.ids.length;
        call.tokensMs ??= Date.now();
        response.write(encodeFrame({ type: "tokens", ids: idsToBytes(step.ids), logprobs: step.logprobs }));
        break;
      case "reply": {
        const doneCount = call.request.tokens.length - (sent.replyStart ?? call.request.tokens.length);
        for (const id of step.ids.slice(doneCount)) {
          if (response.destroyed || call.cancelledMs !== undefined) break;
          generatedCount += 1;
          response.write(encodeFrame({ type: "tokens", ids: idsToBytes([id]) }));
          await Promise.race([new Promise((resolve) => setTimeout(resolve, step.gapMs)), over]);
        }
        break;
      }
      case "wait":
        await Promise.race([new Promise((resolve) => setTimeout(resolve, step.ms)), over]);
        break;
      case "hold":
        await Promise.race([new Promise<void>((resolve) => engine.holds.push(resolve)), over]);
        break;
      case "hang":
        if ((await over) === "cancelled") finish({ ...step, do: "done", reason: "cancelled" });
        return;
      case "deaf":
        await closed.promise;
        return;
      case "done":
        finish(step);
        return;
      case "fail": {
        const { code, message, param, retryAfterMs } = step;
        call.finished = true;
        if (!response.headersSent) response.setHeader("content-type", "application/x-quire-frames");
        response.end(encodeFrame({ type: "failed", code, message, param, retryAfterMs }));
        return;
      }
      case "destroy":
        call.finished = true;
        // Lets what was written reach the edge first.
        await new Promise((resolve) => setTimeout(resolve, 20));
        response.destroy();
        return;
      case "garbage":
        call.finished = true;
        response.writeHead(200, { "content-type": "application/x-quire-frames" });
        response.end(encodeFrame({ type: "surprise" }));
        return;
    }
  }
}

function usageOf(call: Call, completionTokens: number): EngineUsage {
  const promptTokens = call.request.tokens.length;
  const cachedTokens = call.request.turnStart;
  return {
    promptTokens,
    completionTokens,
    cachedTokens,
    source: { device: cachedTokens, host: 0, store: 0 },
    recomputedTokens: 0,
    bytesBeforeFirstToken: 0,
    bytesFetched: 0,
    pagesBeforeFirstToken: 0,
    pagesFetched: 0,
    policy: call.request.selection.policy as EngineUsage["policy"],
    budgetTokens: call.request.selection.budgetTokens as number,
    exact: call.request.selection.exact as boolean,
    pagesSelected: 3,
    pagesInContext: 4,
    pagesMissed: 0,
    kvBytesRead: 1,
    metadataBytesRead: 2,
    queueMs: 0,
    firstTokenMs: 1,
    totalMs: 2,
  };
}
