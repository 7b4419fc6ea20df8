/** One conversation as its client knows it: the logs that it may have by all that was heard, which answers narrow down to one. */
import { ERROR_TABLE } from "../../../protocol/errors.ts";
import type { AnswerChoice, AnswerUsage, Client, Outcome } from "./client.ts";
import type { LifeReport } from "./report.ts";
import { NO_TRANSCRIPT, type Prompt, promptOf, type Transcript, turnMade, type Words } from "./transcript.ts";
import type { Expected, Manner } from "./twin.ts";
import type { Twins } from "./twins.ts";

/** A turn as it was asked for. */
export interface AskedTurn {
  sent: readonly Words[];
  /** The whole transcript, for nobody was named. */
  isWhole: boolean;
  manner: Manner;
  exact: boolean;
  hasLogprobs: boolean;
  /** A stream is kept as far as it was heard; any other answer is kept whole or not at all. */
  isStream: boolean;
}

/** What came of it. */
export interface Answered {
  turn: AskedTurn;
  outcome: Outcome;
  /** The edge was killed meanwhile: nobody knows what became of it. */
  isEdgeLost: boolean;
}

/** An answer that cannot be. */
export class Violation extends Error {
  override readonly name = "Violation";
}

/** So many logs may be meant at a time: a reply of 64 tokens that was left, computed in either of two ways. */
const STATES_MAX = 400;
const LOGPROB_TOLERANCE = 1e-6;

/** A named session, or a transcript that names none; one request, or one group of requests at once, at a time. */
export class Conversation {
  readonly name: string;
  /** Undefined for one that names no session. */
  readonly sessionId: string | undefined;
  readonly client: Client;
  /** What it may be. Never empty. */
  states: Transcript[] = [NO_TRANSCRIPT];
  /** Nothing more is asked of it. */
  isOver = false;
  isBusy = false;
  readonly story: string[] = [];
  readonly #twins: Pick<Twins, "replies" | "isMixed">;
  readonly #report: LifeReport;

  constructor(
    name: string,
    place: {
      sessionId: string | undefined;
      client: Client;
      twins: Pick<Twins, "replies" | "isMixed">;
      report: LifeReport;
      states?: Transcript[];
    },
  ) {
    this.name = name;
    this.sessionId = place.sessionId;
    this.client = place.client;
    this.#twins = place.twins;
    this.#report = place.report;
    this.states = place.states ?? this.states;
  }

  /** The log, where only one is possible. */
  get known(): Transcript | undefined {
    return this.states.length === 1 ? this.states[0] : undefined;
  }

  /** Of the longest log that it may have. */
  get tokensMax(): number {
    return Math.max(...this.states.map(({ ids }) => ids.length));
  }

  /** @throws {Violation} */
  fail(why: string): never {
    throw new Violation(`${this.name}: ${why}\n  ${this.story.slice(-12).join("\n  ")}`);
  }

