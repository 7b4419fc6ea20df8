/**
 * One seeded life of several conversations of two tenants on engines that share a remote store: turns side by side, forks, cuts, aborts,
 * requests delivered twice, engines that die in the middle of a turn, collections of garbage. Every reply is held against
 * {@link TranscriptTwin}, to the last bit of its log probabilities.
 */
import { openDevice } from "../../kernels/open.ts";
import { GROUP_TOKENS } from "../../models/selection/policy.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { GenerateRequest } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { collectGarbage } from "../../storage/gc.ts";
import type { StoredEncoding } from "../../storage/geometry.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { uniform } from "../engine/tiny-model.ts";
import { commitProblem } from "./commit-check.ts";
import { Endings } from "./endings.ts";
import { cutLog, forkLog, type Log, turnRequest } from "./log.ts";
import {
  CROWDED_SHARE,
  ENDED_SHARE,
  EXPIRING_SHARE,
  HOST_BYTES,
  kindOf,
  LENGTHS,
  LENGTHS_AROUND,
  type LifeKind,
  LOGS_MAX,
  LONG_TOKENS,
  NAMESPACES,
  PAGES,
  poolOf,
  SELECTIONS,
  SELECTIONS_SHARED,
  SESSION_AGE_MS_MAX,
  SIM_RATES,
  TIGHT_CROWDED_SHARE,
  TIGHT_HOST_BYTES,
  TIGHT_LENGTHS,
  TWIN_TOKENS_MAX,
  TWINS_MAX,
  WRITE_BEHIND_BYTES,
} from "./mixture.ts";
import { generateAt, type Outcome, type Received } from "./one-turn.ts";
import { SimFailure, type SimReport } from "./report.ts";
import { SimDisk } from "./sim-disk.ts";
import { openSimRunner, SIM_CONFIG, SimEngine } from "./sim-engine.ts";
import { type SimFaults, SimStore } from "./sim-store.ts";
import { TranscriptTwin } from "./transcript-twin.ts";
import { VirtualProcess, VirtualTime } from "./virtual-time.ts";

/** Far more than any life has. */
const EVENTS_MAX = 100_000;
const TURN_MS_MAX = 600_000;
const GARBAGE_GRACE_MS = 120_000;
const IDLE_MS = 200_000;

/** Lives the life of a seed; `tight`: its contexts outgrow the pool (default: of some seeds). @throws {SimFailure} on the first violated invariant. */
export async function simulate(
  seed: number,
  options: { rounds?: number; rates?: Partial<SimFaults>; tight?: boolean } = {},
): Promise<SimReport> {
  // Devices are imported when the first is opened: that takes real time, of which there is none later.
  await (await openDevice({ kind: "reference" })).close();
  const time = new VirtualTime();
  const world = new World(seed, time, { rates: options.rates ?? SIM_RATES, kind: kindOf(seed, options.tight) });
  try {
    await time.run(world.live(options.rounds ?? 4), EVENTS_MAX);
  } catch (error) {
    if (error instanceof SimFailure) throw error;
    throw new SimFailure(world.at(error instanceof Error ? (error.stack ?? error.message) : String(error)));
  } finally {
    world.end();
  }
  return { ...world.report, totalMs: time.nowMs };
}

class World {
  readonly report: SimReport = {
    turns: 0,
    compared: 0,
    approximate: 0,
    aborted: 0,
    kills: 0,
    failovers: 0,
    duplicates: 0,
    ...{ collections: 0, expired: 0, ended: 0, begunAnew: 0 },
    ...{ storeTokens: 0, hostTokens: 0, diskHits: 0 },
    ...{ preemptions: 0, leftLayers: 0 },
    recomputedTokens: 0,
    faults: 0,
    totalMs: 0,
  };
  readonly #seed: number;
  readonly #pages: StoredEncoding;
  readonly #disk: SimDisk | undefined;
  readonly #kind: LifeKind;
  readonly #time: VirtualTime;
  readonly #next: () => number;
  readonly #chooseTier: () => number;
  readonly #chooseAge: () => number;
  readonly #chooseEnd: () => number;
  readonly #endings: Endings;
  readonly #store: SimStore;
  readonly #engines: SimEngine[] = [];
  readonly #preemptions = new Map<SimEngine, number>();
  readonly #leftLayers = new Map<SimEngine, number>();
  readonly #logs: Log[] = [];
  #twins: TranscriptTwin[] = [];
  #round = 0;
  #isCrowded = false;
  #isHealing = false;
  #requestCount = 0;
  #logCount = 0;
  #closeTwins: (() => void) | undefined;
  /** Noticed where nothing can be thrown. */
  #violation: string | undefined;
  /** Twins share a runner, which takes one step at a time. */
  #twinTurn: Promise<unknown> = Promise.resolve();

