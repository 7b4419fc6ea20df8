/**
 * Plays a workload, open loop (sessions start when they arrive, however busy the target is) or closed loop (so many users). Latencies count from the moment
 * at which a turn was meant to start (arrival, or answer plus thinking), so a stalled generator or target shows in them.
 */
import type { Clock } from "../clock.ts";
import type { CompletedTurn, Measures, Objectives, TurnPlace } from "./measures.ts";
import { type Conversation, type Target, type TurnCall, TurnError, type TurnUsage } from "./target.ts";
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
  /** Closed loop: so many users, each of whom begins a session as soon as the one before is over; arrival times do not count. */
  users?: number | undefined;
  objectives?: Objectives | undefined;
  /** Times that a refused client comes back when it was told to (default 0); the wait is part of its latency. */
  returnsMax?: number | undefined;
  /** Told of every session that was played to its end: what was answered, turn by turn. */
  onSession?: ((script: Script, replies: readonly string[]) => void) | undefined;
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
  const { clock, signal, durationMs } = options;
  const run: Run = { ...options, startMs: clock.nowMs(), late: new AbortController() };
  const active = new Set<Promise<void>>();
  const defects: unknown[] = [];
  const over = AbortSignal.any([signal, run.late.signal]);
  const begin = (script: Script, startMs: number): Promise<void> => {
    const session = playSession(run, script, startMs)
      .catch((error: unknown) => {
        defects.push(error);
        run.late.abort();
      })
      .finally(() => active.delete(session));
    active.add(session);
    return session;
  };
  if (options.users === undefined) await openLoop(run, over, active, begin);
  else await closedLoop(run, options.users, over, begin);
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

type Begin = (script: Script, startMs: number) => Promise<void>;

/** Sessions start when they arrive, however busy the target is. */
async function openLoop(run: Run, over: AbortSignal, active: ReadonlySet<unknown>, begin: Begin): Promise<void> {
  const { clock, measures } = run;
  for (const script of run.scripts) {
    const startMs = run.startMs + script.arrivalMs;
    await clock.sleepUntil(startMs, over);
    if (over.aborted) return;
    measures.sessions.offered += 1;
    if (active.size >= run.sessionsActiveMax) measures.sessions.notSent += 1;
    else void begin(script, startMs);
  }
}

/** As many sessions at once as there are users, until the time is over. */
async function closedLoop(run: Run, users: number, over: AbortSignal, begin: Begin): Promise<void> {
  const { clock, measures } = run;
  const scripts = run.scripts[Symbol.iterator]();
  const endMs = run.startMs + run.durationMs;
  const user = async (): Promise<void> => {
    while (clock.nowMs() < endMs && !over.aborted) {
      const next = scripts.next();
      if (next.done) return;
      measures.sessions.offered += 1;
      await begin(next.value, clock.nowMs());
    }
  };
  await Promise.race([Promise.all(Array.from({ length: users }, user)), clock.sleepUntil(endMs, over)]);
}

