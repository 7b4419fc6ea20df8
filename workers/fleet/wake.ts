/** Starting engines when none is there: the hook is called once, and those who need an engine wait until one registers. */
import { LIMITS } from "../../protocol/limits.ts";
import { signRequest } from "../../protocol/signature.ts";

/** What a waker is given of the outside world. */
export interface WakerOptions {
  /** Calls the hook. Rejects when it refuses or cannot be reached. */
  call: (model: string) => Promise<void>;
  /** Told of a call that failed. */
  onFailure: (model: string, cause: unknown) => void;
  now: () => number;
}

interface Call {
  /** When the hook may be called again. */
  againMs: number;
  /** Whether it took the call; undefined before it has answered. */
  accepted: boolean | undefined;
}

/** Per model: one call until an engine registers, or nothing came of it for `LIMITS.wakeAgainMs` (a call that failed: `wakeRetryMs`). */
export class Waker {
  readonly #options: WakerOptions;
  readonly #calls = new Map<string, Call>();
  readonly #waiting = new Set<() => void>();

  constructor(options: WakerOptions) {
    this.#options = options;
  }

  /** False when so many wait that one more is refused. */
  get hasRoom(): boolean {
    return this.#waiting.size < LIMITS.heldTurnCountMax;
  }

  /** Calls the hook if nobody has. False when it refused: there is nothing to wait for. */
  wake(model: string): boolean {
    const { now } = this.#options;
    const known = this.#calls.get(model);
    if (known && now() < known.againMs) return known.accepted !== false;
    const call: Call = { againMs: now() + LIMITS.wakeAgainMs, accepted: undefined };
    this.#calls.set(model, call);
    void this.#run(model, call);
    return true;
  }

  /** An engine of the model is there: whoever waits looks again, and the next time that none is there the hook is called. */
  arrived(model: string): void {
    this.#calls.delete(model);
    this.#wakeAll();
  }

  /** Resolves when an engine registers, a hook fails, or after `msMax`. */
  async arrival(msMax: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.add(resolve);
    const timer = setTimeout(resolve, msMax);
    await promise;
    clearTimeout(timer);
    this.#waiting.delete(resolve);
  }

  async #run(model: string, call: Call): Promise<void> {
    const { call: callHook, onFailure, now } = this.#options;
    try {
      await callHook(model);
      call.accepted = true;
    } catch (cause) {
      onFailure(model, cause);
      call.accepted = false;
      call.againMs = now() + LIMITS.wakeRetryMs;
      this.#wakeAll();
    }
  }

  #wakeAll(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}

/** Audience of the signature of a hook call (`protocol/signature.ts`). */
const WAKE_AUDIENCE = "wake";

/**
 * Asks the hook at `url` for an engine of a model: POST `{"model"}`, signed with the key of edge and engines.
 * @throws {Error} unless it answers 2xx in time
 */
export async function callWakeHook(url: string, key: string, model: string): Promise<void> {
  const { pathname: path } = new URL(url);
  const body = new TextEncoder().encode(JSON.stringify({ model }));
  const authorization = await signRequest(key, { audience: WAKE_AUDIENCE, method: "POST", path }, body, Date.now());
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", authorization },
    body,
    signal: AbortSignal.timeout(LIMITS.wakeCallMsMax),
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`the wake hook answered ${response.status}`);
}