  constructor(seed: number, time: VirtualTime, { rates, kind }: { rates: Partial<SimFaults>; kind: LifeKind }) {
    this.#seed = seed;
    this.#pages = PAGES[seed % PAGES.length] as StoredEncoding;
    this.#kind = kind;
    this.#time = time;
    this.#next = uniform(seed);
    this.#chooseTier = uniform(seed ^ 0x9e3779b9);
    this.#chooseAge = uniform(seed ^ 0x3c6ef372);
    this.#chooseEnd = uniform(seed ^ 0x1f83d9ab);
    this.#endings = new Endings({
      ...{ time, random: this.#chooseEnd, engines: () => this.#engines, openEngine: () => this.#openEngine() },
    });
    this.#disk = seed % 3 === 0 ? new SimDisk(uniform(seed ^ 0x2545f491)) : undefined;
    this.#store = new SimStore({
      inner: new MemoryStore({ now: () => time.nowMs }),
      time,
      random: uniform(seed ^ 0x5bd1e995),
      rates,
      onChange: (change) => {
        this.#violation ??= commitProblem(change) ?? this.#endings.problem(change);
      },
    });
  }

  async live(rounds: number): Promise<void> {
    const { layerCount = 1 } = poolOf(this.#kind);
    const { runner, device } = await openSimRunner({
      layerCount,
      blockCount: (layerCount * TWINS_MAX * TWIN_TOKENS_MAX) / 64,
      openSlotCount: TWINS_MAX,
      pages: this.#pages,
    });
    this.#closeTwins = () => void device.close();
    this.#twins = Array.from(
      { length: TWINS_MAX },
      (_, index) => new TranscriptTwin(runner, { index, contextTokensMax: TWIN_TOKENS_MAX }),
    );
    for (this.#round = 1; this.#round <= rounds; this.#round++) await this.#liveRound();
    await this.#heal();
  }

  end(): void {
    for (const engine of this.#engines) engine.kill();
    this.#closeTwins?.();
  }

  /** A message that says how to see it again. */
  at(what: string): string {
    return `${what}\nseed ${this.#seed}, round ${this.#round}, ${this.#time.nowMs.toFixed(1)} ms; replay: npm run sim -- --seed ${this.#seed}${this.#kind.isTight && !this.#kind.isShared ? " --tight" : ""}`;
  }

  async #liveRound(): Promise<void> {
    while (this.#engines.length < 2) await this.#openEngine();
    while (this.#logs.length < 2) this.#newLog();
    const calm = this.#next();
    if (calm < 0.15) this.#fork();
    else if (calm < 0.3) this.#cut();
    else if (calm < 0.4) await this.#time.sleep(IDLE_MS);
    if (this.#chooseTier() < 0.4) for (const { opened } of this.#engines) opened.demoteIdle();
    const chosen = new Set(Array.from({ length: 1 + Math.floor(this.#next() * 3) }, () => this.#pick(this.#logs)));
    // Now and then everybody comes to one engine, with long replies: they outgrow its pool together.
    this.#isCrowded = this.#chooseTier() < (this.#kind.isTight ? TIGHT_CROWDED_SHARE : CROWDED_SHARE);
    if (this.#isCrowded) for (const log of this.#logs) chosen.add(log);
    const troubles = this.#next() < 0.7 ? [this.#trouble()] : [];
    await Promise.all([...[...chosen].map((log) => this.#turn(log).then(() => this.#endSome(log))), ...troubles]);
    for (const engine of this.#engines) await this.#nothingHeld(engine);
  }

  /** A session is deleted behind its turn, whatever engines have still to do of it; another one may begin under its id. */
  async #endSome(log: Log): Promise<void> {
    if (!this.#kind.isEnding || this.#chooseEnd() >= ENDED_SHARE || this.#twins.length < 6) return;
    this.#retire(log);
    this.report.ended += 1;
    const orphan = this.#chooseEnd() < 0.5 ? this.#request(log, this.#randomIds(20), 40) : undefined;
    await this.#endings.end(log, orphan);
    if (this.#chooseEnd() < 0.5) return;
    this.report.begunAnew += 1;
    this.#newLog(log);
  }

  /** Something that happens while turns run. */
  async #trouble(): Promise<void> {
    const kind = this.#next();
    await this.#time.sleep(this.#next() * (this.#next() < 0.5 ? 12 : 80));
    if (kind < 0.55) {
      this.#engines.splice(Math.floor(this.#next() * this.#engines.length), 1)[0]?.kill();
      this.report.kills += 1;
      if (this.#engines.length === 0) await this.#openEngine();
    } else if (kind < 0.65) this.#pick(this.#engines).opened.evictIdle();
    else if (kind < 0.75) this.#pick(this.#engines).opened.demoteIdle();
    else await this.#collect();
  }

  /** The collector may fail, and may run beside turns. */
  async #collect(): Promise<void> {
    this.report.collections += 1;
    const line = this.#store.line(new VirtualProcess(this.#time));
    const age = this.#chooseAge() < EXPIRING_SHARE ? { sessionAgeMsMax: SESSION_AGE_MS_MAX } : {};
    const options = { graceMs: GARBAGE_GRACE_MS, nowMs: this.#time.nowMs, ...age };
    this.report.expired += (await collectGarbage(line, "kv/", options).catch(() => undefined))?.expiredCount ?? 0;
  }

  /**
   * Nothing goes wrong any more: after all that was late has arrived, a fresh engine continues every conversation as the twin does, and
   * what it stores is whole: the next engine computes nothing again, and finds nothing for a tenant that never spoke.
   */
  async #heal(): Promise<void> {
    this.#store.rates = {};
    this.#isHealing = true;
    this.#isCrowded = false;
    this.report.faults = Object.values(this.#store.counts).reduce((sum, count) => sum + count, 0);
    await this.#time.sleep(IDLE_MS);
    for (const engine of this.#engines.splice(0)) {
      if (this.#next() < 0.5) await engine.opened.engine.stop(1000);
      engine.kill();
    }
    const healer = await this.#openEngine();
    const logs = this.#logs.filter((log) => log.ids.length > 0);
    for (const log of logs) await this.#turn(log, true);
    await this.#nothingHeld(healer);
    await healer.opened.persister.flush();
    this.#expect(healer.opened.persister.pendingBytes === 0, "nothing waits to be written after a flush");
    this.#engines.splice(0);
    healer.kill();
    const fresh = await this.#openEngine();
    for (const log of logs) if (log.selection.policy === "dense") await this.#nothingMissing(log);
    await this.#stranger(fresh);
    await this.#nothingHeld(fresh);
    this.report.diskHits = this.#disk?.hits ?? 0;
  }

  async #nothingMissing(log: Log): Promise<void> {
    const turnStart = log.ids.length;
    const { usage } = await this.#turn(log, true);
    this.#expect(
      usage.recomputedTokens === 0 && usage.cachedTokens >= turnStart,
      `${log.id} is whole: ${usage.recomputedTokens} of ${turnStart} tokens were computed again, ${usage.cachedTokens} found`,
    );
  }

  async #stranger(engine: SimEngine): Promise<void> {
    const log = this.#logs.find(({ ids }) => ids.length > 64);
    if (!log) return;
    const fields = { ...this.#request(log, [1], 1), namespace: "00000000000000cc" };
    const outcome = await this.#generate(engine, fields, {});
    this.#expect(outcome !== "died" && outcome.usage.cachedTokens === 0, "another tenant's tokens are not found");
  }

  async #turn(log: Log, calm = false): Promise<Outcome> {
    const { firstMin, firstMax, logMax } = this.#lengthsOf(log);
    const first = firstMin + (firstMax - firstMin) * this.#next();
    const prompt = this.#randomIds(log.ids.length === 0 ? first : 1 + 40 * this.#next());
    const short = 1 + Math.floor(this.#next() * 8);
    const fields = this.#request(log, prompt, this.#isCrowded ? short + LONG_TOKENS : short);
    const abortAfterMs = !calm && this.#next() < 0.2 ? this.#next() * 60 : undefined;
    const twice = !calm && abortAfterMs === undefined && this.#engines.length > 1 && this.#next() < 0.15;
    const serving = [this.#serve(fields, abortAfterMs)];
    if (twice) {
      this.report.duplicates += 1;
      serving.push(this.#serve(fields, undefined));
    }
    const outcomes = await Promise.all(serving);
    const outcome = outcomes[0] as Outcome;
    this.report.turns += 1;
    if (outcome.reason === "cancelled") this.report.aborted += 1;
    for (const each of outcomes) await this.#check(log, fields, each);
    log.ids.push(...prompt, ...outcome.ids);
    log.spans.push(...outcome.spans.map((span) => ({ ...span })));
    log.parentId = undefined;
    if (log.ids.length > logMax) this.#retire(log);
    return outcome;
  }

  #lengthsOf({ selection }: Log): typeof LENGTHS {
    if (this.#kind.isTight) return TIGHT_LENGTHS;
    return selection.exact ? LENGTHS : LENGTHS_AROUND;
  }

  /** Serves a turn to its end, by as many engines as it takes: each goes on behind the tokens that were received. */
  async #serve(fields: GenerateRequest, abortAfterMs: number | undefined): Promise<Outcome> {
    const received: Received = { ids: [], logprobs: [] };
    const promptCount = fields.tokens.byteLength / 4;
    for (let attempt = 0; attempt < 10; attempt++) {
      const choices = this.#isCrowded ? this.#engines.slice(0, 1) : this.#engines;
      const engine = choices.length > 0 ? this.#pick(choices) : await this.#openEngine();
      // The terminal event tells how tokens were computed: where only that was lost, the last token is asked for again.
      if (received.ids.length === fields.maxTokens) {
        received.ids.pop();
        received.logprobs.pop();
      }
      const request = {
        ...fields,
        requestId: `request-${this.#requestCount++}`,
        tokens: Buffer.concat([fields.tokens, idsToBytes(received.ids)]),
        maxTokens: fields.maxTokens - received.ids.length,
        ...(received.ids.length > 0 ? { replyStart: promptCount } : {}),
      };
      const isTakenOver = received.ids.length > 0;
      const outcome = await this.#generate(engine, request, { abortAfterMs, received });
      if (outcome !== "died") return { ...outcome, ids: received.ids, logprobs: received.logprobs, isTakenOver };
      this.report.failovers += 1;
    }
    throw new SimFailure(this.at("a turn outlived ten engines"));
  }

  async #check(log: Log, fields: GenerateRequest, outcome: Outcome): Promise<void> {
    const { usage, reason, spans } = outcome;
    this.report.storeTokens += usage.source.store;
    this.report.hostTokens += usage.source.host;
    this.report.recomputedTokens += usage.recomputedTokens;
    const { device, host, store } = usage.source;
    this.#expect(device + host + store === usage.cachedTokens, "sources add up");
    this.#expect(Math.min(device, host, store) >= 0, "no source is less than nothing");
    this.#expect(usage.cachedTokens < fields.tokens.byteLength / 4 + outcome.ids.length, "the last token is computed");
    const mayHaveMissed = !log.selection.exact && outcome.isTakenOver === true;
    if (mayHaveMissed || [...log.spans, ...spans].some(({ how }) => how.includes("~"))) {
      this.report.approximate += 1;
      return;
    }
    const expected = await this.#expected(log, fields);
    const count = outcome.ids.length;
    this.#expect(reason === "cancelled" || count === expected.ids.length, `the reply has ${count} tokens`);
    this.#same(outcome.ids, expected.ids.slice(0, count), `ids of ${log.id}`);
    this.#same(outcome.logprobs, expected.logprobs.slice(0, count), `log probabilities of ${log.id}`);
    this.report.compared += 1;
  }

  #expected(log: Log, fields: GenerateRequest): Promise<{ ids: number[]; logprobs: number[] }> {
    const { policy, budgetTokens } = log.selection;
    const how = (groupTokens: number) =>
      policy === "dense" ? "dense" : `${policy}.${policyNamed(policy).version}:${budgetTokens}@${groupTokens}`;
    const ids = Array.from(new Uint32Array(fields.tokens.slice().buffer));
    const promptHow = fields.turnStart === 0 ? "dense" : how(GROUP_TOKENS);
    const spans = [...log.spans, { end: ids.length, how: promptHow }];
    const { maxTokens: tokensMax, sampling } = fields;
    const reply = this.#twinTurn.then(() => log.twin.reply({ ids, spans, replyHow: how(1), tokensMax, sampling }));
    this.#twinTurn = reply.catch(() => undefined);
    return reply;
  }

  #generate(
    engine: SimEngine,
    fields: GenerateRequest,
    options: { abortAfterMs?: number | undefined; received?: Received },
  ): Promise<Outcome | "died"> {
    return generateAt(engine, fields, { ...options, time: this.#time, fail: (what) => new SimFailure(this.at(what)) });
  }

  #request(log: Log, prompt: readonly number[], maxTokens: number): GenerateRequest {
    const sampling = { temperature: this.#next() < 0.5 ? 0 : 0.8, seed: Math.floor(this.#next() * 1000) };
    return turnRequest(log, { requestId: `request-${this.#requestCount++}`, prompt, maxTokens, sampling });
  }

  /** @param before one that was deleted, whose id it takes */
  #newLog(before?: Log): void {
    const twin = this.#twins.pop();
    if (!twin) throw new Error("a life has more logs than twins");
    this.#logs.push({
      id: before?.id ?? `s${this.#round}-${this.#logCount++}`,
      namespace: before?.namespace ?? this.#pick(NAMESPACES),
      bornMs: Math.max(Math.floor(this.#time.nowMs), (before?.bornMs ?? -1) + 1),
      parentId: undefined,
      ids: [],
      spans: [],
      selection: this.#pick(this.#kind.isShared ? SELECTIONS_SHARED : SELECTIONS),
      twin,
    });
  }

  #retire(log: Log): void {
    const at = this.#logs.indexOf(log);
    if (at >= 0) this.#logs.splice(at, 1);
  }

  #fork(): void {
    const parent = this.#pick(this.#logs);
    if (this.#logs.length === LOGS_MAX || this.#twins.length < 4) return;
    const twin = this.#twins.pop() as TranscriptTwin;
    this.#logs.push(forkLog(parent, { id: `fork-${this.#round}`, bornMs: Math.floor(this.#time.nowMs), twin }));
  }

  /** Regenerate, edit: a conversation goes back to some earlier token. */
  #cut(): void {
    const log = this.#pick(this.#logs);
    cutLog(log, Math.floor(log.ids.length * (0.3 + 0.7 * this.#next())));
  }

  async #openEngine(): Promise<SimEngine> {
    const hostBytes = this.#kind.isTight || this.#kind.isShared ? TIGHT_HOST_BYTES : HOST_BYTES;
    const engine = await SimEngine.open({
      time: this.#time,
      store: this.#store,
      ...poolOf(this.#kind),
      ...{ pages: this.#pages, disk: this.#disk },
      // Patience of default mode: long enough for most reads, or for none. Host memory: none, for some blocks, for all.
      settings: {
        missWaitMs: this.#next() < 0.5 ? 500 : 0,
        reserve: this.#chooseTier() < 0.8 ? "prompt" : "full",
        ...(this.#kind.isEnding && !this.#isHealing
          ? {
              writeBehindBytesMax: WRITE_BEHIND_BYTES[
                Math.floor(this.#chooseEnd() * WRITE_BEHIND_BYTES.length)
              ] as number,
            }
          : {}),
        hostPoolBytes: hostBytes[Math.floor(this.#chooseTier() * hostBytes.length)] as number,
      },
    });
    this.#engines.push(engine);
    return engine;
  }

  async #nothingHeld(engine: SimEngine): Promise<void> {
    this.#expect(this.#violation === undefined, this.#violation ?? "");
    const { engine: inner, persister } = engine.opened;
    const untilMs = this.#time.nowMs + TURN_MS_MAX;
    while (!engine.dead && inner.status.runningCount + inner.status.queuedCount > 0) {
      this.#expect(this.#time.nowMs < untilMs, `an engine is never idle: ${JSON.stringify(inner.status)}`);
      await this.#time.sleep(50);
    }
    if (engine.dead) return;
    const { heldBlockCount, heldSlotCount, freeBlockCount, blockCount, hostPool, leftLayerCount } = inner.status;
    this.#expect(hostPool.bytes <= hostPool.bytesMax, "host memory is bounded");
    this.#preemptions.set(engine, Number(/quire_preemptions_total (\d+)/.exec(inner.metrics.expose())?.[1]));
    this.#leftLayers.set(engine, leftLayerCount);
    this.report.leftLayers = [...this.#leftLayers.values()].reduce((sum, count) => sum + count, 0);
    this.report.preemptions = [...this.#preemptions.values()].reduce((sum, count) => sum + count, 0);
    this.#expect(
      heldBlockCount === 0 && heldSlotCount === 0 && freeBlockCount === blockCount,
      `an idle engine holds memory: ${JSON.stringify(inner.status)}`,
    );
    this.#expect(engine.failures.length === 0, `steps do not fail: ${engine.failures.join("; ")}`);
    this.#expect(persister.pendingBytes <= LIMITS.writeBehindBytesMax, "writes that wait are bounded");
  }

  #randomIds(count: number): number[] {
    return Array.from({ length: Math.floor(count) }, () => Math.floor(this.#next() * SIM_CONFIG.vocabularySize));
  }

  #pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.#next() * items.length)] as T;
  }

  #same(actual: readonly number[], expected: readonly number[], what: string): void {
    const at = expected.findIndex((value, index) => !Object.is(value, actual[index]));
    this.#expect(at < 0 && actual.length === expected.length, `${what} differ from the twin's at ${at}`);
  }

  #expect(holds: boolean, what: string): void {
    if (!holds) throw new SimFailure(this.at(what));
  }
}
