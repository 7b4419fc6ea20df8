/**
 * Plays a workload, open loop: sessions start when they arrive, however busy the target is. Latencies count from the moment
 * at which a turn was meant to start (arrival, or answer plus thinking), so a stalled generator or target shows in them.
 */
import type { Clock } from "../clock.ts";
import type { CompletedTurn, Measures, TurnPlace } from "./measures.ts";
import { type Conversation, type Target, TurnError, type TurnUsage } from "./target.ts";
import { isRightAnswer } from "./text.ts";
import type { Script, ScriptTurn } from "./workload.ts";

/** Forgetting a session is no part of what is measured, and may not hold up the end. */
const cleanupMsMax = 10_000;

/** What a run needs. */
export interface DriveOptions {
  /** In the order of their arrival. */
  scripts: Iterable<Script>;
  target: Target;
  clock: Clock;
  measures: Measures;
  /** Arrivals end here; turns that start later belong to sessions that are under way. */
  durationMs: number;
  /** Sessions in progress at once, thinking ones included; arrivals beyond it are counted and not sent. */
  sessionsActiveMax: number;
  turnMsMax: number;
  /** How long sessions may go on behind the last arrival before they are ended as failed. */
  drainMs: number;
  /** Whether the target forgets each session at its end. */
  deleteSessions: boolean;
  /** The user's stop: ends everything at once. */
  signal: AbortSignal;
}

/** When a run really was. */
export interface DriveTimes {
  /** Length of the window of the arrivals: `durationMs`, or less when the user stopped it. */
  windowMs: number;
  /** Until the last turn ended. */
  elapsedMs: number;
}

interface Run extends DriveOptions {
  startMs: number;
  /** Fires when the drain is over. */
  late: AbortController;
}

/** Plays all sessions and resolves when none is in progress any more. A target's failures are counted, never thrown. */
export async function drive(options: DriveOptions): Promise<DriveTimes> {
  const { clock, measures, signal, durationMs } = options;
  const run: Run = { ...options, startMs: clock.nowMs(), late: new AbortController() };
  const active = new Set<Promise<void>>();
  const defects: unknown[] = [];
  const over = AbortSignal.any([signal, run.late.signal]);
  for (const script of options.scripts) {
    await clock.sleepUntil(run.startMs + script.arrivalMs, over);
    if (over.aborted) break;
    measures.sessions.offered += 1;
    if (active.size >= options.sessionsActiveMax) {
      measures.sessions.notSent += 1;
      continue;
    }
    const session = playSession(run, script)
      .catch((error: unknown) => {
        defects.push(error);
        run.late.abort();
      })
      .finally(() => active.delete(session));
    active.add(session);
  }
  await clock.sleepUntil(run.startMs + durationMs, over);
  const windowMs = Math.min(durationMs, clock.nowMs() - run.startMs);
  const drained = new AbortController();
  const ended = Promise.all(active).then(() => drained.abort());
  await clock.sleepUntil(clock.nowMs() + options.drainMs, AbortSignal.any([drained.signal, over]));
  run.late.abort();
  await ended;
  if (defects.length > 0) throw defects[0];
  return { windowMs, elapsedMs: clock.nowMs() - run.startMs };
}

async function playSession(run: Run, script: Script): Promise<void> {
  const { clock, measures } = run;
  const over = AbortSignal.any([run.signal, run.late.signal]);
  const conversation = run.target.openConversation();
  measures.sessions.started += 1;
  let sentCount = 0;
  let completedCount = 0;
  let intendedMs = run.startMs + script.arrivalMs;
  for (const [index, turn] of script.turns.entries()) {
    if (index > 0) {
      intendedMs = clock.nowMs() + turn.thinkMs;
      await clock.sleepUntil(intendedMs, over);
    }
    if (over.aborted) break;
    const place = { className: script.className, isFirst: index === 0 };
    const isComplete = await playTurn({ run, conversation, place, script, index, turn, intendedMs, over });
    sentCount += 1;
    if (!isComplete) break;
    completedCount += 1;
  }
  if (completedCount === script.turns.length) measures.sessions.completed += 1;
  else measures.sessions.cutShort += 1;
  measures.turnsNotSent += script.turns.length - sentCount;
  if (run.deleteSessions) await forget(conversation, measures);
}

async function forget(conversation: Conversation, measures: Measures): Promise<void> {
  try {
    await conversation.end(AbortSignal.timeout(cleanupMsMax));
  } catch {
    measures.cleanupFailures += 1;
  }
}

interface TurnRun {
  run: Run;
  conversation: Conversation;
  place: TurnPlace;
  script: Script;
  index: number;
  turn: ScriptTurn;
  intendedMs: number;
  /** The user's stop, or the end of the drain. */
  over: AbortSignal;
}

/** Resolves to whether the reply is complete; every end is counted exactly once. */
async function playTurn({
  run,
  conversation,
  place,
  script,
  index,
  turn,
  intendedMs,
  over,
}: TurnRun): Promise<boolean> {
  const { clock, measures } = run;
  const windowEndMs = run.startMs + run.durationMs;
  const deadline = AbortSignal.timeout(run.turnMsMax);
  const arrivals: number[] = [];
  let reply = "";
  const onText = (delta: string): void => {
    arrivals.push(clock.nowMs());
    reply += delta;
  };
  measures.lag.record(Math.max(0, clock.nowMs() - intendedMs));
  if (intendedMs < windowEndMs) measures.window.turnsSent += 1;
  try {
    const usage = await conversation.send({ text: turn.text, signal: AbortSignal.any([over, deadline]), onText });
    const endMs = clock.nowMs();
    const isRight = isRightAnswer(reply, turn.fact);
    if (!isRight) measures.noteWrong({ session: script.index, turn: index, expected: turn.fact.code, reply });
    measures.complete(place, { usage, isRight, ...timesOf({ intendedMs, arrivals, endMs, usage }) });
    if (endMs < windowEndMs) {
      measures.window.turnsCompleted += 1;
      measures.window.completionTokens += usage.completionTokens;
    }
    return true;
  } catch (thrown) {
    if (!(thrown instanceof TurnError)) throw thrown;
    const aborted = (code: string, message: string) => ({ code, message, isRefusal: false });
    if (run.signal.aborted) measures.interrupt(place);
    else if (over.aborted) measures.fail(place, aborted("unfinished", "The run ended before the reply was complete."));
    else if (deadline.aborted) measures.fail(place, aborted("timeout", `No whole reply in ${run.turnMsMax} ms.`));
    else measures.fail(place, thrown);
    return false;
  }
}

interface TurnTimes {
  intendedMs: number;
  /** When each piece of text came. */
  arrivals: readonly number[];
  endMs: number;
  usage: TurnUsage;
}

/** The durations of a turn that came to its end. */
export function timesOf({
  intendedMs,
  arrivals,
  endMs,
  usage,
}: TurnTimes): Pick<CompletedTurn, "firstTokenMs" | "betweenDeltasMs" | "perTokenMs" | "turnMs"> {
  const [first] = arrivals;
  const last = arrivals.at(-1);
  const laterTokens = usage.completionTokens - 1;
  const isMeasurable = first !== undefined && last !== undefined && arrivals.length > 1 && laterTokens > 0;
  return {
    firstTokenMs: first === undefined ? undefined : first - intendedMs,
    betweenDeltasMs: arrivals.slice(1).map((atMs, index) => atMs - (arrivals[index] ?? atMs)),
    perTokenMs: isMeasurable ? (last - first) / laterTokens : undefined,
    turnMs: endMs - intendedMs,
  };
}
