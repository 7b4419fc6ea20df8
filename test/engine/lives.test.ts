/**
 * Seeded lives of conversations on the CPU device, side by side in a pool that is too small for them, under every kind of selection, with
 * guesses, forks, cuts and aborts: each reply is, to the last bit, that of an engine which computes all of it anew.
 */
import { expect, it } from "vitest";
import type { SamplingParams, SelectionConfiguration } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import {
  expectNothingHeld,
  generate,
  openForTest,
  randomIds,
  request,
  type TestEngine,
  TestSession,
  type TurnResult,
} from "./harness.ts";
import { uniform } from "./tiny-model.ts";

const POLICIES: readonly SelectionConfiguration[] = [
  "quest",
  "quest+scope(layer)",
  "quest+group(64)",
  "quest+share(2)",
  "quest+reuse(4)",
  "quest+coarse(2)",
  "quest+combine(sum)",
  "quest+head-budgets(2,0,1)",
  "quest+layer-budgets(2,0.5)",
  "quest+dense-layers(1)+share(2)",
  "mean-deviation+top-p(0.5)",
  "mean-deviation+scope(layer)+group(64)",
  "mean-deviation+top-p(0.6)+reuse(8)",
  "residual-signs",
  "streaming",
  "tokenselect",
];
const LAYERS = 3;
/** At and around the borders of pages and blocks. */
const FIRST_PROMPTS = [1, 16, 63, 65, 129, 193, 200, 255, 256, 257];
const PROMPTS = [1, 15, 16, 17, 40, 64];
const REPLIES = [1, 2, 20, 64, 100];
/** First turns of all begin together, short, and outgrow the pool together. */
const CROWDED = { prompts: [1, 15, 17, 63, 64, 65], replies: [200, 240], mayStop: false };
const LOG_TOKENS_MAX = 400;

/** What all lives together have met. */
const met = { host: 0, store: 0, guessed: 0, suspended: 0 };

/** Of one seed. */
class Life {
  readonly #next: () => number;
  readonly #sessions: TestSession[] = [];
  /** Of forks until their first turn. */
  readonly #parents = new Map<TestSession, string>();
  readonly #shared = randomIds(1, 230);
  readonly #engine: TestEngine;
  readonly #twin: TestEngine;
  #turnCount = 0;

  constructor(next: () => number, engine: TestEngine, twin: TestEngine) {
    this.#next = next;
    this.#engine = engine;
    this.#twin = twin;
    for (let index = 0; index < 4; index++) this.#begin();
  }

