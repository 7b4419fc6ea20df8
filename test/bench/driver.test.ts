import { describe, expect, it } from "vitest";
import { type DriveOptions, drive } from "../../bench/load/driver.ts";
import { Measures } from "../../bench/load/measures.ts";
import { isFine, loadResult } from "../../bench/load/report.ts";
import { type Target, type TurnCall, TurnError, type TurnUsage } from "../../bench/load/target.ts";
import type { Script } from "../../bench/load/workload.ts";
import { VirtualClock } from "./virtual-clock.ts";

const fact = { name: "Badoru", code: "4821" };
const usage: TurnUsage = {
  promptTokens: 100,
  completionTokens: 3,
  cachedTokens: 60,
  source: { device: 40, host: 0, store: 20 },
};

function scriptsAt(arrivalsMs: readonly number[], thinkMs: readonly number[] = [0]): Script[] {
  const turns = thinkMs.map((pauseMs) => ({ text: "?", fact, thinkMs: pauseMs }));
  return arrivalsMs.map((arrivalMs, index) => ({ index, className: "short", tenant: 0, arrivalMs, turns }));
}

type Answer = (clock: VirtualClock, call: TurnCall, index: number) => Promise<TurnUsage>;

/** Text after 100, 110 and 120 ms. */
const answerIn100: Answer = async (clock, { onText }) => {
  for (const [waitMs, text] of [
    [100, "The code "],
    [10, "is 48"],
    [10, "21."],
  ] as const) {
    await clock.sleepMs(waitMs);
    onText(text);
  }
  return usage;
};

function setUp(scripts: Script[], answer: Answer, options: Partial<DriveOptions> = {}) {
  const clock = new VirtualClock();
  const measures = new Measures();
  let count = 0;
  const ended: number[] = [];
  const target: Target = {
    description: "a script",
    openConversation: () => ({
      send: (call) => answer(clock, call, count++),
      end: async () => void ended.push(clock.nowMs()),
    }),
  };
  const defaults = { durationMs: 10_000, sessionsActiveMax: 100, turnMsMax: 60_000, drainMs: 5_000 };
  const run = () =>
    drive({
      ...defaults,
      deleteSessions: false,
      signal: new AbortController().signal,
      ...options,
      scripts,
      target,
      clock,
      measures,
    });
  return { clock, measures, ended, run };
}

