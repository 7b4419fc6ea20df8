/** How turns end, with everything around them made of lists. */
import { describe, expect, it } from "vitest";
import type { Sequence } from "../../engine/sequence/sequence.ts";
import { TurnEnds, type TurnEndsOptions } from "../../engine/turn-ends.ts";

const TURN_MS_MAX = 1000;

function world({ endTurn = async () => {} }: { endTurn?: () => Promise<void> } = {}) {
  const told: string[] = [];
  const tell =
    (what: string) =>
    (..._: unknown[]) =>
      void told.push(what);
  const [queued, active, busySessions] = [new Set<Sequence>(), new Set<Sequence>(), new Set<string>()];
  const clock = { ms: 0, nowMs: () => clock.ms };
  const ends = new TurnEnds({
    parts: {
      settings: { turnMsMax: TURN_MS_MAX },
      persister: {
        copied: async () => {},
        endTurn: async () => {
          told.push("persist");
          await endTurn();
        },
      },
      clock,
      log: (event: string) => void told.push(event),
      cache: {},
      opens: {},
    },
    queue: { remove: (one: Sequence) => queued.delete(one), [Symbol.iterator]: () => queued[Symbol.iterator]() },
    ...{ active, busySessions },
    tenants: { finish: tell("finish"), leave: tell("leave") },
    observer: { concluded: tell("concluded"), settled: tell("settled") },
    dropStep: tell("drop step"),
    wake: () => {},
  } as unknown as TurnEndsOptions);
  const sequence = (fields: object = {}): Sequence =>
    ({
      ...{ request: { requestId: "r" }, namespace: "n", sessionKey: "n/s", queuedAtMs: 0, firstTokenDueMs: 1e9 },
      ...{ phase: "running", generatedCount: 1, usage: {}, abort: new AbortController(), opens: new Map() },
      sink: { done: tell("done"), failed: tell("failed") },
      turnSpans: () => [],
      releaseAll: tell("release"),
      ...fields,
    }) as unknown as Sequence;
  const running = (fields: object = {}): Sequence => {
    const one = sequence(fields);
    active.add(one);
    busySessions.add("n/s");
    return one;
  };
  return { ends, told, clock, queued, active, busySessions, sequence, running };
}

const AFTER_RELEASE = ["release", "finish", "leave", "settled"];

describe("a turn that ends", () => {
  it("tells its client before anything is persisted, once, and then gives back all that it held", async () => {
    const { ends, told, active, busySessions, running } = world();
    const one = running({ finishReason: "stop" });
    await ends.settle(one);
    ends.conclude(one);
    expect(told).toEqual(["concluded", "done", "drop step", "persist", ...AFTER_RELEASE]);
    expect([one.phase, active.size, busySessions.size]).toEqual(["ended", 0, 0]);
  });

  it("gives everything back where the store or the client's sink fails", async () => {
    const endTurn = async () => Promise.reject(new Error("the store is gone"));
    const { ends, told, running } = world({ endTurn });
    const done = () => {
      throw new Error("the client is gone");
    };
    await ends.settle(running({ finishReason: "stop", sink: { done } }));
    expect(told).toEqual(["concluded", "sink.failed", "drop step", "persist", "persist.failed", ...AFTER_RELEASE]);
  });

  it("with an error leaves nothing for the next turn", async () => {
    const { ends, told, running } = world();
    const one = running();
    ends.fail(one, new Error("first"));
    ends.fail(one, new Error("second"));
    expect(one.error).toEqual(new Error("first"));
    await ends.settle(one);
    expect(told.slice(2)).toEqual(["concluded", "failed", "drop step", ...AFTER_RELEASE]);
  });
});

describe("between two steps", () => {
  it("whoever was cancelled, failed or is late ends, wherever it is; the others stay", () => {
    const { ends, clock, queued, running, sequence } = world();
    const waiting = sequence({ phase: "queued" });
    queued.add(waiting);
    const [cancelled, failed, late, calm] = [running(), running(), running(), running({ queuedAtMs: 500 })];
    ends.cancel(waiting);
    ends.cancel(cancelled);
    ends.fail(failed, new Error("of its own"));
    clock.ms = TURN_MS_MAX;
    ends.endAborted();
    expect([waiting, cancelled, failed, late, calm].map(({ phase }) => phase)).toEqual([
      ...["settling", "settling", "settling"],
      ...["running", "running"],
    ]);
    expect([queued.size, cancelled.abort.signal.aborted]).toEqual([0, true]);
    clock.ms += 1;
    ends.endAborted();
    expect([late.phase, late.error, calm.phase]).toEqual([
      "settling",
      expect.objectContaining({ code: "deadline_exceeded" }),
      "running",
    ]);
  });

  it("one whose memory the store still writes to is told, and keeps its memory", () => {
    const { ends, told, active, running } = world();
    const one = running({ phase: "attaching" });
    ends.cancel(one);
    ends.endAborted();
    ends.endAborted();
    expect([one.phase, told, active.size]).toEqual(["attaching", ["concluded", "done"], 1]);
  });
});