  /** Takes what came of one request, or of several at once, in whatever order they were run. @throws {Violation} where no log explains it */
  async take(answers: readonly Answered[]): Promise<void> {
    for (const { turn, outcome } of answers) this.story.push(`${describeTurn(turn)} -> ${describe(outcome)}`);
    const isUnheard = answers.some(({ outcome }) => outcome.kind === "left" || outcome.kind === "lost");
    if (isUnheard && this.states.length > 1) {
      // Not to be told any more.
      this.isOver = true;
      return;
    }
    const found: Transcript[] = [];
    for (const order of orders(answers)) {
      let states = this.states;
      for (const answer of order) states = await this.#apply(states, answer);
      found.push(...states);
    }
    const states = distinct(found);
    if (states.length === 0) this.fail(await this.#explain(answers));
    if (states.length > STATES_MAX) this.isOver = true;
    this.states = states;
  }

  /** Asks the edge for the session, where its log is known. @throws {Violation} for another one */
  async look(): Promise<void> {
    const { known, sessionId } = this;
    if (!known || sessionId === undefined) return;
    const answer = await this.client.ask("GET", `/v1/sessions/${sessionId}`);
    if (!answer || answer.status >= 500) return;
    if (known.turnCount === 0) {
      if (answer.status !== 404) this.fail(`there is a session that nobody began: ${JSON.stringify(answer.body)}`);
      return;
    }
    const { tokens, turns, messages } = answer.body as { tokens: number; turns: number; messages: { role: string }[] };
    const roles = (list: readonly { role: string }[]) => list.map(({ role }) => role[0]).join("");
    const [is, must] = [
      `${answer.status}: ${tokens} tokens, ${turns} turns, ${roles(messages ?? [])}`,
      `200: ${known.ids.length} tokens, ${known.turnCount} turns, ${roles(known.messages)}`,
    ];
    if (is !== must) this.fail(`the session is ${is}, and should be ${must}`);
    this.#report.looks += 1;
  }

  async #apply(states: readonly Transcript[], answer: Answered): Promise<Transcript[]> {
    const { outcome } = answer;
    if (outcome.kind === "refused" || outcome.kind === "failed") return [...states];
    const made: Transcript[] = [];
    for (const state of states) {
      if (outcome.kind === "done") made.push(...(await this.#done(state, answer, outcome)));
      else made.push(...(await this.#perhaps(state, answer, outcome)));
    }
    return made;
  }

  async #done(
    state: Transcript,
    { turn }: Answered,
    outcome: Extract<Outcome, { kind: "done" }>,
  ): Promise<Transcript[]> {
    const { usage } = outcome;
    const prompt = promptOf(state, turn.sent, turn.isWhole);
    if (prompt.ids.length !== usage.prompt_tokens) return [];
    this.#checkUsage(usage);
    const [choice, ...others] = outcome.choices;
    if (!choice) this.fail("an answer without a choice");
    const isApproximate =
      state.isApproximate || mayHaveMissed(turn, usage) || (this.#twins.isMixed && usage.quire.engines.length > 1);
    if (isApproximate) {
      const made = guessed(state, prompt, turn, choice.text, choice.reason);
      // Tokens that are no text, or half a character.
      if (made.ids.length !== usage.prompt_tokens + usage.completion_tokens) this.isOver = true;
      return [made];
    }
    const all = await this.#twins.replies(this.name, prompt, turn.manner, outcome.fingerprint);
    const found = all.filter(({ text, reason }) => choice.text === text && choice.reason === reason);
    const [expected] = found;
    if (expected === undefined) return [];
    await this.#checkOthers(others, prompt, turn);
    const isCounted = ({ completionTokens }: Expected) => usage.completion_tokens === completionTokens;
    if (others.length === 0 && !found.some(isCounted))
      this.fail(`${usage.completion_tokens} tokens are counted, not ${expected.completionTokens}`);
    this.#checkLogprobs(choice.logprobs, found);
    this.#report.compared += 1 + others.length;
    const made = found.flatMap((one) => {
      const hows = usage.quire.policy === undefined ? howsOf(one) : [one.how];
      return hows.map((how) => turnMade(state, prompt, { ...one, how }));
    });
    return distinct(made);
  }

  /** The second choice of an answer, and those behind it. */
  async #checkOthers(others: readonly AnswerChoice[], prompt: Prompt, { manner }: AskedTurn): Promise<void> {
    for (const [index, { text }] of others.entries()) {
      const seed = manner.seed + index + 1;
      const also = await this.#twins.replies(this.name, prompt, { ...manner, seed });
      if (!also.some((one) => text === one.text))
        this.fail(`choice ${index + 1} says ${quote(text)}, not ${quote(also[0]?.text)}`);
    }
  }

  /** What is left of a turn whose end nobody heard. */
  async #perhaps(
    state: Transcript,
    { turn, isEdgeLost }: Answered,
    outcome: Extract<Outcome, { kind: "left" | "lost" }>,
  ): Promise<Transcript[]> {
    const prompt = promptOf(state, turn.sent, turn.isWhole);
    const mayBeNothing = outcome.text.length === 0 || isEdgeLost || !turn.isStream;
    const nothing = mayBeNothing ? [state] : [];
    if (state.isApproximate || !turn.exact) {
      this.isOver = true;
      return [state];
    }
    const all = await this.#twins.replies(this.name, prompt, turn.manner, outcome.fingerprint);
    const found = all.filter(({ text }) => text.startsWith(outcome.text));
    const kept = found.flatMap((expected) => repliesKept(expected, turn.isStream ? outcome.text.length : undefined));
    return distinct([...(found.length > 0 ? nothing : []), ...kept.map((reply) => turnMade(state, prompt, reply))]);
  }

  #checkUsage({ prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details, quire }: AnswerUsage): void {
    const { cached_tokens: cached } = prompt_tokens_details;
    const { device = 0, host = 0, store = 0 } = quire.source ?? {};
    const isSummed = total_tokens === prompt_tokens + completion_tokens && cached <= prompt_tokens;
    if (!isSummed || device + host + store !== (quire.source === undefined ? 0 : cached))
      this.fail(
        `usage does not add up: ${JSON.stringify({ prompt_tokens, completion_tokens, total_tokens, cached, ...quire })}`,
      );
    this.#report.cachedTokens += cached;
    this.#report.storeTokens += store;
    this.#report.recomputedTokens += quire.recomputed_tokens ?? 0;
    if (quire.engines.length > 1) this.#report.takenOver += 1;
  }

  #checkLogprobs(got: readonly number[] | undefined, found: readonly Expected[]): void {
    for (const [index, value] of (got ?? []).entries()) {
      const must = found.map(({ logprobs }) => logprobs[index] ?? Number.NaN);
      if (!must.some((one) => Math.abs(value - one) <= LOGPROB_TOLERANCE))
        this.fail(`log probability ${index} is ${value}, and should be ${must.join(" or ")}`);
    }
    if (got) this.#report.logprobs += got.length;
  }

