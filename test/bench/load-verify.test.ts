import { describe, expect, it } from "vitest";
import { type DriveOptions, drive } from "../../bench/load/driver.ts";
import { Measures } from "../../bench/load/measures.ts";
import { loadPage } from "../../bench/load/page.ts";
import { isFine, loadResult, reportLines } from "../../bench/load/report.ts";
import { type Target, type TurnCall, TurnError, type TurnUsage } from "../../bench/load/target.ts";
import { chooseSessions, type PlayedSession, verify } from "../../bench/load/verify.ts";
import { drawEndlessly, drawScripts, type Script } from "../../bench/load/workload.ts";
import { VirtualClock } from "./virtual-clock.ts";

const usage: TurnUsage = {
  promptTokens: 10,
  completionTokens: 3,
  cachedTokens: 0,
  source: { device: 0, host: 0, store: 0 },
};
const settings = {
  seed: 3,
  ratePerS: 2,
  durationS: 60,
  turnsMax: 3,
  thinkMeanS: 0.5,
  mix: [1, 0, 0],
  promptCharsMax: 8000,
};

/** Echoes the length of what it is asked, piece by piece; `answer` may spoil it. */
function target(clock: VirtualClock, answer: (text: string, call: number) => string): Target {
  let calls = 0;
  return {
    description: "an echo",
    openConversation: () => ({
      async send({ text, signal, onText }: TurnCall) {
        calls += 1;
        for (const piece of answer(`${text.length}`, calls)) {
          await clock.sleepUntil(clock.nowMs() + 100, signal);
          if (signal.aborted) throw new TurnError("connection", "gone");
          await onText(piece);
        }
        return usage;
      },
      end: async () => undefined,
    }),
  };
}

function run(
  scripts: Iterable<Script>,
  echo: (text: string, call: number) => string,
  options: Partial<DriveOptions> = {},
) {
  const clock = new VirtualClock();
  const measures = new Measures();
  const played: PlayedSession[] = [];
  const to = target(clock, echo);
  const done = drive({
    ...{ scripts, target: to, clock, measures, durationMs: 60_000, sessionsActiveMax: 1000, turnMsMax: 1e6 },
    ...{ drainMs: 60_000, deleteSessions: false, signal: new AbortController().signal },
    onSession: (script, replies) => void played.push({ script, replies }),
    ...options,
  });
  return { clock, measures, played, to, done };
}

const fails = async (): Promise<never> => {
  throw new TurnError("no_engine", "no engine");
};

const stop = { turnMsMax: 1e6, signal: new AbortController().signal };

describe("texts under load against texts alone", () => {
  it("are compared turn by turn, and one other letter fails the run", async () => {
    for (const spoiled of [0, 17]) {
      const { clock, measures, played, to, done } = run(drawScripts(settings), (text, call) =>
        call === spoiled ? `${text}!` : text,
      );
      const times = await clock.runUntil(done);
      const verification = await clock.runUntil(verify(to, chooseSessions(played, 10_000), stop));
      const result = loadResult({
        ...{ measured: "", settings: {}, measures, times, ratePerS: 2 },
        interrupted: false,
        verification,
      });
      expect(verification.turnsCompared).toBeGreaterThan(100);
      expect(verification.wrong).toHaveLength(spoiled === 0 ? 0 : 1);
      expect(verification.wrong.every(({ loaded, alone }) => loaded === `${alone}!`)).toBe(true);
      expect(isFine(result, false)).toBe(spoiled === 0);
      expect(reportLines(result).join("\n")).toMatch(spoiled === 0 ? /none differs/ : /1 WRONG/);
    }
  });

  it("that cannot be had alone fail the run, which says why", async () => {
    const { clock, measures, played, to, done } = run(drawScripts(settings), (text) => text);
    const times = await clock.runUntil(done);
    const broken: Target = { ...to, openConversation: () => Object.assign(to.openConversation(), { send: fails }) };
    const verification = await clock.runUntil(verify(broken, chooseSessions(played, 2), stop));
    expect(verification).toMatchObject({ failed: 2, turnsCompared: 0, firstFailure: "session 0: no engine" });
    const figures = { measured: "", settings: {}, measures, times, ratePerS: 2, interrupted: false, verification };
    expect(isFine(loadResult(figures), false)).toBe(false);
    expect(reportLines(loadResult(figures))).toContain("  session 0: no engine");
  });

  it("are those of sessions spread over the run", () => {
    const played = Array.from({ length: 100 }, (_, index) => ({ script: { index } as Script, replies: ["a"] }));
    expect(chooseSessions(played, 4).map(({ script }) => script.index)).toEqual([0, 25, 50, 75]);
    expect(chooseSessions(played.slice(0, 2), 4)).toHaveLength(2);
    expect(chooseSessions([], 4)).toEqual([]);
  });
});

