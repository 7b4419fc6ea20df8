/** One turn that finds no engine: the hook starts one, and what happens until its first token is told apart. */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Stage, StageEngine } from "../../cli/demo-stage.ts";
import { fetchTrace } from "../../cli/trace.ts";
import type { RequestTrace } from "../../protocol/generate.ts";

/** Where the time from the request to its first token goes, in order, milliseconds; their sum is `totalMs`. */
export interface ColdParts {
  /** From the request to the call of the hook. */
  wakeMs: number;
  /** Until the turn is queued at an engine: its process starts and loads the model, its first heartbeat, the choice, the call. */
  registerMs: number;
  /** Until the session's manifest is read. */
  manifestMs: number;
  /** Until summaries, tail and hot pages are there. */
  summariesMs: number;
  /** Until the client has the first token: the new prompt, and the pages that it selects. */
  firstTokenMs: number;
}

/** A turn with its parts. */
export interface ColdTurn extends ColdParts {
  totalMs: number;
  cachedTokens: number;
  promptTokens: number;
}

/** A hook on this machine that starts engines of a stage. */
export class WakeHook {
  url = "";
  /** When it was called last, and the engine that it started. */
  calledMs = 0;
  starting: Promise<StageEngine> | undefined;
  stage: Stage | undefined;
  readonly #server: Server;

  constructor() {
    this.#server = createServer((request, response) => {
      request.resume().once("end", () => {
        this.calledMs = performance.now();
        const { stage } = this;
        this.starting = stage?.addEngine();
        // Whoever waits for it is told.
        this.starting?.catch(() => undefined);
        response.writeHead(202).end();
      });
    });
  }

  async open(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/wake`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Asks a question in a session whose engine is gone. @returns the parts, and the engine that came. @throws {Error} when no engine or no answer comes */
export async function coldTurn(
  stage: Stage,
  hook: WakeHook,
  question: { session: string; text: string; requestId: string },
): Promise<{ turn: ColdTurn; engine: StageEngine }> {
  const sentMs = performance.now();
  const response = await fetch(`${stage.edgeUrl}/v1/chat/completions`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${stage.apiKey}`,
      "content-type": "application/json",
      "x-request-id": question.requestId,
    },
    body: JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: question.text }],
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
      quire: { session_id: question.session, selection: { policy: "quest", budget_tokens: 256, exact: true } },
    }),
  });
  let text = "";
  let firstMs: number | undefined;
  for await (const chunk of (response.body ?? new ReadableStream()).pipeThrough(new TextDecoderStream())) {
    text += chunk;
    if (firstMs === undefined && /"delta":\{"content":"[^"]/.test(text)) firstMs = performance.now();
  }
  const usage = /"usage":(\{"prompt_tokens".*)/.exec(text)?.[1];
  const engine = await hook.starting;
  if (firstMs === undefined || usage === undefined || !engine) throw new Error(`no cold turn: ${text.slice(-300)}`);
  const trace = await fetchTrace(question.requestId, { engine: engine.url, "engine-key": stage.engineKey, data: "" });
  const parts = partsOf(trace, { sentMs, calledMs: hook.calledMs, firstMs });
  const count = (name: string): number => Number(new RegExp(`"${name}":(\\d+)`).exec(usage)?.[1]);
  return {
    turn: {
      ...parts,
      totalMs: firstMs - sentMs,
      cachedTokens: count("cached_tokens"),
      promptTokens: count("prompt_tokens"),
    },
    engine,
  };
}

/** The engine tells no time of day: its first token is taken for the client's, so what lies between the two (a few milliseconds) counts as `registerMs`. */
function partsOf(trace: RequestTrace, at: { sentMs: number; calledMs: number; firstMs: number }): ColdParts {
  const time = (name: string): number => {
    const event = trace.events.find((candidate) => candidate.name === name);
    if (!event) throw new Error(`the trace has no "${name}"`);
    return event.atMs;
  };
  const [manifest, attached, first] = [time("manifest"), time("attached"), time("first token")];
  return {
    wakeMs: at.calledMs - at.sentMs,
    registerMs: at.firstMs - first - at.calledMs,
    manifestMs: manifest,
    summariesMs: attached - manifest,
    firstTokenMs: first - attached,
  };
}