  async first(): Promise<void> {
    await Promise.all(this.#sessions.map((one) => this.#turn(one, CROWDED)));
    await expectNothingLeft(this.#engine);
  }

  async round(): Promise<void> {
    const kind = this.#next();
    const session = pick(this.#next, this.#sessions);
    if (kind < 0.3) this.#fork(session);
    else if (kind < 0.5) cut(session, Math.floor(this.#next() * session.ids.length));
    else if (kind < 0.7) this.#engine.demoteIdle();
    else if (kind < 0.8) this.#engine.evictIdle();
    await Promise.all(this.#sessions.filter(() => this.#next() < 0.7).map((one) => this.#turn(one)));
    await expectNothingLeft(this.#engine);
    for (const [at, one] of this.#sessions.entries())
      if (one.ids.length > LOG_TOKENS_MAX) this.#sessions.splice(at, 1, this.#begin());
  }

  #fork(session: TestSession): void {
    const fork = session.fork(`${session.id}-${this.#turnCount}`);
    this.#parents.set(fork, session.id);
    this.#sessions.push(fork);
  }

  #begin(): TestSession {
    const chosen = this.#next() < 0.2 ? "dense" : pick(this.#next, POLICIES);
    const policy = chosen === "dense" || this.#next() < 0.5 ? chosen : (`${chosen}+first-turn(128)` as const);
    const budgetTokens = policy === "dense" ? 0 : 128 + 16 * Math.floor(this.#next() * 3);
    const session = new TestSession(`s${this.#turnCount}-${this.#sessions.length}`, {
      ...{ policy, budgetTokens, exact: true },
    });
    if (this.#sessions.length < 4) this.#sessions.push(session);
    return session;
  }

  async #turn(session: TestSession, { prompts = PROMPTS, replies = REPLIES, mayStop = true } = {}): Promise<void> {
    const next = this.#next;
    const { ids, spans, selection } = { ...session, ids: [...session.ids] };
    const count = pick(next, ids.length === 0 && prompts === PROMPTS ? FIRST_PROMPTS : prompts);
    // What repeats itself is guessed; what several begin with is found, if it was computed alike.
    const unit = next() < 0.3 ? 7 : count;
    const words = randomIds(Math.floor(next() * 1e9), unit);
    const shared = ids.length === 0 && next() < 0.8 ? this.#shared.slice(0, count - 1) : [];
    const prompt = [...shared, ...words, ...words].slice(0, count);
    for (let at = prompt.length; at < count; at++) prompt.push(prompt[at - unit] as number);
    const fields = {
      ...{ maxTokens: pick(next, replies), topLogprobs: 0, priority: pick(next, [0, 0, 1]) },
      sampling: { ...GREEDY, temperature: pick(next, [0, 0, 0.7]), seed: Math.floor(next() * 1e9) },
      ...{ stopTokens: mayStop && next() < 0.3 ? [3, 7] : [], speculation: next() < 0.5 },
    };
    const abortAfterMs = next() < 0.15 ? next() * 60 : undefined;
    const namespace = (++this.#turnCount).toString(16).padStart(16, "f");
    const parentId = this.#parents.get(session);
    this.#parents.delete(session);
    const named = { session: { id: session.id, ...(parentId === undefined ? {} : { parentId }) } };
    const turn = session.turn(this.#engine, prompt, { ...fields, ...named }, (ticket) => {
      if (abortAfterMs !== undefined) setTimeout(() => ticket.cancel(), abortAfterMs);
    });
    const tokens = idsToBytes([...ids, ...prompt]);
    const alone = { ...fields, speculation: false, tokens, turnStart: ids.length, spans, selection, namespace };
    const [got, expected] = await Promise.all([turn, generate(this.#twin, request(alone))]);
    expectSame(got, expected, `${selection.policy}, ${ids.length} and ${count} tokens`);
  }
}

const GREEDY: SamplingParams = request({ tokens: new Uint8Array(4) }).sampling;

function pick<T>(next: () => number, list: readonly T[]): T {
  return list[Math.floor(next() * list.length)] as T;
}

function cut(session: TestSession, end: number): void {
  session.ids.length = end;
  const kept = session.spans.filter((_, at) => (session.spans[at - 1]?.end ?? 0) < end);
  session.spans = kept.map((span) => ({ ...span, end: Math.min(span.end, end) }));
}

function expectSame(got: TurnResult, expected: TurnResult, what: string): void {
  const isCut = got.reason === "cancelled";
  const count = isCut ? got.ids.length : expected.ids.length;
  expect([got.ids, got.logprobs], what).toEqual([expected.ids.slice(0, count), expected.logprobs.slice(0, count)]);
  if (!isCut) expect(got.reason, what).toBe(expected.reason);
  const { promptTokens, completionTokens, cachedTokens, source } = got.usage;
  expect(completionTokens, what).toBe(got.ids.length);
  expect(cachedTokens, what).toBeLessThan(promptTokens);
  expect(source.device + source.host + source.store, what).toBe(cachedTokens);
  met.host += source.host;
  met.store += source.store;
  met.guessed += got.usage.draftedTokensRight ?? 0;
}

async function expectNothingLeft(engine: TestEngine): Promise<void> {
  await expect
    .poll(() => engine.engine.status, { timeout: 10_000 })
    .toMatchObject({
      ...{ runningCount: 0, queuedCount: 0, preemptedCount: 0, heldBlockCount: 0, heldSlotCount: 0 },
    });
  expect(engine.logged.filter(({ event }) => /failed/.test(event))).toEqual([]);
}

it.each([1, 2, 3, 4, 5, 6, 7, 8])("seed %i", { timeout: 60_000 }, async (seed) => {
  const next = uniform(seed);
  const pages = pick(next, ["int8", "f32", "int4", "f16"] as const);
  const shape = {
    ...({ device: "wasm", layerCount: LAYERS, headDim: 16, pages, rowsMax: 96 } as const),
    summaryKinds: ["min-max", "mean-deviation", "residual-signs"] as const,
  };
  const hostPoolBytes = pick(next, [60_000, 400_000, 4_000_000]);
  const engine = await openForTest({
    ...{ ...shape, store: new MemoryStore(), openSlotCount: 14 },
    ...{ blockCount: LAYERS * pick(next, [9, 11, 14]), summarySlotCount: 40 },
    settings: { hostPoolBytes, runningMax: 5, resume: pick(next, ["lazy", "full"] as const) },
  });
  const twin = await openForTest({ ...shape, blockCount: LAYERS * 80, openSlotCount: 40 });
  const life = new Life(next, engine, twin);
  if (seed % 2 === 0) await life.first();
  for (let round = 0; round < 4; round++) await life.round();
  met.suspended += Number(/^quire_preemptions_total (\d+)$/m.exec(engine.engine.metrics.expose())?.[1]);
  await expectNothingHeld(engine);
});

it("together they found pages in host memory and in the store, guessed right and were suspended", () => {
  expect(Object.entries(met).filter(([, count]) => count === 0)).toEqual([]);
});