describe("manners of clients", () => {
  it("are drawn apart from what they say", () => {
    const plain = [...drawScripts(settings)];
    const rude = [...drawScripts({ ...settings, abortShare: 0.3, slowShare: 0.3, tenants: [3, 1] })];
    const words = (scripts: Script[]) =>
      scripts.map(({ turns, arrivalMs }) => [arrivalMs, turns.map(({ text }) => text)]);
    expect(words(rude)).toEqual(words(plain));
    const turns = rude.flatMap((script) => script.turns);
    const share = (has: (turn: (typeof turns)[number]) => boolean) => turns.filter(has).length / turns.length;
    for (const found of [
      share(({ abortAfterMs }) => abortAfterMs !== undefined),
      share(({ readMs }) => readMs !== undefined),
    ])
      expect(Math.abs(found - 0.3)).toBeLessThan(0.1);
    expect(Math.abs(rude.filter(({ tenant }) => tenant === 0).length / rude.length - 0.75)).toBeLessThan(0.1);
  });

  it("abort turns, which fail nothing, and read slowly, which shows", async () => {
    const turn = { text: "12345", fact: { name: "x", code: "5" }, thinkMs: 0 };
    const base = { className: "short", tenant: 0 } as const;
    const scripts: Script[] = [
      { ...base, index: 0, arrivalMs: 0, turns: [{ ...turn, abortAfterMs: 150 }, turn] },
      { ...base, index: 1, arrivalMs: 0, turns: [{ ...turn, readMs: 300 }] },
    ];
    const { clock, measures, played, done } = run(scripts, () => "555");
    await clock.runUntil(done);
    expect(measures.aborts).toBe(1);
    expect(measures.all.summary()).toMatchObject({ turns: { completed: 1, failed: 0 }, turnMs: { max: 1200 } });
    expect(measures.sessions).toMatchObject({ completed: 1, cutShort: 1 });
    expect(played.map(({ script }) => script.index)).toEqual([1]);
  });
});

describe("arrivals", () => {
  it("of bursts come in the first quarter of each period, as many as without", () => {
    const bursts = [...drawScripts({ ...settings, burstPeriodS: 10 })];
    expect(bursts.length).toBe([...drawScripts(settings)].length);
    expect(bursts.every(({ arrivalMs }) => arrivalMs % 10_000 < 2_500)).toBe(true);
  });

  it("of a closed loop keep so many sessions in progress, no more", async () => {
    const { clock, measures, done } = run(drawEndlessly(settings), (text) => text, { users: 5 });
    let most = 0;
    await clock.runUntil(done, () => {
      const { started, completed, cutShort } = measures.sessions;
      most = Math.max(most, started - completed - cutShort);
    });
    expect(most).toBe(5);
    expect(measures.sessions.completed).toBeGreaterThan(50);
    expect(measures.sessions.completed).toBe(measures.sessions.started);
  });
});

describe("the page", () => {
  it("shows figures and plots and takes nothing from elsewhere", async () => {
    const { clock, measures, done } = run(drawScripts(settings), (text) => text);
    const times = await clock.runUntil(done);
    const result = loadResult({
      ...{ measured: "<b>&", settings: { a: 1 }, measures, times, ratePerS: 2 },
      interrupted: false,
    });
    const samples = [0, 1, 2].map((atS) => ({
      atS,
      sessionsActive: atS,
      turnsCompleted: 3 * atS,
      turnsFailed: 0,
      firstTokenMsMax: atS === 1 ? undefined : 40,
      memoryBytes: {},
    }));
    const page = loadPage(result, reportLines(result), samples);
    expect(page).toContain("&lt;b&gt;&amp;");
    expect(page.match(/<svg/g)).toHaveLength(3);
    expect(page.match(/NaN|undefined|Infinity/)).toBeNull();
    expect(page.match(/https?:|<script|@import/)).toBeNull();
  });
});
