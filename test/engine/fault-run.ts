/**
 * One seeded life of several sessions on two engines that share a faulty page store: turns side by side, forks, cuts, aborts, evictions
 * and engines that die. Every reply is held against a naive twin, which knows nothing but the log: an engine that finds no KV at all
 * and computes each turn from its ids and spans.
 */
import { expect } from "vitest";
import type { Ticket } from "../../engine/engine.ts";
import type { EngineUsage, FinishReason, GenerateRequest, SelectionRequest, Span } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { type PageStore, StoreError } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { type FaultRates, faultyStore } from "../storage/faulty-store.ts";
import { openTestEngine, randomIds, request, type TestEngine, untilIdle } from "./harness.ts";
import { DENSE, QUEST, QUEST_AROUND } from "./selections.ts";
import { uniform } from "./tiny-model.ts";

/** Rates at which every kind of object goes wrong every few turns. */
export const HEAVY: FaultRates = {
  error: 0.06,
  lostAnswer: 0.04,
  delay: 0.2,
  tornWrite: 0.04,
  truncate: 0.03,
  bitFlip: 0.04,
  staleRead: 0.04,
};

/** A store that goes wrong, until it is told not to. */
export interface UnreliableStore {
  store: PageStore;
  /** Nothing goes wrong from now on. Returns how much has. */
  cease(): number;
}

/** What a run found. */
export interface FaultReport {
  turns: number;
  aborted: number;
  kills: number;
  /** Tokens reused from the store, and computed again: both must be more than none over many seeds. */
  storeTokens: number;
  recomputedTokens: number;
  /** Turns of default mode that went on without some page, or follow such a turn: their text is not compared. */
  approximate: number;
  faults: number;
}

const SELECTIONS: SelectionRequest[] = [
  DENSE,
  QUEST,
  { policy: "quest+share(2)", budgetTokens: 160, exact: true },
  QUEST_AROUND,
  { ...QUEST, policy: "mean-deviation" },
  { policy: "tokenselect", budgetTokens: 128, exact: true },
];
/** A conversation's next turn may select in another way, by another kind of summaries. */
const CHANGE_SHARE = 0.3;
const LOG_TOKENS_MAX = 560;

interface Log {
  id: string;
  parentId: string | undefined;
  ids: number[];
  spans: Span[];
  selection: SelectionRequest;
}

interface Outcome {
  ids: number[];
  /** Of each token, to the last bit: a wrong byte of KV shows here long before it shows in the text. */
  logprobs: number[];
  usage: EngineUsage;
  reason: FinishReason;
  spans: Span[];
}

/** A store in memory with injected faults. */
function faultyMemory(seed: number, rates: FaultRates): UnreliableStore {
  const store = faultyStore(new MemoryStore(), { seed, rates, delayMsMax: 4 });
  const cease = () => {
    store.rates = {};
    return Object.values(store.faults).reduce((sum, count) => sum + count, 0);
  };
  return { store, cease };
}

/** Runs one seed to its end, over a store in memory or the one given; rejects with an assertion that names the seed. */
export async function faultRun(
  seed: number,
  rounds: number,
  over: FaultRates | UnreliableStore = HEAVY,
): Promise<FaultReport> {
  const run = new FaultRun(seed, "store" in over ? over : faultyMemory(seed, over));
  try {
    for (let round = 0; round < rounds; round++) await run.round();
    await run.heal();
  } finally {
    await run.close();
  }
  return run.report;
}

class FaultRun {
  readonly report: FaultReport = {
    turns: 0,
    aborted: 0,
    kills: 0,
    storeTokens: 0,
    recomputedTokens: 0,
    approximate: 0,
    faults: 0,
  };
  readonly #seed: number;
  readonly #next: () => number;
  readonly #store: UnreliableStore;
  readonly #engines: { engine: TestEngine; line: Line }[] = [];
  readonly #logs: Log[] = [];
  #twin: TestEngine | undefined;
  #step = 0;
  #namespaceCount = 0;

