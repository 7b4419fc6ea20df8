/** `quire trace ID`: what happened to one request in an engine, as a timeline. Times and counts; an engine traces no words. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { encodeFrame } from "../protocol/frames.ts";
import { ENGINE_PATHS, PROTOCOL_VERSION, type RequestTrace, type TraceRequest } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { engineAudience, signRequest } from "../protocol/signature.ts";
import type { Command } from "./command.ts";
import { describeFlags, type FlagValues, parseCommandLine, parseHttpUrl, parseText } from "./flags.ts";
import { UsageError } from "./usage-error.ts";

const traceFlags = {
  engine: {
    help: "URL of the engine that served it",
    placeholder: "URL",
    env: "QUIRE_ENGINE_URL",
    fallback: "http://127.0.0.1:8790",
    parse: parseHttpUrl,
  },
  "engine-key": {
    help: "secret shared by edge and engines; without it the one in the data folder",
    placeholder: "KEY",
    env: "QUIRE_ENGINE_KEY",
    parse: parseText,
  },
  data: {
    help: "data folder of `quire start`",
    placeholder: "FOLDER",
    env: "QUIRE_DATA",
    fallback: ".data",
    parse: parseText,
  },
} as const;

const switches = { json: "the trace as one JSON object" } as const;

const BAR_WIDTH = 24;

/** The command. */
export const traceCommand: Command = {
  help: () =>
    `Usage: quire trace ID [flags]\n\n  ID       value of the x-request-id header of a response (or an engine's request id)\n\n${describeFlags(traceFlags, switches)}\n\nAn engine remembers its latest ${LIMITS.traceCountMax} requests.\n`,
  async run(args) {
    const { values, given, operands } = parseCommandLine({ flags: traceFlags, switches }, args, process.env);
    const [id] = operands;
    if (id === undefined || operands.length > 1) throw new UsageError("trace needs one request id");
    const trace = await fetchTrace(id, values);
    process.stdout.write(
      given.has("json") ? `${JSON.stringify(trace, undefined, 2)}\n` : `${timeline(trace).join("\n")}\n`,
    );
    return 0;
  },
};

/** Asks an engine for a trace. @throws {UsageError} one line for an engine that does not answer, refuses the key, or does not remember the request. */
export async function fetchTrace(requestId: string, values: FlagValues<typeof traceFlags>): Promise<RequestTrace> {
  const url = values.engine.replace(/\/$/, "");
  const health = await ask(`${url}/healthz`, {});
  const { engine } = (await health.json()) as { engine?: unknown };
  if (!health.ok || typeof engine !== "string") throw new UsageError(`there is no engine at ${url}`);
  const request: TraceRequest = { version: PROTOCOL_VERSION, requestId };
  const body = encodeFrame(request);
  const key = values["engine-key"] ?? (await keyOf(values.data));
  const target = { audience: engineAudience(engine), method: "POST", path: ENGINE_PATHS.trace };
  const headers: Record<string, string> =
    key === undefined ? {} : { authorization: await signRequest(key, target, body, Date.now()) };
  const response = await ask(url + ENGINE_PATHS.trace, { method: "POST", body, headers });
  if (response.ok) return (await response.json()) as RequestTrace;
  await response.body?.cancel();
  if (response.status === 404) throw new UsageError(`engine ${engine} does not remember request ${requestId}`);
  if (response.status === 401)
    throw new UsageError("wrong engine key: --engine-key or QUIRE_ENGINE_KEY, or --data with secrets.json");
  throw new UsageError(`engine ${engine} answered ${response.status}`);
}

async function ask(url: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, { ...init, signal: AbortSignal.timeout(LIMITS.statusMsMax) });
  } catch (error) {
    throw new UsageError(`no engine answers at ${new URL(url).origin}: --engine or QUIRE_ENGINE_URL`, { cause: error });
  }
}

async function keyOf(dataFolder: string): Promise<string | undefined> {
  const text = await readFile(join(dataFolder, "secrets.json"), "utf8").catch(() => undefined);
  return text === undefined ? undefined : (JSON.parse(text) as { engineKey?: string }).engineKey;
}

/** Lines of a trace: when, a bar over the whole time, what, and its numbers. */
export function timeline({ requestId, events, droppedCount }: RequestTrace): string[] {
  const endMs = Math.max(...events.map(({ atMs, fields }) => atMs + (fields.ms ?? 0)), 0.001);
  const lines = events.map(({ atMs, name, fields }) => {
    const from = Math.min(BAR_WIDTH - 1, Math.floor((atMs / endMs) * BAR_WIDTH));
    const length = Math.max(1, Math.round(((fields.ms ?? 0) / endMs) * BAR_WIDTH));
    const bar = `${" ".repeat(from)}${"=".repeat(Math.min(length, BAR_WIDTH - from))}`.padEnd(BAR_WIDTH);
    const numbers = Object.entries(fields).map(([field, value]) => `${field} ${shown(field, value)}`);
    return `${atMs.toFixed(1).padStart(10)} ms |${bar}| ${name.padEnd(14)} ${numbers.join("  ")}`.trimEnd();
  });
  const dropped = droppedCount === 0 ? [] : [`(${droppedCount} later events are not kept)`];
  return [`request ${requestId}`, ...lines, ...dropped];
}

function shown(field: string, value: number): string {
  return /ms$|Ms/.test(field) ? value.toFixed(1) : String(value);
}