async function playSession(run: Run, script: Script, startMs: number): Promise<void> {
  const { clock, measures } = run;
  const over = AbortSignal.any([run.signal, run.late.signal]);
  const conversation = run.target.openConversation(script.tenant);
  measures.sessions.started += 1;
  let sentCount = 0;
  let completedCount = 0;
  let intendedMs = startMs;
  const replies: string[] = [];
  for (const [index, turn] of script.turns.entries()) {
    if (index > 0) {
      intendedMs = clock.nowMs() + turn.thinkMs;
      await clock.sleepUntil(intendedMs, over);
    }
    if (over.aborted) break;
    const place = { className: script.className, tenant: script.tenant, isFirst: index === 0 };
    const reply = await playTurn({ run, conversation, place, script, index, turn, intendedMs, over });
    sentCount += 1;
    if (reply === undefined) break;
    replies.push(reply);
    completedCount += 1;
  }
  if (completedCount > 0) run.onSession?.(script, replies);
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

/** Resolves to the reply if it is complete; every end is counted exactly once. */
async function playTurn({
  run,
  conversation,
  place,
  script,
  index,
  turn,
  intendedMs,
  over,
}: TurnRun): Promise<string | undefined> {
  const { clock, measures } = run;
  const windowEndMs = run.startMs + run.durationMs;
  const deadline = AbortSignal.timeout(run.turnMsMax);
  const arrivals: number[] = [];
  let reply = "";
  const { abortAfterMs, readMs } = turn;
  const left = new AbortController();
  const isOver = new AbortController();
  const stop = AbortSignal.any([over, deadline, left.signal]);
  const onText = (delta: string): Promise<void> | undefined => {
    arrivals.push(clock.nowMs());
    reply += delta;
    return readMs === undefined ? undefined : clock.sleepUntil(clock.nowMs() + readMs, stop);
  };
  if (abortAfterMs !== undefined) {
    void clock.sleepUntil(clock.nowMs() + abortAfterMs, isOver.signal).then(() => left.abort());
  }
  measures.lag.record(Math.max(0, clock.nowMs() - intendedMs));
  if (intendedMs < windowEndMs) measures.window.turnsSent += 1;
  try {
    const usage = await sendObeying(run, conversation, { text: turn.text, signal: stop, onText });
    const endMs = clock.nowMs();
    const isRight = isRightAnswer(reply, turn.fact);
    if (!isRight) measures.noteWrong({ session: script.index, turn: index, expected: turn.fact.code, reply });
    const times = timesOf({ intendedMs, arrivals, endMs, usage });
    measures.complete(place, { usage, isRight, ...times });
    if (endMs < windowEndMs) {
      if (isWithin(times, run.objectives)) measures.window.turnsWithinObjectives += 1;
      measures.window.turnsCompleted += 1;
      measures.window.completionTokens += usage.completionTokens;
    }
    return reply;
  } catch (thrown) {
    if (!(thrown instanceof TurnError)) throw thrown;
    const aborted = (code: string, message: string) => ({ code, message, isRefusal: false });
    if (run.signal.aborted) measures.interrupt(place);
    else if (left.signal.aborted) measures.aborts += 1;
    else if (over.aborted) measures.fail(place, aborted("unfinished", "The run ended before the reply was complete."));
    else if (deadline.aborted) measures.fail(place, aborted("timeout", `No whole reply in ${run.turnMsMax} ms.`));
    else measures.fail(place, thrown);
    return undefined;
  } finally {
    isOver.abort();
  }
}

/** Sends a turn; a client that was refused comes back as it was told, in whole seconds as HTTP says it. @throws {TurnError} the last one. */
async function sendObeying(run: Run, conversation: Conversation, call: TurnCall): Promise<TurnUsage> {
  const { clock, measures, returnsMax = 0 } = run;
  for (let visit = 0; ; visit++) {
    try {
      const usage = await conversation.send(call);
      if (visit === 1) noteReturn(measures, true);
      return usage;
    } catch (thrown) {
      if (!(thrown instanceof TurnError)) throw thrown;
      if (visit === 1 && !call.signal.aborted) noteReturn(measures, !thrown.isRefusal);
      const { retryAfterMs } = thrown;
      if (!thrown.isRefusal || retryAfterMs === undefined || visit >= returnsMax) throw thrown;
      if (visit === 0) measures.retryAfter.told += 1;
      await clock.sleepUntil(clock.nowMs() + Math.ceil(retryAfterMs / 1000) * 1000, call.signal);
      if (call.signal.aborted) throw thrown;
    }
  }
}

function noteReturn({ retryAfter }: Measures, isAdmitted: boolean): void {
  retryAfter.cameBack += 1;
  if (isAdmitted) retryAfter.admitted += 1;
}

function isWithin(
  { firstTokenMs, perTokenMs }: ReturnType<typeof timesOf>,
  objectives: Objectives | undefined,
): boolean {
  if (objectives === undefined) return true;
  return (firstTokenMs ?? 0) <= objectives.firstTokenMs && (perTokenMs ?? 0) <= objectives.perTokenMs;
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
