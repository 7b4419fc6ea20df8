/** The engine for a turn, as the fleet says; waits for one that is being started. */
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { fleetOf, holdMsMax } from "../fleet.ts";
import type { PickedEngine, PickRequest } from "../fleet-table.ts";
import { askAgain } from "../stubs.ts";

/** Who asks for what, and how long. */
export interface EngineWanted {
  env: Env;
  namespace: string;
  request: PickRequest;
  /** The turn was at an engine: its client has its headers. */
  hasBegun: boolean;
  /** Aborted: nobody needs it any more. */
  gone: AbortSignal;
  /** Called when the wait has taken `LIMITS.holdHeadersMs`. */
  onHeld: () => void;
}

/** How often the fleet is asked again where nothing is being started. */
const LOOK_MS = 250;
/** One question to the fleet takes at most so long: an object that restarts is asked again. */
const ASK_MS = 1_000;

/** A turn that nobody has heard of yet is told its real status. */
function lostMsMax(hasBegun: boolean): number {
  return hasBegun ? LIMITS.lostEngineHoldMs : LIMITS.holdHeadersMs / 2;
}

/**
 * The engine for a turn; undefined when none is there, and none comes within the time that turns are held: where engines can be started
 * `QUIRE_WAKE_WAIT_MS`, and where they cannot `LIMITS.lostEngineHoldMs` for a turn that has lost its engine, which may start again.
 */
export async function pickEngine({
  env,
  namespace,
  request,
  hasBegun,
  gone,
  onHeld,
}: EngineWanted): Promise<PickedEngine | undefined> {
  const startMs = Date.now();
  const lostHoldMs = request.excludeIds.length > 0 ? Math.min(lostMsMax(hasBegun), holdMsMax(env)) : 0;
  for (;;) {
    const elapsedMs = Date.now() - startMs;
    const isHeld = elapsedMs >= LIMITS.holdHeadersMs;
    if (isHeld) onHeld();
    // Not past the moment at which the headers are due.
    const untilHeldMs = isHeld ? ASK_MS : LIMITS.holdHeadersMs - elapsedMs;
    const waitMs = Math.max(0, Math.min(ASK_MS, untilHeldMs, holdMsMax(env) - elapsedMs));
    const ask = () => within(LIMITS.engineExpiryMs + waitMs, fleetOf(env, namespace).pick(request, waitMs));
    const { engine, waking } = await askAgain(ask);
    const leftMs = (waking ? holdMsMax(env) : lostHoldMs) - (Date.now() - startMs);
    if (engine || gone.aborted || leftMs <= 0) return engine;
    if (!waking) await new Promise((resolve) => setTimeout(resolve, Math.min(LOOK_MS, leftMs)));
  }
}
