/** How a user stops a command: Ctrl-C or SIGTERM once to end in order, again to end at once. */
import type { EventEmitter } from "node:events";

/** Stop requests of one process. */
export interface StopRequest {
  /** Resolves with what asked for the stop. */
  readonly requested: Promise<string>;
  /** Resolves when the user asks a second time. */
  readonly insisted: Promise<void>;
}

/** The part of `process` that is listened to. */
export type SignalSource = Pick<EventEmitter, "on">;

/** One Ctrl-C may arrive twice, from the terminal and from npm: what comes within this time is the same one. */
const sameRequestMs = 1_000;

/** Listens from now on, and for good. The end of an IPC channel to a parent counts as a request, too. */
export function listenForStop(source: SignalSource, nowMs: () => number): StopRequest {
  const requested = Promise.withResolvers<string>();
  const insisted = Promise.withResolvers<void>();
  let firstMs: number | undefined;
  const onSignal = (name: string): void => {
    if (firstMs === undefined) {
      firstMs = nowMs();
      requested.resolve(name);
    } else if (nowMs() - firstMs >= sameRequestMs) {
      insisted.resolve();
    }
  };
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) source.on(name, () => onSignal(name));
  source.on("disconnect", () => onSignal("the parent's end"));
  return { requested: requested.promise, insisted: insisted.promise };
}
