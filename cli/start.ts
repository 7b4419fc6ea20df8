/** `quire start`: edge and engine on this machine, up together and down together. */
import { openStore } from "../storage/open.ts";
import type { Child } from "./child-process.ts";
import type { Command } from "./command.ts";
import { type DataFolder, openDataFolder } from "./data-folder.ts";
import { bucketName, startEdge } from "./edge-process.ts";
import { type EngineFlagName, engineFlags } from "./engine-flags.ts";
import { startEngine, storeEnvironment } from "./engine-process.ts";
import { describeFlags, type FlagValues, parseFlags } from "./flags.ts";
import { uploadModelAssets } from "./model-assets.ts";
import { type ModelFolder, openModelFolder } from "./model-folder.ts";
import { findPort } from "./ports.ts";
import { readyBlock } from "./ready-block.ts";
import { startFlags } from "./start-flags.ts";
import { listenForStop, type StopRequest } from "./stop-request.ts";
import { endedUnexpectedly, waitUntil } from "./wait-until.ts";

type StartValues = FlagValues<typeof startFlags>;

const edgeUpMsMax = 60_000;
const engineUpMsMax = 120_000;
/** The engine ends its turns and persists them; then it is killed. */
const engineGraceMs = 30_000;
const edgeGraceMs = 10_000;

/** The command. */
export const startCommand: Command = {
  help: () => `Usage: quire start [flags]\n\n${describeFlags(startFlags)}\n`,
  run: (args) => runStart(parseFlags(startFlags, args, process.env)),
};

async function runStart(values: StartValues): Promise<number> {
  const model = await openModelFolder(values.model);
  const ports = await choosePorts(values);
  const data = await openDataFolder(values.data);
  const stop = listenForStop(process, () => performance.now());
  const life = new AbortController();
  void stop.requested.then((why) => {
    say(`${why}: stopping, the engine persists what it holds (once more: at once)`);
    life.abort();
  });
  const children: Child[] = [];
  try {
    await bringUp({ values, model, ports, data, children, signal: life.signal });
    const ended = await Promise.race([stop.requested, ...children.map((child) => child.ended.then(() => child))]);
    if (typeof ended !== "string") throw endedUnexpectedly(ended);
    return 0;
  } catch (error) {
    if (life.signal.aborted) return 0;
    throw error;
  } finally {
    await bringDown(children, stop);
    await data.release();
  }
}

interface Ports {
  edge: number;
  engine: number;
  inspector: number;
}

async function choosePorts(values: StartValues): Promise<Ports> {
  const local = "127.0.0.1";
  const edge = await findPort({ host: values.host, port: values.port, flag: "--port" });
  const engine = await findPort({ host: local, port: values["engine-port"], flag: "--engine-port" });
  const inspector = await findPort({ host: local, port: 0, flag: "--port" });
  return { edge, engine, inspector };
}

interface BringUpOptions {
  values: StartValues;
  model: ModelFolder;
  ports: Ports;
  data: DataFolder;
  /** Gets each child as soon as it runs. */
  children: Child[];
  signal: AbortSignal;
}

/** Edge, model assets, engine, registration: each waits for the one before. */
async function bringUp({ values, model, ports, data, children, signal }: BringUpOptions): Promise<void> {
  const { secrets } = data;
  const edgeUrl = `http://${reachableHost(values.host)}:${ports.edge}`;
  const warn = (name: string) => (line: string) => void process.stderr.write(`[${name}] ${line}\n`);
  say("starting the edge");
  const edge = await startEdge({
    data,
    host: values.host,
    port: ports.edge,
    inspectorPort: ports.inspector,
    selection: {
      policy: values.policy,
      budgetTokens: values.budget,
      exact: values.exact === undefined ? undefined : values.exact === "true",
    },
    onWarning: warn("edge"),
  });
  children.push(edge);
  const isEdgeUp = async () => (await fetch(`${edgeUrl}/healthz`, { signal })).ok;
  await waitUntil(isEdgeUp, { what: "the edge to answer", children, timeoutMs: edgeUpMsMax, signal });

  const endpoint = `${edgeUrl}/cdn-cgi/local/r2/s3`;
  const storeAddress = `s3://${bucketName}?endpoint=${encodeURIComponent(endpoint)}`;
  const store = await openStore(storeAddress, storeEnvironment(secrets));
  await uploadModelAssets(store, model, signal);
  await store.close();

  say("starting the engine");
  const logPath = data.at("logs", "engine.log");
  const flags = engineArguments(values);
  const engineOptions = { port: ports.engine, edgeUrl, storeAddress, secrets, flags, logPath };
  children.push(startEngine({ ...engineOptions, onWarning: warn("engine") }));
  const isServed = () => listsModel({ edgeUrl, apiKey: secrets.apiKey, modelId: model.modelId, signal });
  await waitUntil(isServed, { what: "the engine to register", children, timeoutMs: engineUpMsMax, signal });

  const engineUrl = `http://127.0.0.1:${ports.engine}`;
  const facts = { url: edgeUrl, apiKey: secrets.apiKey, modelId: model.modelId, engineUrl, dataPath: data.path };
  process.stdout.write(`${readyBlock({ ...facts, device: values.device })}\n`);
}

interface ListOptions {
  edgeUrl: string;
  apiKey: string;
  modelId: string;
  signal: AbortSignal;
}

async function listsModel({ edgeUrl, apiKey, modelId, signal }: ListOptions): Promise<boolean> {
  const response = await fetch(`${edgeUrl}/v1/models`, { headers: { authorization: `Bearer ${apiKey}` }, signal });
  const body = (await response.json()) as { data?: { id: string }[] };
  return body.data?.some((model) => model.id === modelId) === true;
}

/** Hands the shared flags on to `quire serve`, also what came from the environment. */
function engineArguments(values: StartValues): string[] {
  return (Object.keys(engineFlags) as EngineFlagName[]).flatMap((name) => {
    const value = values[name];
    return value === undefined ? [] : [`--${name}=${value}`];
  });
}

/** An address at which this machine reaches what listens on `host`. */
function reachableHost(host: string): string {
  if (host === "0.0.0.0" || host === "::") return "127.0.0.1";
  return host.includes(":") ? `[${host}]` : host;
}

/** The engine first: it needs the edge's object store to persist. A second request kills what is left. */
async function bringDown(children: readonly Child[], stop: StopRequest): Promise<void> {
  const inOrder = async (): Promise<void> => {
    for (const child of children.toReversed()) {
      await child.stop(child.name === "engine" ? engineGraceMs : edgeGraceMs);
    }
  };
  const atOnce = stop.insisted.then(() => {
    for (const child of children) child.kill();
  });
  await Promise.race([inOrder(), atOnce]);
  await Promise.all(children.map((child) => child.ended));
}

function say(line: string): void {
  process.stdout.write(`quire: ${line}\n`);
}
