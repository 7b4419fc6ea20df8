/** Tells the edge, once a second, that this engine is there and how busy it is. A beat that fails is followed by the next. */
import { fetchFailure } from "../../protocol/fetch-failure.ts";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { EDGE_AUDIENCE, signRequest } from "../../protocol/signature.ts";
import type { EngineLog } from "../settings.ts";

/** Where to register, and what to say. */
export interface RegistrationOptions {
  /** Base URL of the edge. */
  edgeUrl: string;
  /** The secret shared with the edge; not empty. */
  key: string;
  beat(): EngineHeartbeat;
  /** Called once, when the edge lets this engine go: it has had nothing to do for long. */
  onRelease?: (() => void) | undefined;
  /** Called before a beat where the edge has not answered one for longer than `LIMITS.engineAwayMsMax`: sessions may have been deleted that nobody told of. */
  onAway(): void;
  log: EngineLog;
}

/** Beats once a second until it is stopped. */
export interface Registration {
  /** One beat beside those of the clock, in place of what is under way: what has changed is known when this resolves, or not within 5 s. */
  beatNow(): Promise<void>;
  /** No beat behind this; those under way are given up. */
  stop(): void;
}

const GIVEN_UP = new Error("the beat is not wanted any more");

/** Begins at once. */
export function startRegistration(options: RegistrationOptions): Registration {
  const underWay = new Set<AbortController>();
  let failing = false;
  let released = false;
  let answeredMs = Date.now();
  const giveUp = () => {
    for (const beat of underWay) beat.abort(GIVEN_UP);
  };
  const send = async (beat: EngineHeartbeat) => {
    const course = new AbortController();
    const late = setTimeout(() => course.abort(new DOMException("late", "TimeoutError")), LIMITS.engineExpiryMs);
    underWay.add(course);
    if (Date.now() - answeredMs > LIMITS.engineAwayMsMax) options.onAway();
    try {
      const url = new URL("/v1/engines/heartbeat", options.edgeUrl);
      const body = new TextEncoder().encode(JSON.stringify(beat));
      const target = { audience: EDGE_AUDIENCE, method: "POST", path: url.pathname };
      const response = await fetch(url, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          authorization: await signRequest(options.key, target, body, Date.now()),
        },
        body,
        signal: course.signal,
      });
      if (!response.ok) {
        await response.body?.cancel();
        throw new RefusedError(refusalOf(response.status));
      }
      answeredMs = Date.now();
      const { release } = (await response.json()) as { release?: boolean };
      if (release && !released) {
        released = true;
        options.log("engine.released", { edgeUrl: options.edgeUrl });
        options.onRelease?.();
      }
      if (failing) options.log("heartbeat.recovered", { edgeUrl: options.edgeUrl });
      failing = false;
    } catch (error) {
      if (course.signal.reason === GIVEN_UP) return;
      if (!failing)
        options.log("heartbeat.failed", {
          edgeUrl: options.edgeUrl,
          error: error instanceof RefusedError ? error.message : `the edge cannot be asked (${fetchFailure(error)})`,
        });
      failing = true;
    } finally {
      clearTimeout(late);
      underWay.delete(course);
    }
  };
  void send(options.beat());
  const timer = setInterval(() => void send(options.beat()), LIMITS.engineHeartbeatMs);
  return {
    beatNow() {
      giveUp();
      return send(options.beat());
    },
    stop() {
      clearInterval(timer);
      giveUp();
    },
  };
}

/** The edge answered, and not with 200. */
class RefusedError extends Error {}

function refusalOf(status: number): string {
  if (status !== 401) return `the edge answered ${status}`;
  const seconds = LIMITS.signatureSkewMsMax / 1000;
  return `the edge answered 401: its QUIRE_ENGINE_KEY is another one, or the two clocks are more than ${seconds} s apart`;
}
