/** `quire serve`: one engine alone. Takes token ids only; an edge registers it and speaks to it. */
import { type EngineServer, type EngineServerOptions, startEngineServer } from "../engine/server.ts";
import type { Command } from "./command.ts";
import { checkTogether, engineFlags } from "./engine-flags.ts";
import { jsonLog } from "./engine-log.ts";
import { describeFlags, type FlagValues, parseFlags, parseHttpUrl, parsePort, parseText } from "./flags.ts";
import { loadReport } from "./load-report.ts";
import { openModelFolder } from "./model-folder.ts";
import { findPort, portRefusal } from "./ports.ts";
import { listenForStop } from "./stop-request.ts";
import { warmUpReport } from "./warm-up-report.ts";

const serveFlags = {
  port: {
    help: "port of the engine; 0 takes a free one",
    placeholder: "PORT",
    env: "QUIRE_ENGINE_PORT",
    fallback: "8790",
    parse: parsePort,
  },
  host: {
    help: "address to listen on",
    placeholder: "ADDRESS",
    env: "QUIRE_ENGINE_HOST",
    fallback: "127.0.0.1",
    parse: parseText,
  },
  store: {
    help: "fs:FOLDER, s3://BUCKET?endpoint=URL (keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or memory:",
    placeholder: "ADDRESS",
    env: "QUIRE_STORE",
    fallback: "fs:.data/pages",
    parse: parseText,
  },
  edge: {
    help: "address of the edge to register with; without it none",
    placeholder: "URL",
    env: "QUIRE_EDGE",
    parse: parseHttpUrl,
  },
  "public-url": {
    help: "address at which the edge reaches this engine, if not host and port",
    placeholder: "URL",
    env: "QUIRE_PUBLIC_URL",
    parse: parseHttpUrl,
  },
  "engine-key": {
    help: "secret shared with the edge, which signs its requests with it; other users can see flags, so prefer the variable",
    placeholder: "KEY",
    env: "QUIRE_ENGINE_KEY",
    parse: parseText,
  },
  ...engineFlags,
} as const;

/** Running turns get this long to come to their end. */
const graceMs = 20_000;
/** Of an engine whose device is gone; whoever keeps it running starts it again. */
const deviceLostExitCode = 70;

/** The command. */
export const serveCommand: Command = {
  help: () => `Usage: quire serve [flags]\n\n${describeFlags(serveFlags)}\n`,
  run: (args) => runServe(parseFlags(serveFlags, args, process.env)),
};

async function runServe(values: FlagValues<typeof serveFlags>): Promise<number> {
  checkTogether(values);
  const stop = listenForStop(process, () => performance.now());
  process.channel?.unref();
  const model = await openModelFolder(values.model);
  const wanted = { host: values.host, port: values.port, flag: "--port" };
  const port = await findPort(wanted);
  const released = Promise.withResolvers<string>();
  const onRelease = () => released.resolve("the edge lets it go");
  const place = { onRelease, port, modelFolder: model.path, modelId: model.modelId };
  const opening = openServer(values, place).catch((error: NodeJS.ErrnoException) => {
    // Somebody else took the port while weights were loaded.
    throw error.syscall === "listen" ? portRefusal({ ...wanted, port }, error) : error;
  });
  // Large weights take minutes, and nothing is lost by an end before anybody is served.
  const server = await Promise.race([opening, stop.requested]);
  if (typeof server === "string") {
    process.stdout.write(`quire: ${server}: stopping before the engine is ready\n`);
    return 0;
  }
  process.stdout.write(`quire: ${server.description}\nquire: engine ${server.engineId} is ready on ${server.url}\n`);
  const why = await Promise.race([stop.requested, released.promise]);
  process.stdout.write(`quire: ${why}: stopping\n`);
  await Promise.race([server.stop(graceMs), stop.insisted]);
  return 0;
}

function openServer(
  values: FlagValues<typeof serveFlags>,
  place: Pick<EngineServerOptions, "port" | "modelFolder" | "modelId" | "onRelease">,
): Promise<EngineServer> {
  return startEngineServer({
    ...place,
    host: values.host,
    storeUrl: values.store,
    env: process.env,
    device: values.device,
    threads: values.threads,
    weightEncoding: values.weights,
    kvEncoding: values.kv,
    pageEncoding: values["page-encoding"],
    diskCache:
      values["disk-cache"] === undefined ? undefined : { folder: values["disk-cache"], bytesMax: values["disk-bytes"] },
    summaryKinds: values.summaries,
    poolBytes: values["pool-bytes"],
    contextTokensMax: values.context,
    engineKey: values["engine-key"],
    edgeUrl: values.edge,
    publicUrl: values["public-url"],
    settings: {
      ...{ resume: values.resume, fillBytesPerS: values["fill-bytes"] },
      ...{ hostPoolBytes: values["host-pool-mib"] * 2 ** 20, reserve: values.reserve },
      ...(values["degraded-budget"] === undefined ? {} : { degradedBudgetTokens: values["degraded-budget"] }),
      ...(values.pace === undefined ? {} : { paceTokensPerS: values.pace }),
    },
    onDeviceLost({ message }) {
      process.stderr.write(`quire: ${message}: ending at once, so that running turns go on elsewhere\n`);
      process.exit(deviceLostExitCode);
    },
    onDeviceChoice: (line) => void process.stderr.write(`quire: ${line}\n`),
    onKernelsCompiled: warmUpReport(
      (line) => process.stderr.write(line),
      () => performance.now(),
    ),
    onLoadProgress: loadReport(
      (line) => process.stderr.write(line),
      () => performance.now(),
    ),
    log: jsonLog(
      (line) => process.stderr.write(line),
      () => new Date(),
    ),
  });
}
