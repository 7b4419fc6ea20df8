/** The engine of `quire start`: `quire serve` as a child, storing through the edge's local S3 API. */
import { fileURLToPath } from "node:url";
import { type Child, startChild } from "./child-process.ts";
import type { Secrets } from "./data-folder.ts";
import { ENGINE_ENVIRONMENT, ENGINE_NODE_FLAGS } from "./engine-start.ts";

const program = fileURLToPath(new URL("../bin/quire.mjs", import.meta.url));

/** How the engine is started. */
export interface EngineProcessOptions {
  port: number;
  edgeUrl: string;
  storeAddress: string;
  secrets: Secrets;
  /** Flags of the engine, as they are typed. */
  flags: readonly string[];
  logPath: string;
  onWarning(line: string): void;
}

/** Environment for everything that speaks to the local S3 API: secrets never stand on a command line. */
export function storeEnvironment(secrets: Secrets): Record<string, string> {
  return { AWS_ACCESS_KEY_ID: secrets.s3AccessKeyId, AWS_SECRET_ACCESS_KEY: secrets.s3SecretAccessKey };
}

/** Starts the engine; it registers with the edge when it can serve. */
export function startEngine(options: EngineProcessOptions): Child {
  const { port, edgeUrl, storeAddress, secrets } = options;
  const { AWS_SESSION_TOKEN: _, ...env } = process.env;
  return startChild({
    name: "engine",
    program: process.execPath,
    args: [
      ...[...ENGINE_NODE_FLAGS, program, "serve", "--port", String(port), "--edge", edgeUrl, "--store", storeAddress],
      ...options.flags,
    ],
    cwd: process.cwd(),
    env: { ...ENGINE_ENVIRONMENT, ...env, ...storeEnvironment(secrets), QUIRE_ENGINE_KEY: secrets.engineKey },
    logPath: options.logPath,
    onWarning: options.onWarning,
    // Beside warnings: what is to be known before the engine answers.
    isWarning: (line) =>
      /"level":"(warn|error)"|^(\w*Error|Uncaught)\b|^quire: (device|loading|compiling|compiled) /.test(line),
  });
}