describe("an open-loop run", () => {
  it("counts what it saw: latencies, tokens, reuse, answers", async () => {
    const { clock, measures, run } = setUp(scriptsAt([0, 500, 1_000], [0, 300]), answerIn100);
    const times = await clock.runUntil(run());
    expect(times).toEqual({ windowMs: 10_000, elapsedMs: 10_000 });
    const all = measures.all.summary();
    expect(all.turns).toEqual({ completed: 6, failed: 0, interrupted: 0 });
    expect(all.firstTokenMs).toMatchObject({ count: 6, min: 100, max: 100, p50: 100, p99: 100 });
    expect(all.betweenDeltasMs).toMatchObject({ count: 12, min: 10, max: 10 });
    expect(all.perTokenMs).toMatchObject({ count: 6, min: 10, max: 10 });
    expect(all.turnMs).toMatchObject({ min: 120, max: 120 });
    expect(all.tokens).toEqual({ prompt: 600, completion: 18, cached: 360 });
    expect(all.cachedShare).toBe(0.6);
    expect(all.cachedShareBySource).toEqual({ device: 0.4, host: 0, store: 0.2 });
    expect(all.answers).toEqual({ right: 6, wrong: 0 });
    expect(measures.first.summary().turns.completed).toBe(3);
    expect(measures.later.summary().turns.completed).toBe(3);
    expect(measures.classes.get("short")?.summary().turns.completed).toBe(6);
    expect(measures.classes.get("long")?.summary()).toMatchObject({
      turns: { completed: 0 },
      firstTokenMs: { count: 0 },
    });
    expect(measures.sessions).toEqual({ offered: 3, notSent: 0, started: 3, completed: 3, cutShort: 0 });
    expect(measures.window).toEqual({
      turnsSent: 6,
      turnsCompleted: 6,
      turnsWithinObjectives: 6,
      completionTokens: 18,
    });
  });

  it("keeps sending while the target stalls, and the stall shows in every latency behind it", async () => {
    const arrivals = Array.from({ length: 10 }, (_, index) => index * 100);
    let sent = 0;
    // Answers nothing before one second has passed, then everything at once.
    const stalled: Answer = async (clock, { onText }) => {
      sent += 1;
      await clock.sleepUntil(1_000, new AbortController().signal);
      onText("4821");
      return usage;
    };
    const { clock, measures, run } = setUp(scriptsAt(arrivals), stalled);
    let sentAt950 = 0;
    await clock.runUntil(run(), (nowMs) => {
      if (nowMs < 1_000) sentAt950 = sent;
    });
    expect(sentAt950).toBeGreaterThanOrEqual(9);
    const { firstTokenMs } = measures.all.summary();
    expect(firstTokenMs).toMatchObject({ count: 10, min: 100, max: 1_000, mean: 550 });
  });

  it("counts latencies from the intended start when the generator itself is late", async () => {
    const { clock, measures, run } = setUp(scriptsAt([100, 200]), answerIn100);
    const { sleepUntil } = clock;
    // A busy event loop: whoever sleeps wakes 50 ms late.
    clock.sleepUntil = (atMs, signal) => sleepUntil.call(clock, atMs + (atMs < 250 ? 50 : 0), signal);
    clock.sleepMs = (durationMs) => sleepUntil.call(clock, clock.nowMs() + durationMs, new AbortController().signal);
    await clock.runUntil(run());
    expect(measures.lag.summary()).toMatchObject({ count: 2, min: 50, max: 50 });
    expect(measures.all.summary().firstTokenMs).toMatchObject({ min: 150, max: 150 });
  });

  it("counts arrivals beyond the bound instead of sending or forgetting them", async () => {
    const { clock, measures, run } = setUp(scriptsAt([0, 10, 20, 30, 200]), answerIn100, { sessionsActiveMax: 2 });
    await clock.runUntil(run());
    expect(measures.sessions).toEqual({ offered: 5, notSent: 2, started: 3, completed: 3, cutShort: 0 });
    expect(measures.all.summary().turns.completed).toBe(3);
  });
});

describe("refused clients", () => {
  /** Full until `freeMs`, and says so in milliseconds. */
  const fullUntil =
    (freeMs: number): Answer =>
    async (clock, call, index) => {
      if (clock.nowMs() >= freeMs) return answerIn100(clock, call, index);
      throw new TurnError("queue_full", "The queue is full.", { isRefusal: true, retryAfterMs: 1_200 });
    };

  it.each([
    // Told 1.2 s, which HTTP says as 2 s: back at 2 s.
    [1_900, 1, { told: 1, cameBack: 1, admitted: 1 }, { completed: 1, failed: 0 }],
    [3_900, 1, { told: 1, cameBack: 1, admitted: 0 }, { completed: 0, failed: 1 }],
    [3_900, 5, { told: 1, cameBack: 1, admitted: 0 }, { completed: 1, failed: 0 }],
    [1_900, 0, { told: 0, cameBack: 0, admitted: 0 }, { completed: 0, failed: 1 }],
  ])("come back when they were told to: full until %i ms, %i returns", async (freeMs, returnsMax, seen, turns) => {
    const { clock, measures, run } = setUp(scriptsAt([0]), fullUntil(freeMs), { returnsMax });
    await clock.runUntil(run());
    expect(measures.retryAfter).toEqual(seen);
    expect(measures.all.summary().turns).toMatchObject(turns);
    expect(measures.refusals).toBe(turns.failed);
    if (turns.completed === 1) expect(measures.all.summary().firstTokenMs.min).toBe(freeMs + 200);
  });
});

