/** Runs all sessions of a workload through one router. Seeded: the same settings give the same figures. */
import { DurationHistogram, type DurationSummary } from "../histogram.ts";
import { drawExponential, seededRandom } from "../random.ts";
import { EventQueue } from "./event-queue.ts";
import { ROUTERS } from "./routers.ts";
import { SimEngines } from "./sim-engines.ts";
import { type SimSession, Workload } from "./workload.ts";

/** What is simulated. */
export interface SimulationOptions {
  router: string;
  engineCount: number;
  sessionCount: number;
  /** New sessions a second, per engine. */
  sessionsPerSecond: number;
  seed: number;
  signal?: AbortSignal | undefined;
}

/** What came of it, without the first tenth of the sessions: caches are filled then. */
export interface SimulationResult {
  router: string;
  turnCount: number;
  promptTokens: number;
  /** Share of the prompt tokens that were on the device of the engine that served them. */
  hitShare: number;
  firstTokenMs: DurationSummary;
  /** Share of the engines' time in which they computed prompts. */
  prefillShare: number;
  /** Turns of the busiest engine against the mean. */
  imbalance: number;
  simulatedMs: number;
}

/** @returns undefined when `signal` stopped it */
export function simulate(options: SimulationOptions): SimulationResult | undefined {
  const { router: name, engineCount, sessionCount, seed } = options;
  const engines = new SimEngines(engineCount);
  const workload = new Workload(seed);
  const open = ROUTERS[name];
  if (!open) throw new Error(`no router is called ${name}`);
  const route = open(engines, seed);
  const arrivals = seededRandom(seed, 0xffff_fffe);
  const meanGapMs = 1_000 / (options.sessionsPerSecond * engineCount);
  const waiting = new Map<number, SimSession>();
  const turns = new EventQueue();
  const warmCount = Math.floor(sessionCount / 10);
  const figures = { turnCount: 0, promptTokens: 0, heldTokens: 0, firstToken: new DurationHistogram() };
  let arrivedCount = 0;
  let arrivalMs = drawExponential(arrivals, meanGapMs);
  let nowMs = 0;
  for (let step = 0; arrivedCount < sessionCount || turns.size > 0; step++) {
    if (step % 4_096 === 0 && options.signal?.aborted) return undefined;
    let session: SimSession;
    if (arrivedCount < sessionCount && arrivalMs <= turns.nextMs) {
      nowMs = arrivalMs;
      arrivalMs += drawExponential(arrivals, meanGapMs);
      session = workload.session(arrivedCount++);
    } else {
      nowMs = turns.nextMs;
      const id = turns.pop();
      session = waiting.get(id) as SimSession;
      waiting.delete(id);
    }
    engines.advance(nowMs);
    const turn = workload.turn(session);
    const engine = route(session, turn, nowMs);
    const served = engines.serve(engine, session, turn, nowMs);
    session.engine = engine;
    session.endedMs = served.endMs;
    session.loggedTokens = served.promptTokens + turn.replyTokens;
    session.turnsLeft -= 1;
    if (session.turnsLeft > 0) {
      waiting.set(session.id, session);
      turns.push(served.endMs + workload.thinkMs(session), session.id);
    }
    if (session.id < warmCount) continue;
    figures.turnCount += 1;
    figures.promptTokens += served.promptTokens;
    figures.heldTokens += served.heldTokens;
    figures.firstToken.record(served.firstTokenMs);
  }
  const total = engines.turnCounts.reduce((sum, count) => sum + count, 0);
  return {
    router: name,
    turnCount: figures.turnCount,
    promptTokens: figures.promptTokens,
    hitShare: figures.heldTokens / figures.promptTokens,
    firstTokenMs: figures.firstToken.summary(),
    prefillShare: engines.busyMs / (nowMs * engineCount),
    imbalance: Math.max(...engines.turnCounts) / (total / engineCount),
    simulatedMs: nowMs,
  };
}
