/**
 * Who is in the next step, and with how many rows. Everyone who decodes has one row; prompts and lost spans share the rest of the step's
 * time (step-budget.ts), least served tenant first. While a prompt of another tenant waits, a tenant that asks for more than there is has
 * its decodes thinned out: they take turns in a small part of the step. Streams far ahead of their readers give way to prompts (pacing.ts).
 */
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import type { LogicalBlock } from "../kv/logical-block.ts";
import type { PlannedSlice } from "../sequence/planned-slice.ts";
import { firstRow } from "../sequence/runs.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { nextRows, type RowRange } from "../sequence/slice-planner.ts";
import type { EngineSettings } from "../settings.ts";
import type { CostModel, StepLoad } from "./cost-model.ts";
import { isAhead } from "./pacing.ts";
import type { Speculation } from "./speculation.ts";
import { StepBudget } from "./step-budget.ts";
import { addLoads, loadOf, NO_LOAD } from "./step-load.ts";
import type { Tenants } from "./tenants.ts";

/**
 * Of a step's time, what the decodes of greedy tenants take together; one row at least: while another tenant's prompt waits, while only prompts of
 * their own do, and while none does.
 */
const GREEDY_SHARE = { othersWait: 1 / 8, ownWait: 2 / 3, noneWaits: 1 } as const;
/**
 * While tenants share the engine, steps are planned to take so long at most, or so many times one of a single row: who comes waits for the step
 * under way. Tenants share it while others have work, or had some within this time.
 */
const SHARED_STEP_MS = 20;
const SHARED_STEP_GROWTH = 2;
const SHARED_RECENT_MS = 10_000;

/** What has its next token computed one by one, or several at once as guessed. */
interface DecodeRoom {
  /** Predicted time of the step without guesses, per sequence. */
  stepMs: number;
  /** Rows that may still be sampled. */
  sampledLeft: number;
}

/** A sequence with its rows of the step. */
export interface PlannedPart {
  sequence: Sequence;
  slice: PlannedSlice;
  load: StepLoad;
}

/** What a planner works with; all of it stays the engine's. */
export interface StepPlannerOptions {
  settings: EngineSettings;
  rowsMax: number;
  sampledMax: number;
  cost: CostModel;
  tenants: Tenants;
  speculation: Speculation;
  /** Open slots that can be had now. */
  slotsLeft(): number;
  /** Blocks that must come to the device, or get summaries, before these rows can run. */
  needs(sequence: Sequence, rows: RowRange): LogicalBlock[];
  /** Has them brought; the sequence is not running until then. */
  fetch(sequence: Sequence, rows: RowRange, needs: LogicalBlock[]): void;
  /** Takes the memory of the rows. @throws when there is none. */
  take(sequence: Sequence, rows: RowRange): PlannedSlice;
  fail(sequence: Sequence, error: unknown): void;
}

/** Plans the steps of one engine. */
export class StepPlanner {
  readonly #options: StepPlannerOptions;

  constructor(options: StepPlannerOptions) {
    this.#options = options;
  }

  /** The next step: empty when nobody can go on. Memory of its rows is taken. */
  plan(active: Iterable<Sequence>, nowMs: number): PlannedPart[] {
    const { tenants, settings } = this.#options;
    const ready = [...active].filter((one) => one.phase === "running" && !one.suspended && one.shortBlocks <= 0);
    const prompts = ready.filter((sequence) => !isDecoding(sequence));
    prompts.sort((a, b) => tenants.servedMs(a.namespace) - tenants.servedMs(b.namespace) || b.priority - a.priority);
    const decoding = ready.filter(isDecoding);
    const paced = prompts.length === 0 ? [] : decoding.filter((each) => isAhead(each, nowMs, settings.paceTokensPerS));
    const decodes = decoding.filter((sequence) => !paced.includes(sequence));
    const greedy = this.#greedyTenants(decodes, prompts, nowMs);
    const parts: PlannedPart[] = [];
    const room = this.#room(decodes, ready.length);
    for (const sequence of decodes) if (!greedy.names.has(sequence.namespace)) this.#addDecode(parts, sequence, room);
    const budget = this.#budget(parts, { ready, paced, nowMs });
    const thinned = decodes.filter(({ namespace }) => greedy.names.has(namespace));
    this.#addThinned(parts, thinned, { budget, share: greedy.share });
    for (const sequence of prompts) this.#addPrompt(parts, sequence, budget);
    return parts;
  }

