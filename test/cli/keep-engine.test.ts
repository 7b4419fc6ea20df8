import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Child } from "../../cli/child-process.ts";
import { keepEngine } from "../../cli/keep-engine.ts";
import { UsageError } from "../../cli/usage-error.ts";

/** A child that ends when the test says so. */
class FakeEngine implements Child {
  readonly name = "engine";
  readonly logPath = "/logs/engine.log";
  readonly pid: number;
  readonly #end = Promise.withResolvers<string>();
  endedWith: string | undefined;

  constructor(pid: number) {
    this.pid = pid;
  }

  get ended(): Promise<string> {
    return this.#end.promise;
  }

  end(how: string): void {
    this.endedWith = how;
    this.#end.resolve(how);
  }

  lastLines = (): string[] => ["quire: no room for the pool"];
  stop = (): Promise<void> => Promise.resolve();
  kill = (): void => this.end("ended by SIGKILL");
}

function world() {
  const engines = [new FakeEngine(1)];
  const said: string[] = [];
  const life = new AbortController();
  const state = { taken: false, serves: true };
  const kept = keepEngine({
    engine: engines[0]!,
    port: 8790,
    isPortTaken: async () => state.taken,
    start: () => {
      const next = new FakeEngine(engines.length + 1);
      engines.push(next);
      return next;
    },
    untilServed: async () => {
      if (!state.serves) throw new UsageError("it ended");
    },
    say: (line) => said.push(line),
    nowMs: () => Date.now(),
    sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
    signal: life.signal,
  });
  const outcome = kept.then(
    () => "over",
    (error: Error) => error,
  );
  const kill = async (waitMs = 1_000): Promise<void> => {
    engines.at(-1)!.kill();
    await vi.advanceTimersByTimeAsync(waitMs);
  };
  return { engines, said, life, state, outcome, kill };
}

describe("an engine that dies", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("is started again after a moment, with one line, and one when it is back", async () => {
    const { engines, said, kill } = world();
    await kill(400);
    expect([engines.length, said]).toEqual([1, []]);
    await vi.advanceTimersByTimeAsync(200);
    expect(engines).toHaveLength(2);
    expect(said).toEqual([
      "the engine ended by SIGKILL (log: /logs/engine.log); starting it again on port 8790 (1 of 5 within a minute)",
      "the engine is back (pid 2)",
    ]);
  });

  it("six times within a minute is given up, with its last words", async () => {
    const { engines, said, state, kill, outcome } = world();
    state.serves = false;
    for (let death = 1; death <= 5; death++) await kill();
    expect(engines).toHaveLength(6);
    expect(said).toHaveLength(5);
    engines.at(-1)!.end("ended with exit code 1");
    expect(await outcome).toEqual(
      new UsageError(
        "the engine ended with exit code 1: no room for the pool (log: /logs/engine.log); " +
          "it was started again 5 times within a minute",
      ),
    );
    expect(engines).toHaveLength(6);
  });

  it("six times within more than a minute is not", async () => {
    const { engines, said, kill } = world();
    for (let death = 1; death <= 8; death++) await kill(13_000);
    expect(engines).toHaveLength(9);
    expect(said.at(-2)).toContain("(5 of 5 within a minute)");
  });

  it("is not started where somebody else has taken its port", async () => {
    const { engines, said, state, kill, outcome } = world();
    state.taken = true;
    await kill();
    expect(await outcome).toBe("over");
    expect(engines).toHaveLength(1);
    expect(said).toEqual([
      "the engine ended by SIGKILL (log: /logs/engine.log); another process has taken port 8790 since: " +
        "going on without an engine of our own",
    ]);
  });

  it("because everything ends is not started, also within the moment between", async () => {
    const first = world();
    first.life.abort();
    await first.kill();
    expect([await first.outcome, first.engines.length, first.said]).toEqual(["over", 1, []]);
    const second = world();
    await second.kill(100);
    second.life.abort();
    await vi.advanceTimersByTimeAsync(1_000);
    expect([await second.outcome, second.engines.length, second.said]).toEqual(["over", 1, []]);
  });
});
