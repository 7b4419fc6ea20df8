/** Ports are checked before anything starts, so that a taken one is said in one line. */
import { randomInt } from "node:crypto";
import { createServer } from "node:net";
import { UsageError } from "./usage-error.ts";

/** Below those that systems give to outgoing connections (Linux from 32768 on, others from 49152): one of these could take the port before its server does. */
const FREE_PORTS = { from: 20_000, end: 32_000 };
const TRIES_MAX = 20;

/** An address to listen on and the flag that chose its port. */
export interface PortRequest {
  host: string;
  /** 0 takes one that is free. */
  port: number;
  flag: string;
}

/**
 * Binds the port for a moment and resolves to its number, which is free again by then.
 * @throws {UsageError} when it cannot be bound.
 */
export async function findPort(request: PortRequest): Promise<number> {
  if (request.port !== 0) return await listenOnce(request);
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const port = randomInt(FREE_PORTS.from, FREE_PORTS.end);
    const found = await listenOnce({ ...request, port }).catch(() => undefined);
    if (found !== undefined) return found;
  }
  return await listenOnce(request);
}

function listenOnce(request: PortRequest): Promise<number> {
  const { host, port } = request;
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error) => reject(portRefusal(request, error)));
    server.listen({ host, port, exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : port));
    });
  });
}

/** Says in one line why `listen` failed with `error`. */
export function portRefusal({ host, port, flag }: PortRequest, error: NodeJS.ErrnoException): UsageError {
  // Nothing listens there, whatever the port.
  if (["ENOTFOUND", "EADDRNOTAVAIL"].includes(error.code ?? "")) {
    return new UsageError(`${host} is no address of this machine (${error.code}); choose another with --host`);
  }
  const reason = error.code === "EADDRINUSE" ? "is taken" : `cannot be used on ${host} (${error.code})`;
  return new UsageError(`port ${port} ${reason}; choose another with ${flag}`);
}