  constructor(seed: number, store: UnreliableStore) {
    this.#seed = seed;
    this.#next = uniform(seed);
    this.#store = store;
  }

  async round(): Promise<void> {
    this.#step += 1;
    while (this.#engines.length < 2) await this.#openEngine();
    if (this.#logs.length < 2) this.#newLog();
    const action = this.#next();
    if (action < 0.12 && this.#logs.length < 5) this.#fork();
    else if (action < 0.24) this.#cut();
    else if (action < 0.34) await this.#kill();
    else if (action < 0.48) this.#pick(this.#engines).engine.evictIdle();
    while (this.#engines.length < 2) await this.#openEngine();
    const count = 1 + Math.floor(this.#next() * 3);
    const chosen = new Set(Array.from({ length: count }, () => this.#pick(this.#logs)));
    await Promise.all([...chosen].map((log) => this.#turn(log)));
    for (const { engine } of this.#engines) await this.#nothingHeld(engine);
  }

  /**
   * Without further faults a turn on an engine that knows nothing finds out what is missing and stores it again (a dense one, which reads
   * everything): the next such engine misses nothing.
   */
  async heal(): Promise<void> {
    this.report.faults = this.#store.cease();
    await this.#kill();
    await this.#openEngine();
    const healer = this.#engines.at(-1)!;
    const logs = this.#logs.filter((log) => log.ids.length > 0);
    for (const log of logs) await this.#turn(log, { mayAbort: false, on: healer.engine });
    await untilIdle(healer.engine);
    await healer.engine.persister.flush();
    await this.#openEngine();
    const fresh = this.#engines.at(-1)!;
    for (const log of logs) {
      const turnStart = log.ids.length;
      const outcome = await this.#turn(log, { mayAbort: false, on: fresh.engine });
      if (log.selection.policy === "dense") {
        expect(outcome.usage.recomputedTokens, this.#at(`nothing of ${log.id} is missing any more`)).toBe(0);
        expect(outcome.usage.cachedTokens, this.#at(`${log.id} is whole`)).toBeGreaterThanOrEqual(turnStart);
      }
      const stranger = await this.#generate(fresh.engine, {
        ...this.#request(log, [1], 1),
        namespace: this.#newNamespace(),
      });
      expect(stranger.usage.cachedTokens, this.#at("another tenant")).toBe(0);
    }
    await this.#nothingHeld(fresh.engine);
  }

  async close(): Promise<void> {
    for (const { engine, line } of this.#engines) {
      line.dead = true;
      await engine.kill();
    }
    await this.#twin?.kill();
  }

  async #turn(log: Log, options: { mayAbort?: boolean; on?: TestEngine } = {}): Promise<Outcome> {
    const { engine } = options.on ? { engine: options.on } : this.#pick(this.#engines);
    const prompt = randomIds(
      Math.floor(this.#next() * 2 ** 31),
      1 + Math.floor(this.#next() * (this.#next() < 0.3 ? 200 : 70)),
    );
    if (options.mayAbort !== false && this.#next() < CHANGE_SHARE) log.selection = this.#pick(SELECTIONS);
    const fields = this.#request(log, prompt, 1 + Math.floor(this.#next() * 24));
    const abortAfter = options.mayAbort !== false && this.#next() < 0.25 ? Math.floor(this.#next() * 40) : undefined;
    const outcome = await this.#generate(engine, fields, abortAfter);
    this.report.turns += 1;
    if (outcome.reason === "cancelled") this.report.aborted += 1;
    this.report.storeTokens += outcome.usage.source.store;
    this.report.recomputedTokens += outcome.usage.recomputedTokens;
    this.#checkUsage(fields, outcome);
    if (isApproximate([...log.spans, ...outcome.spans])) this.report.approximate += 1;
    else await this.#compare(log, fields, outcome);
    log.ids.push(...prompt, ...outcome.ids);
    log.spans.push(...outcome.spans.map((span) => ({ ...span })));
    log.parentId = undefined;
    if (log.ids.length > LOG_TOKENS_MAX) this.#logs.splice(this.#logs.indexOf(log), this.#logs.includes(log) ? 1 : 0);
    return outcome;
  }

  async #compare(log: Log, fields: GenerateRequest, outcome: Outcome): Promise<void> {
    const expected = await this.#expected(fields);
    expect(outcome.ids, this.#at(`reply of ${log.id}`)).toEqual(expected.ids.slice(0, outcome.ids.length));
    const { logprobs } = expected;
    expect(outcome.logprobs, this.#at(`logprobs of ${log.id}`)).toEqual(logprobs.slice(0, outcome.ids.length));
    if (outcome.reason !== "cancelled") {
      expect(outcome.ids.length, this.#at("length")).toBe(expected.ids.length);
      expect(outcome.spans, this.#at("spans")).toEqual(expected.spans);
    }
  }

  #request(log: Log, prompt: readonly number[], maxTokens: number): GenerateRequest {
    const plain = request({ tokens: idsToBytes([...log.ids, ...prompt]) });
    return {
      ...plain,
      session: { id: log.id, ...(log.parentId === undefined ? {} : { parentId: log.parentId }) },
      turnStart: log.ids.length,
      spans: log.spans.map((span) => ({ ...span })),
      maxTokens,
      selection: log.selection,
      topLogprobs: 0,
      sampling: { ...plain.sampling, temperature: this.#next() < 0.5 ? 0 : 0.8, seed: Math.floor(this.#next() * 1000) },
    };
  }

  #checkUsage(fields: GenerateRequest, { usage, reason }: Outcome): void {
    const { cachedTokens, recomputedTokens, source } = usage;
    expect(cachedTokens, this.#at("cached")).toBeGreaterThanOrEqual(0);
    expect(cachedTokens, this.#at("cached")).toBeLessThan(fields.tokens.byteLength / 4);
    expect(source.device + source.host + source.store, this.#at("sources")).toBe(cachedTokens);
    expect(Math.min(source.device, source.store), this.#at("sources")).toBeGreaterThanOrEqual(0);
    expect(recomputedTokens, this.#at("recomputed")).toBeLessThanOrEqual(fields.turnStart);
    if (reason === "cancelled") return;
    expect(cachedTokens + recomputedTokens, this.#at("every old token is accounted for")).toBeGreaterThanOrEqual(
      fields.turnStart,
    );
  }

  /** A namespace of its own: the twin never finds anything. */
  async #expected(fields: GenerateRequest): Promise<Outcome> {
    this.#twin ??= await openTestEngine({ store: new MemoryStore() });
    const { session: _session, ...rest } = fields;
    const outcome = await this.#generate(this.#twin, { ...rest, namespace: this.#newNamespace() });
    expect(outcome.usage.cachedTokens, this.#at("the twin knows nothing")).toBe(0);
    return outcome;
  }

  #generate(engine: TestEngine, fields: GenerateRequest, abortAfter?: number): Promise<Outcome> {
    return new Promise((resolve, reject) => {
      const ids: number[] = [];
      const logprobs: number[] = [];
      let terminals = 0;
      const terminal = () => {
        terminals += 1;
        if (terminals > 1) reject(new Error(this.#at("a second terminal event")));
      };
      const ticket = engine.engine.submit(fields, {
        token: (id, logprob) => {
          ids.push(id);
          logprobs.push(logprob?.logprob ?? Number.NaN);
        },
        done: (reason, usage, spans) => {
          terminal();
          resolve({ ids, logprobs, usage: structuredClone(usage), reason, spans });
        },
        failed: (error) => {
          terminal();
          reject(new Error(this.#at(`failed: ${String(error)}`), { cause: error }));
        },
      });
      if (abortAfter !== undefined) cancelLater(ticket, abortAfter);
    });
  }

  #newLog(): void {
    this.#logs.push({
      id: `s${this.#step}-${this.#logs.length}`,
      parentId: undefined,
      ids: [],
      spans: [],
      selection: this.#pick(SELECTIONS),
    });
  }

  #fork(): void {
    const parent = this.#pick(this.#logs);
    this.#logs.push({
      ...structuredClone(parent),
      id: `fork-${this.#step}`,
      parentId: parent.id,
      selection: this.#next() < 0.7 ? parent.selection : this.#pick(SELECTIONS),
    });
  }

  /** Regenerate, edit: the log goes back to some earlier token. */
  #cut(): void {
    const log = this.#pick(this.#logs);
    const end = Math.floor(log.ids.length * (0.3 + 0.7 * this.#next()));
    log.ids.length = end;
    log.spans = clip(log.spans, end);
  }

  /** The store hears nothing more of a dead engine, whatever it had begun. */
  async #kill(): Promise<void> {
    const [dead] = this.#engines.splice(Math.floor(this.#next() * this.#engines.length), 1);
    dead!.line.dead = true;
    await dead!.engine.kill();
    this.report.kills += 1;
  }

  async #openEngine(): Promise<void> {
    const line = new Line(this.#store.store);
    const engine = await openTestEngine({ store: line, blockCount: 2 * 26, openSlotCount: 12, rowsMax: 96 });
    this.#engines.push({ engine, line });
  }

  async #nothingHeld(engine: TestEngine): Promise<void> {
    await untilIdle(engine);
    const { heldBlockCount, heldSlotCount, freeBlockCount, blockCount } = engine.engine.status;
    expect({ heldBlockCount, heldSlotCount, free: freeBlockCount }, this.#at("leak")).toEqual({
      heldBlockCount: 0,
      heldSlotCount: 0,
      free: blockCount,
    });
    const failed = engine.logged.filter(({ event }) => event === "step.failed" || event === "engine.failed");
    expect(failed, this.#at("steps do not fail")).toEqual([]);
  }

  #newNamespace(): string {
    this.#namespaceCount += 1;
    return this.#namespaceCount.toString(16).padStart(16, "f");
  }

  #pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.#next() * items.length)] as T;
  }

  #at(what: string): string {
    return `${what}; seed ${this.#seed}, step ${this.#step}; replay: QUIRE_FAULT_SEED=${this.#seed} npx vitest run test/engine/faults.test.ts`;
  }
}

/** What an engine reaches the store through, until it dies. */
class Line implements PageStore {
  readonly name = "line";
  dead = false;
  readonly #inner: PageStore;
  constructor(inner: PageStore) {
    this.#inner = inner;
  }
  get(...args: Parameters<PageStore["get"]>) {
    return this.#open().get(...args);
  }
  put(...args: Parameters<PageStore["put"]>) {
    return this.#open().put(...args);
  }
  delete(...args: Parameters<PageStore["delete"]>) {
    return this.#open().delete(...args);
  }
  list(...args: Parameters<PageStore["list"]>) {
    return this.#open().list(...args);
  }
  async close() {}
  #open(): PageStore {
    if (this.dead) throw new StoreError("denied", "this engine is dead");
    return this.#inner;
  }
}

function isApproximate(spans: readonly Span[]): boolean {
  return spans.some(({ how }) => how.includes("~"));
}

function cancelLater(ticket: Ticket, ticks: number): void {
  if (ticks === 0) ticket.cancel();
  else setImmediate(() => cancelLater(ticket, ticks - 1));
}

function clip(spans: readonly Span[], end: number): Span[] {
  const kept: Span[] = [];
  for (const span of spans) {
    const start = kept.at(-1)?.end ?? 0;
    if (start < end) kept.push({ end: Math.min(span.end, end), how: span.how });
  }
  return kept;
}
