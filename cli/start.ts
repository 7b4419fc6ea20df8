/** `quire start`: edge and engine on this machine, up together and down together. */
import { setTimeout as sleep } from "node:timers/promises";
import { policyNamed } from "../models/selection/registry.ts";
import { AUTO_SELECTION } from "../protocol/generate.ts";
import type { Child } from "./child-process.ts";
import type { Command } from "./command.ts";
import { type DataFolder, openDataFolder } from "./data-folder.ts";
import { checkTogether, type EngineFlagName, engineFlags } from "./engine-flags.ts";
import { shortWarning } from "./engine-log.ts";
import { describeFlags, type FlagValues, parseFlags } from "./flags.ts";
import { keepEngine } from "./keep-engine.ts";
import { type ModelFolder, openModelFolder } from "./model-folder.ts";
import { findPort } from "./ports.ts";
import { readyBlock } from "./ready-block.ts";
import { Stack } from "./stack.ts";
import { startFlags } from "./start-flags.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";
import { endedUnexpectedly } from "./wait-until.ts";

type StartValues = FlagValues<typeof startFlags>;

/** The command. */
export const startCommand: Command = {
  help: () => `Usage: quire start [flags]\n\n${describeFlags(startFlags)}\n`,
  run: (args) => runStart(parseFlags(startFlags, args, process.env)),
};

async function runStart(values: StartValues): Promise<number> {
  checkTogether(values);
  checkPolicy(values);
  const model = await openModelFolder(values.model);
  // Before the ports: who starts it twice is told that it runs, and not of ports that are taken because it does.
  const data = await openDataFolder(values.data);
  const ports = await choosePorts(values).catch(async (error: unknown) => {
    await data.release();
    throw error;
  });
  const stop = listenForStop(process, () => performance.now());
  const life = new AbortController();
  void stop.requested.then((why) => {
    say(`${why}: stopping, the engine persists what it holds (once more: at once)`);
    life.abort();
  });
  const stack = stackOf({ values, model, ports, data, signal: life.signal });
  try {
    const { edge, engine } = await bringUp({ stack, values, model, ports, data });
    const edgeEnded = edge.ended.then(() => Promise.reject(endedUnexpectedly(edge)));
    const engineGivenUp = new Promise<never>((_, reject) => {
      keepRunning({ stack, engine, port: ports.engine, signal: life.signal }).catch(reject);
    });
    await Promise.race([stop.requested, edgeEnded, engineGivenUp]);
    return 0;
  } catch (error) {
    if (life.signal.aborted) return 0;
    throw error;
  } finally {
    // Whatever ended it: no engine is started from now on.
    life.abort();
    await Promise.race([stack.stop(), stop.insisted.then(() => stack.kill())]);
    await data.release();
  }
}

/** A selection that the engine keeps no summaries for would refuse every request that names none. */
function checkPolicy({ policy, summaries }: Pick<StartValues, "policy" | "summaries">): void {
  if (policy === undefined || policy === AUTO_SELECTION) return;
  const { summary } = policyNamed(policy);
  if (summary === undefined || summaries.includes(summary)) return;
  throw new UsageError(
    `--policy ${policy} needs the page summaries ${summary}: --summaries ${[...summaries, summary].join(",")}`,
  );
}

interface Ports {
  edge: number;
  engine: number;
  inspector: number;
}

/** Engines of `quire start` listen here only. */
const engineHost = "127.0.0.1";

async function choosePorts(values: StartValues): Promise<Ports> {
  const edge = await findPort({ host: values.host, port: values.port, flag: "--port" });
  const engine = await findPort({ host: engineHost, port: values["engine-port"], flag: "--engine-port" });
  const inspector = await findPort({ host: engineHost, port: 0, flag: "--port" });
  return { edge, engine, inspector };
}

interface StackParts {
  values: StartValues;
  model: ModelFolder;
  ports: Ports;
  data: DataFolder;
  signal: AbortSignal;
}

function stackOf({ values, model, ports, data, signal }: StackParts): Stack {
  return new Stack({
    data,
    model,
    host: values.host,
    edgePort: ports.edge,
    inspectorPort: ports.inspector,
    selection: {
      policy: values.policy,
      budgetTokens: values.budget,
      exact: values.exact === undefined ? undefined : values.exact === "true",
    },
    engineFlags: engineArguments(values),
    onWarning: (name, line) => void process.stderr.write(`[${name}] ${shortWarning(line)}\n`),
    signal,
  });
}

interface BringUpOptions extends Omit<StackParts, "signal"> {
  stack: Stack;
}

/** Edge, model assets, engine, registration: each waits for the one before. */
async function bringUp({ stack, values, model, ports, data }: BringUpOptions): Promise<{ edge: Child; engine: Child }> {
  say("starting the edge");
  const edge = await stack.startEdge();
  say("starting the engine");
  const engine = stack.startEngine(ports.engine);
  await stack.untilServed(engine, ports.engine);
  const facts = {
    url: stack.edgeUrl,
    apiKey: data.secrets.apiKey,
    modelId: model.modelId,
    device: stack.device ?? values.device,
    engineUrl: `http://${engineHost}:${ports.engine}`,
    enginePid: engine.pid,
    dataPath: data.path,
  };
  process.stdout.write(`${readyBlock(facts)}\n`);
  return { edge, engine };
}

interface KeepRunningOptions {
  stack: Stack;
  engine: Child;
  port: number;
  signal: AbortSignal;
}

function keepRunning({ stack, engine, port, signal }: KeepRunningOptions): Promise<void> {
  return keepEngine({
    engine,
    port,
    isPortTaken: () =>
      findPort({ host: engineHost, port, flag: "--engine-port" }).then(
        () => false,
        () => true,
      ),
    start: () => stack.startEngine(port),
    untilServed: (started) => stack.untilServed(started, port),
    say: (line) => void process.stderr.write(`quire: ${line}\n`),
    nowMs: () => performance.now(),
    sleep: (ms) => sleep(ms),
    signal,
  });
}

/** Hands the shared flags on to `quire serve`, also what came from the environment. */
function engineArguments(values: StartValues): string[] {
  return (Object.keys(engineFlags) as EngineFlagName[]).flatMap((name) => {
    const value = values[name];
    return value === undefined ? [] : [`--${name}=${value}`];
  });
}

function say(line: string): void {
  process.stdout.write(`quire: ${line}\n`);
}
