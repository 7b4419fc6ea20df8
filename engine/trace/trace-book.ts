/**
 * Traces of the latest requests: what happened to each and when, without a word of it. A ring: the oldest trace goes when a new one comes, and one
 * trace holds so many events; decode steps are written as runs.
 */
import type { RequestTrace, ResumeUsage, TraceEvent } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { EngineObserver } from "../observer.ts";
import type { PlannedPart } from "../schedule/step-planner.ts";
import type { Sequence } from "../sequence/sequence.ts";

/** A run of decode steps ends after so many tokens or this long, so that a stall shows. */
const RUN_TOKENS = 32;
const RUN_MS = 1_000;

interface Trace {
  requestId: string;
  startMs: number;
  events: TraceEvent[];
  droppedCount: number;
  waitFromMs: number | undefined;
  run: { fromMs: number; lastMs: number; tokens: number; gapMsMax: number } | undefined;
}

/** Listens to an engine. */
export class TraceBook implements EngineObserver {
  /** In order of arrival. */
  readonly #traces = new Map<string, Trace>();

  /** The newest trace of a request id, or of an id that the edge made of it (`ID.…`); undefined when it is gone or never was. */
  find(requestId: string): RequestTrace | undefined {
    const ids = [...this.#traces.keys()];
    const id = ids.findLast((known) => known === requestId || known.startsWith(`${requestId}.`));
    const trace = id === undefined ? undefined : this.#traces.get(id);
    if (!trace) return undefined;
    const { events, droppedCount } = trace;
    const run = trace.run === undefined ? [] : [runEvent(trace, trace.run)];
    return { requestId: trace.requestId, events: [...events, ...run], droppedCount };
  }

  queued(sequence: Sequence, nowMs: number): void {
    const { request, tokenCount } = sequence;
    const trace: Trace = {
      ...{ requestId: request.requestId, startMs: nowMs, events: [], droppedCount: 0 },
      ...{ waitFromMs: undefined, run: undefined },
    };
    this.#traces.delete(request.requestId);
    this.#traces.set(request.requestId, trace);
    if (this.#traces.size > LIMITS.traceCountMax) this.#traces.delete(this.#traces.keys().next().value as string);
    const { maxTokens, turnStart } = request;
    add(trace, nowMs, "queued", {
      promptTokens: tokenCount,
      earlierTokens: turnStart,
      maxTokens,
      blocks: sequence.blocksMax,
    });
  }

  refused(requestId: string, code: string, nowMs: number): void {
    const known = this.#traces.get(requestId);
    if (known) add(known, nowMs, `refused ${code}`, {});
  }

  admitted(sequence: Sequence, nowMs: number): void {
    this.#add(sequence, nowMs, "admitted", { queueMs: sequence.usage.queueMs });
  }

  /** The session's manifest was read from the store; summaries and tail follow. No listener's event: only a trace needs it. */
  manifestRead(sequence: Sequence, nowMs: number, tokenCount: number): void {
    this.#add(sequence, nowMs, "manifest", { tokenCount });
  }

  /** Summaries and tail of a session are there, or known to be missing. */
  summariesRead(sequence: Sequence, nowMs: number): void {
    this.#add(sequence, nowMs, "summaries", { bytes: sequence.usage.bytesBeforeFirstToken });
  }

  /** How the session comes back was decided; with `auto` by these expectations. */
  resumeChosen(sequence: Sequence, nowMs: number, { mode, predictedMs = {} }: ResumeUsage): void {
    const fields = Object.entries(predictedMs).map(([way, ms]) => [`${way}Ms`, ms]);
    this.#add(sequence, nowMs, `resume ${mode}`, Object.fromEntries(fields));
  }

  /** While it waits: so many blocks of a layer ahead were guessed and asked for. */
  guessed(sequence: Sequence, nowMs: number, guess: { layer: number; blocks: number }): void {
    this.#add(sequence, nowMs, "guess", guess);
  }

  attached(sequence: Sequence, nowMs: number): void {
    const { source, cachedTokens, bytesBeforeFirstToken, pagesBeforeFirstToken } = sequence.usage;
    const { device, host, store } = source;
    this.#add(sequence, nowMs, "attached", { cachedTokens, device, host, store });
    if (bytesBeforeFirstToken > 0)
      this.#add(sequence, nowMs, "burst", { bytes: bytesBeforeFirstToken, pages: pagesBeforeFirstToken });
  }

  stepped(parts: readonly PlannedPart[], { startMs, endMs }: { startMs: number; endMs: number }): void {
    const rows = parts.reduce((sum, { slice }) => sum + slice.to - slice.from, 0);
    for (const { sequence, slice } of parts) {
      if (sequence.started) continue;
      const ms = endMs - startMs;
      const isReplay = slice.from < sequence.request.turnStart;
      const fields = { from: slice.from, to: slice.to, ms, stepRows: rows };
      this.#add(sequence, startMs, isReplay ? "replay chunk" : "prefill chunk", fields);
    }
  }

  missed(sequence: Sequence, blockCount: number, nowMs: number, layer?: number): void {
    const trace = this.#of(sequence);
    if (!trace) return;
    trace.waitFromMs = nowMs;
    this.#endRun(trace);
    add(trace, nowMs, "miss", { blocks: blockCount, ...(layer === undefined ? {} : { layer }) });
  }

  resumed(sequence: Sequence, nowMs: number): void {
    const trace = this.#of(sequence);
    if (trace?.waitFromMs === undefined) return;
    add(trace, nowMs, "blocks came", { waitedMs: nowMs - trace.waitFromMs });
    trace.waitFromMs = undefined;
  }

  filled(sequence: Sequence, nowMs: number): void {
    const { bytesFetched, pagesFetched } = sequence.usage;
    this.#add(sequence, nowMs, "filled", { bytes: bytesFetched, pages: pagesFetched });
  }

  preempted(sequence: Sequence, nowMs: number): void {
    const trace = this.#of(sequence);
    if (!trace) return;
    this.#endRun(trace);
    const { blocks, preemptedCount } = sequence;
    add(trace, nowMs, "preempted", { blocks: blocks.length, times: preemptedCount });
  }

  restored(sequence: Sequence, nowMs: number): void {
    const { blocks, reservedCount } = sequence;
    this.#add(sequence, nowMs, "restored", { blocks: blocks.length, reserved: reservedCount });
  }

  token(sequence: Sequence, nowMs: number, previousMs: number): void {
    const trace = this.#of(sequence);
    if (!trace) return;
    if (previousMs === 0) {
      const { firstTokenMs, pagesMissed, bytesBeforeFirstToken: bytes } = sequence.usage;
      add(trace, nowMs, "first token", { firstTokenMs, pagesMissed, bytes });
      return;
    }
    trace.run ??= { fromMs: previousMs, lastMs: previousMs, tokens: 0, gapMsMax: 0 };
    const { run } = trace;
    run.tokens += 1;
    run.gapMsMax = Math.max(run.gapMsMax, nowMs - previousMs);
    run.lastMs = nowMs;
    if (run.tokens >= RUN_TOKENS || nowMs - run.fromMs >= RUN_MS) this.#endRun(trace);
  }

  concluded(sequence: Sequence, outcome: string, nowMs: number): void {
    const trace = this.#of(sequence);
    if (!trace) return;
    this.#endRun(trace);
    const { completionTokens, totalMs, pagesMissed } = sequence.usage;
    add(trace, nowMs, `ended ${outcome}`, { completionTokens, totalMs, pagesMissed });
  }

  settled(sequence: Sequence, nowMs: number): void {
    const computed = sequence.request.session === undefined ? {} : { computedTokens: sequence.tokenCount };
    this.#add(sequence, nowMs, sequence.request.session === undefined ? "released" : "commit queued", computed);
  }

  /** The manifest with the turn's KV is in the store. */
  committed(requestId: string, fields: { tokens: number; generation: number }, nowMs: number): void {
    const trace = this.#traces.get(requestId);
    if (trace) add(trace, nowMs, "committed", fields);
  }

  #of({ request }: Sequence): Trace | undefined {
    return this.#traces.get(request.requestId);
  }

  #add(sequence: Sequence, nowMs: number, name: string, fields: Record<string, number>): void {
    const trace = this.#of(sequence);
    if (trace) add(trace, nowMs, name, fields);
  }

  #endRun(trace: Trace): void {
    if (trace.run === undefined) return;
    push(trace, runEvent(trace, trace.run));
    trace.run = undefined;
  }
}

function runEvent(trace: Trace, run: NonNullable<Trace["run"]>): TraceEvent {
  const { fromMs, lastMs, tokens, gapMsMax } = run;
  return {
    atMs: round(fromMs - trace.startMs),
    name: "decode",
    fields: rounded({ tokens, ms: lastMs - fromMs, gapMsMax }),
  };
}

function add(trace: Trace, nowMs: number, name: string, fields: Record<string, number>): void {
  push(trace, { atMs: round(nowMs - trace.startMs), name, fields: rounded(fields) });
}

function push(trace: Trace, event: TraceEvent): void {
  if (trace.events.length < LIMITS.traceEventCountMax) trace.events.push(event);
  else trace.droppedCount += 1;
}

function rounded(fields: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, round(value)]));
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
