/** What a run has seen, counted while it runs. */
import type { ReuseSource } from "../../protocol/generate.ts";
import { DurationHistogram, type DurationSummary } from "../histogram.ts";
import type { TurnUsage } from "./target.ts";
import { type ClassName, classNames } from "./workload.ts";

/** A turn that came to its end. */
export interface CompletedTurn {
  usage: TurnUsage;
  /** From the intended start to the first text; undefined for a reply without text. */
  firstTokenMs: number | undefined;
  /** Between two pieces of text; a piece is one token or several that came together. */
  betweenDeltasMs: readonly number[];
  /** From the first text to the last, over the tokens behind the first; undefined for less than two tokens. */
  perTokenMs: number | undefined;
  /** From the intended start to the end of the reply. */
  turnMs: number;
  isRight: boolean;
}

/** A turn that did not. */
export interface FailedTurn {
  code: string;
  message: string;
  isRefusal: boolean;
}

/** Part of a run, as JSON shows it (`bench/README.md`). */
export interface GroupSummary {
  name: string;
  turns: { completed: number; failed: number; interrupted: number };
  errors: Record<string, number>;
  firstTokenMs: DurationSummary;
  betweenDeltasMs: DurationSummary;
  perTokenMs: DurationSummary;
  turnMs: DurationSummary;
  tokens: { prompt: number; completion: number; cached: number };
  /** Of the prompt tokens; undefined where there were none. */
  cachedShare?: number;
  /** The same by where the tokens were; sums to `cachedShare`. */
  cachedShareBySource?: ReuseSource;
  answers: { right: number; wrong: number };
}

/** Counts of a group of turns. */
export class Group {
  readonly name: string;
  readonly #firstToken = new DurationHistogram();
  readonly #betweenDeltas = new DurationHistogram();
  readonly #perToken = new DurationHistogram();
  readonly #turn = new DurationHistogram();
  readonly #errors = new Map<string, number>();
  readonly #tokens = { prompt: 0, completion: 0, cached: 0 };
  readonly #source: ReuseSource = { device: 0, host: 0, store: 0 };
  #completed = 0;
  #failed = 0;
  #interrupted = 0;
  #right = 0;

  constructor(name: string) {
    this.name = name;
  }

  complete({ usage, firstTokenMs, betweenDeltasMs, perTokenMs, turnMs, isRight }: CompletedTurn): void {
    this.#completed += 1;
    if (isRight) this.#right += 1;
    if (firstTokenMs !== undefined) this.#firstToken.record(firstTokenMs);
    for (const gapMs of betweenDeltasMs) this.#betweenDeltas.record(gapMs);
    if (perTokenMs !== undefined) this.#perToken.record(perTokenMs);
    this.#turn.record(turnMs);
    this.#tokens.prompt += usage.promptTokens;
    this.#tokens.completion += usage.completionTokens;
    this.#tokens.cached += usage.cachedTokens;
    for (const place of ["device", "host", "store"] as const) this.#source[place] += usage.source[place];
  }

  fail(code: string): void {
    this.#failed += 1;
    this.#errors.set(code, (this.#errors.get(code) ?? 0) + 1);
  }

  interrupt(): void {
    this.#interrupted += 1;
  }