  /** Whose decodes take turns, in which share of the step. */
  #greedyTenants(
    decodes: readonly Sequence[],
    prompts: readonly Sequence[],
    nowMs: number,
  ): { names: ReadonlySet<string>; share: number } {
    const { tenants, settings } = this.#options;
    const { runningMax } = settings;
    const next = prompts[0]?.namespace;
    const decoding = [...new Set(decodes.map(({ namespace }) => namespace))];
    const besideNext =
      next === undefined ? [] : decoding.filter((name) => name !== next && tenants.isGreedy(name, next, runningMax));
    if (besideNext.length > 0) return { names: new Set(besideNext), share: GREEDY_SHARE.othersWait };
    const besideAny = decoding.filter((name) =>
      tenants.isGreedyBesideAny(name, nowMs, { runningMax, recentMs: SHARED_RECENT_MS }),
    );
    return { names: new Set(besideAny), share: next === undefined ? GREEDY_SHARE.noneWaits : GREEDY_SHARE.ownWait };
  }

  /** A step takes as long as if those who give way were in it: what they leave is the prompts'. */
  #budget(
    parts: readonly PlannedPart[],
    { ready, paced, nowMs }: { ready: readonly Sequence[]; paced: readonly Sequence[]; nowMs: number },
  ): StepBudget {
    const { settings, cost, rowsMax, tenants } = this.#options;
    const isShared = ready[0] !== undefined && tenants.hasCompany(ready[0].namespace, nowMs, SHARED_RECENT_MS);
    const sharedMs = Math.max(SHARED_STEP_MS, SHARED_STEP_GROWTH * (cost.fixedMs + cost.rowMs(0)));
    const stepMsTarget = isShared ? Math.min(settings.stepMsTarget, sharedMs) : settings.stepMsTarget;
    const decodes = parts.map(({ load }) => load).reduce(addLoads, NO_LOAD);
    const withPaced = paced.map(decodeLoad).reduce(addLoads, decodes);
    return new StepBudget({ cost, targets: { ...settings, stepMsTarget }, rowsMax, decodes, withPaced });
  }

  /** Those whose last token is longest ago, as many as fit into their share. */
  #addThinned(
    parts: PlannedPart[],
    thinned: Sequence[],
    { budget, share }: { budget: StepBudget; share: number },
  ): void {
    let msLeft = budget.targetMs * share;
    for (const sequence of thinned.sort((a, b) => a.lastTokenMs - b.lastTokenMs)) {
      const part = this.#part(sequence, 1);
      if (!part) continue;
      parts.push(part);
      budget.takeDecode(part.load);
      msLeft -= this.#options.cost.predictMs(part.load) - this.#options.cost.fixedMs;
      if (msLeft <= 0 || budget.rowsLeft === 0) return;
    }
  }

  #addPrompt(parts: PlannedPart[], sequence: Sequence, budget: StepBudget): void {
    const position = firstRow(sequence);
    if (position === undefined) return;
    const rows = budget.rowsFor(sequence, position);
    let part = this.#part(sequence, rows);
    // A query group is never cut, so the first prompt's is taken whole.
    const groupRows = Math.max(PAGE_TOKENS, sequence.wayAt(position)?.groupTokens ?? 1);
    if (!part && budget.isFirst && rows < groupRows) part = this.#part(sequence, Math.min(groupRows, budget.rowsLeft));
    if (!part) return;
    parts.push(part);
    budget.take(part.load);
  }

  /** Guesses may take what the ready ones leave: each has a row to be sampled. */
  #room(decodes: readonly Sequence[], readyCount: number): DecodeRoom {
    const { cost, sampledMax } = this.#options;
    const stepMs = cost.predictMs(decodes.map(decodeLoad).reduce(addLoads, NO_LOAD)) / Math.max(1, decodes.length);
    return { stepMs, sampledLeft: sampledMax - readyCount };
  }

  #addDecode(parts: PlannedPart[], sequence: Sequence, room: DecodeRoom): void {
    const { rowsMax, settings, cost, speculation } = this.#options;
    const rowsLeft = Math.min(rowsMax, settings.stepRowsMax) - parts.reduce((sum, { load }) => sum + load.rows, 0);
    if (rowsLeft < 1) return;
    const draft = speculation.propose(sequence, cost, {
      stepMs: room.stepMs,
      rowsMax: Math.min(rowsLeft - 1, room.sampledLeft),
    });
    const part = this.#part(sequence, 1, draft);
    if (!part) return;
    room.sampledLeft -= draft.length;
    parts.push(part);
  }

  /** The next rows of a sequence, at most `rowsMax`, with memory taken for them; undefined when it has to wait or none fit. */
  #part(sequence: Sequence, rowsMax: number, draft?: Uint32Array): PlannedPart | undefined {
    const { slotsLeft, needs, fetch, take, fail } = this.#options;
    if (sequence.phase !== "running" || sequence.error !== undefined) return undefined;
    const rows = nextRows(sequence, rowsMax, slotsLeft());
    if (!rows) return undefined;
    const needed = needs(sequence, rows);
    if (needed.length > 0) {
      fetch(sequence, rows, needed);
      return undefined;
    }
    const sampledRows = rows.to === sequence.tokenCount ? 1 + (draft?.length ?? 0) : 0;
    if (draft?.length) Object.assign(rows, { draft, to: rows.to + draft.length });
    try {
      return { sequence, slice: take(sequence, rows), load: loadOf(sequence, { ...rows, sampledRows }) };
    } catch (error) {
      fail(sequence, error);
      return undefined;
    }
  }
}

function isDecoding(sequence: Sequence): boolean {
  return sequence.started && firstRow(sequence) === sequence.tokenCount - 1;
}

/** The load of a sequence's next token. */
function decodeLoad(sequence: Sequence): StepLoad {
  return loadOf(sequence, { from: sequence.tokenCount - 1, to: sequence.tokenCount, sampledRows: 1 });
}
