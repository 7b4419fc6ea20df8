/** Sessions that are deleted, as the edge does it: every engine that is there is told, and told again until it has done it. */
import type { GenerateRequest } from "../../protocol/generate.ts";
import { intactCommit } from "./commit-check.ts";
import type { Log } from "./log.ts";
import type { SimEngine } from "./sim-engine.ts";
import type { SimChange } from "./sim-store.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** An edge beats so often: what has failed is tried again. */
const AGAIN_MS = 1_000;
const TRIES_MAX = 60;

/** What deletions of a life work with. */
export interface EndingsOptions {
  time: VirtualTime;
  random: () => number;
  /** Those that live now. */
  engines(): readonly SimEngine[];
  openEngine(): Promise<SimEngine>;
}

/** All deletions of a life. */
export class Endings {
  readonly #options: EndingsOptions;
  /** By the key of its manifest: sessions that began earlier are over. */
  readonly #floors = new Map<string, number>();

  constructor(options: EndingsOptions) {
    this.#options = options;
  }

  /**
   * Deletes a session; resolves when every engine that lives has done it. What it did not do in time, it is told again.
   * @param orphan a turn of it that nobody waits for any more, and that an engine still has
   */
  async end({ namespace, id, bornMs }: Log, orphan: GenerateRequest | undefined): Promise<void> {
    const { time, random, engines, openEngine } = this.#options;
    if (orphan) {
      const all = engines();
      this.#leave(all[Math.floor(random() * all.length)], orphan);
      await time.sleep(random() * 60);
    }
    const told = new Set<SimEngine>();
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      if (engines().length === 0) await openEngine();
      const untold = engines().filter((engine) => !told.has(engine));
      if (untold.length === 0) return;
      await Promise.all(
        untold.map(async (engine) => {
          if (!(await hasDone(engine, () => engine.calls.delete(namespace, id, bornMs)))) return;
          told.add(engine);
          const key = engine.opened.keys.of(namespace).session(id);
          this.#floors.set(key, Math.max(this.#floors.get(key) ?? 0, bornMs + 1));
        }),
      );
      await time.sleep(AGAIN_MS * random());
    }
    throw new Error("no engine deletes a session");
  }

  /** Nothing is stored of a session that an engine has deleted. @returns what is wrong */
  problem({ key, after, misread }: SimChange): string | undefined {
    const floor = this.#floors.get(key);
    if (floor === undefined || misread) return undefined;
    const now = intactCommit(after);
    if (!now || !("segments" in now) || (now.bornMs ?? 0) >= floor) return undefined;
    return `a session that began at ${now.bornMs} was deleted (${floor}) and is stored again`;
  }

  #leave(engine: SimEngine | undefined, request: GenerateRequest): void {
    if (!engine) return;
    const nobody = () => undefined;
    engine.opened.engine.submit(request, { token: nobody, done: nobody, failed: nobody });
  }
}

/** False where it fails, or its engine dies meanwhile. */
function hasDone(engine: SimEngine, work: () => Promise<void>): Promise<boolean> {
  return new Promise((resolve) => {
    const forget = engine.onDeath(() => resolve(false));
    const settle = (isDone: boolean) => {
      forget();
      resolve(isDone);
    };
    work().then(
      () => settle(true),
      () => settle(false),
    );
  });
}