describe("what goes wrong in a run", () => {
  const failing: Answer = async (clock, call, index) => {
    if (index % 2 === 0) return answerIn100(clock, call, index);
    await clock.sleepMs(5);
    throw new TurnError("queue_full", "The queue is full.", { isRefusal: true });
  };
  const resultOf = (measures: Measures) =>
    loadResult({
      measured: "",
      settings: {},
      measures,
      times: { windowMs: 10_000, elapsedMs: 10_000 },
      ratePerS: 1,
      interrupted: false,
    });

  it("is counted by code, ends its session, and decides the exit code unless refusals are allowed", async () => {
    const { clock, measures, run } = setUp(scriptsAt([0, 1_000], [0, 300, 300]), failing);
    await clock.runUntil(run());
    const all = measures.all.summary();
    expect(all).toMatchObject({ turns: { completed: 2, failed: 2 }, errors: { queue_full: 2 } });
    expect(measures.sessions).toMatchObject({ completed: 0, cutShort: 2 });
    expect(measures.turnsNotSent).toBe(2);
    expect(measures.examples.get("queue_full")).toBe("The queue is full.");
    expect(isFine(resultOf(measures), false)).toBe(false);
    expect(isFine(resultOf(measures), true)).toBe(true);
  });

  it("includes wrong answers, which are no errors, and turns that outlast the drain, which are", async () => {
    const forever: Answer = async (clock, call, index) => {
      if (index === 0) {
        call.onText("The code is 0000.");
        return usage;
      }
      await clock.sleepUntil(Number.MAX_SAFE_INTEGER, call.signal);
      throw new TurnError("client", "aborted");
    };
    const { clock, measures, run } = setUp(scriptsAt([0, 9_000]), forever);
    const times = await clock.runUntil(run());
    expect(times.elapsedMs).toBe(15_000);
    expect(measures.all.summary()).toMatchObject({
      turns: { completed: 1, failed: 1 },
      errors: { unfinished: 1 },
      answers: { right: 0, wrong: 1 },
    });
    expect(resultOf(measures).totals.wrongAnswers).toEqual([
      { session: 0, turn: 0, expected: "4821", reply: "The code is 0000." },
    ]);
    expect(isFine(resultOf(measures), true)).toBe(false);
  });

  it("is not the user's stop: what was under way is interrupted, and the rest is never sent", async () => {
    const stop = new AbortController();
    const patient: Answer = async (clock, call, index) => {
      if (index < 2) return answerIn100(clock, call, index);
      await clock.sleepUntil(Number.MAX_SAFE_INTEGER, call.signal);
      throw new TurnError("client", "aborted");
    };
    const scripts = scriptsAt([0, 200, 400, 5_000], [0, 2_000]);
    const { clock, measures, run, ended } = setUp(scripts, patient, { signal: stop.signal, deleteSessions: true });
    const times = await clock.runUntil(run(), (nowMs) => {
      if (nowMs >= 2_000) stop.abort();
    });
    expect(times.windowMs).toBeLessThan(2_500);
    expect(measures.all.summary().turns).toEqual({ completed: 2, failed: 0, interrupted: 1 });
    expect(measures.sessions).toMatchObject({ offered: 3, completed: 0, cutShort: 3 });
    expect(measures.turnsNotSent).toBe(3);
    expect(ended).toHaveLength(3);
  });

  it("is no defect of the load test itself, which ends the run at once", async () => {
    const broken: Answer = async () => {
      throw new TypeError("a defect");
    };
    const { clock, run, measures } = setUp(scriptsAt([0, 1_000, 2_000]), broken);
    await expect(clock.runUntil(run())).rejects.toThrow("a defect");
    expect(measures.sessions.offered).toBe(1);
  });

  it("is nothing measured at all, too", () => {
    const measures = new Measures();
    measures.sessions.offered = 3;
    expect(isFine(resultOf(measures), false)).toBe(false);
  });
});