  async #explain(answers: readonly Answered[]): Promise<string> {
    const lines = ["no log explains what was answered"];
    for (const { turn, outcome } of answers) {
      for (const state of this.states.slice(0, 4)) {
        const prompt = promptOf(state, turn.sent, turn.isWhole);
        const all = await this.#twins.replies(this.name, prompt, turn.manner);
        const { ids, turnStart, spans } = prompt;
        const log = `log of ${state.ids.length} tokens and ${state.turnCount} turns`;
        const said = all
          .map(({ completionTokens, text, reason }) => `${completionTokens} tokens ${quote(text)} (${reason})`)
          .join(" or ");
        lines.push(`  ${log}: prompt ${ids.length} from ${turnStart}, ${spans.length} spans, then ${said}`);
      }
      lines.push(`  was: ${describeTurn(turn)} -> ${describe(outcome)}`);
    }
    return `${lines.join("\n")}\n  of ${this.states.length} possible logs`;
  }
}

/** Codes that a client may meet whatever it does right. */
export function isExcused(code: string): boolean {
  return code in ERROR_TABLE && ERROR_TABLE[code as keyof typeof ERROR_TABLE].retry;
}

/** For people. */
export function describe(outcome: Outcome): string {
  switch (outcome.kind) {
    case "done": {
      const { usage, choices, id } = outcome;
      const { engines, policy, recomputed_tokens } = usage.quire;
      const counts = `${usage.prompt_tokens}+${usage.completion_tokens}, ${usage.prompt_tokens_details.cached_tokens} cached`;
      return `done ${id.slice(-6)} ${counts}, ${recomputed_tokens} again, ${policy} at ${engines.length} engines: ${quote(choices[0]?.text)}`;
    }
    case "refused":
      return `refused ${outcome.status} ${outcome.code}`;
    case "failed":
      return `failed ${outcome.code} behind ${quote(outcome.text)}`;
    case "lost":
      return `lost (${outcome.why}) behind ${quote(outcome.text)}`;
    case "left":
      return `left behind ${quote(outcome.text)}`;
  }
}

function describeTurn({ sent, isWhole, manner, exact, isStream }: AskedTurn): string {
  const { policy, budgetTokens, temperature, tokensMax, stops } = manner;
  const how = `${policy} ${budgetTokens}${exact ? "" : " inexact"}, ${temperature}, ${tokensMax} at most`;
  const what = `${isWhole ? "transcript" : "turn"} of ${sent.map(({ role, content }) => `${role[0]}${content.length}`).join(" ")}`;
  return `${what} (${how}${stops.length > 0 ? `, stops ${stops.join("|")}` : ""}${isStream ? ", stream" : ""})`;
}

function mayHaveMissed({ exact }: AskedTurn, { quire }: AnswerUsage): boolean {
  return !exact && (quire.pages_missed === undefined || quire.pages_missed > 0 || quire.engines.length > 1);
}

/** How a turn may be logged whose engine was not heard to its end. */
function howsOf({ how }: Expected): Expected["how"][] {
  return how.reply === "dense" ? [how] : [how, { prompt: "dense", reply: "dense" }];
}

/** What a log may keep of a reply. @param heardLength characters of a stream that its client heard; undefined for an answer that is kept whole */
function repliesKept(expected: Expected, heardLength: number | undefined) {
  const { ids, isEnded } = expected;
  // A reply that a stop string cut at its beginning keeps nothing.
  const least = heardLength === undefined ? ids.length : Math.min(ids.length, Math.max(1, heardLength));
  return howsOf(expected).flatMap((how) => [
    ...range(least, ids.length).map((count) => ({ ids: ids.slice(0, count), isEnded: false, how })),
    ...(isEnded ? [{ ids, isEnded, how }] : []),
  ]);
}

/** Of a turn that nothing can be compared with: as it says itself. */
function guessed(state: Transcript, prompt: Prompt, { manner }: AskedTurn, text: string, reason?: string): Transcript {
  const ids = [...new TextEncoder().encode(text)];
  const isEnded = reason === "stop" && manner.stops.length === 0;
  const made = turnMade(state, prompt, { ids, isEnded, how: { prompt: "dense", reply: "dense" } });
  return { ...made, isApproximate: true };
}

function quote(text = ""): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 40)}...${text.slice(-16)}` : text);
}

function range(from: number, to: number): number[] {
  return Array.from({ length: Math.max(0, to - from + 1) }, (_, index) => from + index);
}

function orders<T>(list: readonly T[]): T[][] {
  return list.length === 2 ? [[...list], [...list].reverse()] : [[...list]];
}

function distinct(states: readonly Transcript[]): Transcript[] {
  const named = states.map((state) => {
    return [JSON.stringify([state.ids, state.spans, state.turnCount, state.messages.length]), state] as const;
  });
  return [...new Map(named).values()];
}