  summary(): GroupSummary {
    const { prompt } = this.#tokens;
    const share = (count: number): number => Math.round((count / prompt) * 1e6) / 1e6;
    const { device, host, store } = this.#source;
    return {
      name: this.name,
      turns: { completed: this.#completed, failed: this.#failed, interrupted: this.#interrupted },
      errors: Object.fromEntries([...this.#errors].sort(([a], [b]) => (a < b ? -1 : 1))),
      firstTokenMs: this.#firstToken.summary(),
      betweenDeltasMs: this.#betweenDeltas.summary(),
      perTokenMs: this.#perToken.summary(),
      turnMs: this.#turn.summary(),
      tokens: { ...this.#tokens },
      ...(prompt > 0 && {
        cachedShare: share(this.#tokens.cached),
        cachedShareBySource: { device: share(device), host: share(host), store: share(store) },
      }),
      answers: { right: this.#right, wrong: this.#completed - this.#right },
    };
  }
}

/** Sessions of a run. */
export interface SessionCounts {
  /** Arrivals of the Poisson process. */
  offered: number;
  /** Arrivals that found the bound on sessions in progress reached. */
  notSent: number;
  started: number;
  completed: number;
  /** Ended by a failed turn or by the user; their later turns were never sent. */
  cutShort: number;
}

/** A reply without the code that was asked for: to be looked at, and compared between runs of one seed. */
export interface WrongAnswer {
  /** Number of the session in the run. */
  session: number;
  turn: number;
  expected: string;
  reply: string;
}

const wrongAnswersMax = 20;

/** What a user is content with. */
export interface Objectives {
  firstTokenMs: number;
  perTokenMs: number;
}

/** Where a turn belongs. */
export interface TurnPlace {
  className: ClassName;
  tenant: number;
  isFirst: boolean;
}

/** Everything that a run counts; made before it starts, readable at any time. */
export class Measures {
  readonly #groupOf: (tenant: number) => number;
  readonly sessions: SessionCounts = { offered: 0, notSent: 0, started: 0, completed: 0, cutShort: 0 };
  #slowestMs: number | undefined;
  readonly all = new Group("all");
  /** By length of the first prompt. */
  readonly classes: ReadonlyMap<ClassName, Group> = new Map(classNames.map((name) => [name, new Group(name)]));
  /** First turns, which bring the passage, and later ones, which should find it again. */
  readonly first = new Group("first turns");
  readonly later = new Group("later turns");
  /** How late turns were sent, by the load generator's own fault; part of all latencies. */
  readonly lag = new DurationHistogram();
  /** The first message of each error code. */
  readonly examples = new Map<string, string>();
  /** Turns whose intended start lay in the window of the arrivals, and turns and tokens that ended in it. */
  readonly window = { turnsSent: 0, turnsCompleted: 0, turnsWithinObjectives: 0, completionTokens: 0 };
  /** By number of the tenant. */
  readonly tenants = new Map<number, Group>();
  /** The first ones. */
  readonly wrongAnswers: WrongAnswer[] = [];
  turnsNotSent = 0;
  refusals = 0;
  /** Refused clients that obeyed Retry-After: told to wait, came back (with an outcome), and were then not refused again. */
  readonly retryAfter = { told: 0, cameBack: 0, admitted: 0 };
  /** Turns whose client went away, as it was to. */
  aborts = 0;
  cleanupFailures = 0;

  /** @param groupOf tenants that are counted together have the same number. */
  constructor(groupOf: (tenant: number) => number = (tenant) => tenant) {
    this.#groupOf = groupOf;
  }

  /** The longest time to a first token since it was last asked for. */
  takeSlowest(): number | undefined {
    const slowest = this.#slowestMs;
    this.#slowestMs = undefined;
    return slowest;
  }

  complete(place: TurnPlace, turn: CompletedTurn): void {
    if (turn.firstTokenMs !== undefined) this.#slowestMs = Math.max(this.#slowestMs ?? 0, turn.firstTokenMs);
    for (const group of this.#groupsOf(place)) group.complete(turn);
  }

  noteWrong(answer: WrongAnswer): void {
    if (this.wrongAnswers.length < wrongAnswersMax) this.wrongAnswers.push(answer);
  }

  fail(place: TurnPlace, { code, message, isRefusal }: FailedTurn): void {
    for (const group of this.#groupsOf(place)) group.fail(code);
    if (isRefusal) this.refusals += 1;
    if (!this.examples.has(code)) this.examples.set(code, message);
  }

  interrupt(place: TurnPlace): void {
    for (const group of this.#groupsOf(place)) group.interrupt();
  }

  #groupsOf({ className, tenant, isFirst }: TurnPlace): Group[] {
    const ofClass = this.classes.get(className);
    const number = this.#groupOf(tenant);
    const ofTenant = this.tenants.get(number) ?? new Group(`tenant ${number}`);
    this.tenants.set(number, ofTenant);
    return [this.all, isFirst ? this.first : this.later, ...(ofClass ? [ofClass] : []), ofTenant];
  }
}
