/**
 * Who is in the next step, and with how many rows. Everyone who decodes has one row; prompts and lost spans share the rest of the step's
 * time (step-budget.ts), least served tenant first. While a prompt of another tenant waits, a tenant that asks for more than there is has
 * its decodes thinned out: they take turns in a small part of the step.
 */
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import type { LogicalBlock } from "../kv/block-cache.ts";
import type { PlannedSlice } from "../sequence/planned-slice.ts";
import { firstRow } from "../sequence/runs.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { nextRows, type RowRange } from "../sequence/slice-planner.ts";
import type { EngineSettings } from "../settings.ts";
import type { CostModel, StepLoad } from "./cost-model.ts";
import type { Speculation } from "./speculation.ts";
import { StepBudget } from "./step-budget.ts";
import { addLoads, loadOf, NO_LOAD } from "./step-load.ts";
import type { Tenants } from "./tenants.ts";

/** Of a step's time, what the decodes of greedy tenants take together while another tenant's prompt waits; one row at least. */
const GREEDY_SHARE = 1 / 4;
/** Steps are so much shorter while tenants share the engine: who comes waits for the step under way. */
const SHARED_STEP_SHARE = 1 / 2;

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
    const { tenants } = this.#options;
    const ready = [...active].filter((sequence) => sequence.phase === "running" && !sequence.suspended);
    const prompts = ready.filter((sequence) => !isDecoding(sequence));
    prompts.sort((a, b) => tenants.servedMs(a.namespace) - tenants.servedMs(b.namespace) || b.priority - a.priority);
    const decodes = ready.filter(isDecoding);
    const greedy = new Set(this.#greedyTenants(decodes, prompts));
    const parts: PlannedPart[] = [];
    const room = this.#room(decodes, ready.length);
    for (const sequence of decodes) if (!greedy.has(sequence.namespace)) this.#addDecode(parts, sequence, room);
    const budget = this.#budget(parts, { ready, prompts, greedy, nowMs });
    const thinned = decodes.filter(({ namespace }) => greedy.has(namespace));
    this.#addThinned(parts, thinned, budget);
    for (const sequence of prompts) this.#addPrompt(parts, sequence, budget);
    return parts;
  }

  #greedyTenants(decodes: readonly Sequence[], prompts: readonly Sequence[]): string[] {
    const { tenants, settings } = this.#options;
    const next = prompts[0]?.namespace;
    if (next === undefined) return [];
    const others = new Set(decodes.map(({ namespace }) => namespace));
    return [...others].filter((name) => name !== next && tenants.isGreedy(name, next, settings.runningMax));
  }

  #budget(
    parts: readonly PlannedPart[],
    step: { ready: readonly Sequence[]; prompts: readonly Sequence[]; greedy: ReadonlySet<string>; nowMs: number },
  ): StepBudget {
    const { settings, cost, rowsMax, tenants } = this.#options;
    const first = step.prompts[0];
    const isShared = first !== undefined && tenants.hasCompany(first.namespace, step.nowMs);
    const stepMsTarget = settings.stepMsTarget * (isShared ? SHARED_STEP_SHARE : 1);
    const decodes = parts.map(({ load }) => load).reduce(addLoads, NO_LOAD);
    return new StepBudget({ cost, targets: { ...settings, stepMsTarget }, rowsMax, decodes });
  }

  /** Those whose last token is longest ago, as many as fit into their share. */
  #addThinned(parts: PlannedPart[], thinned: Sequence[], budget: StepBudget): void {
    let msLeft = budget.targetMs * GREEDY_SHARE;
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
    if (!part && budget.isFirst && rows < PAGE_TOKENS)
      part = this.#part(sequence, Math.min(PAGE_TOKENS, budget.rowsLeft));
    if (!part) return;
    parts.push(part);
    budget.take(part.load);
  }

  /** Guesses may take what the ready ones leave: each has a row to be sampled. */
  #room(decodes: readonly Sequence[], readyCount: number): DecodeRoom {
    const { cost, sampledMax } = this.#options;
    const loads = decodes.map((sequence) =>
      loadOf(sequence, { from: sequence.tokenCount - 1, to: sequence.tokenCount, sampledRows: 1 }),
    );
    const stepMs = cost.predictMs(loads.reduce(addLoads, NO_LOAD)) / Math.max(1, decodes.length);
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
