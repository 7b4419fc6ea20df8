/** How one client of a life asks for turns: drawn by a seed, tried again until they are answered, and counted. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, describeGap, type Outcome, type Reading } from "./client.ts";
import { type Answered, type AskedTurn, type Conversation, describe, isExcused, Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import type { TenantName } from "./stack.ts";
import { END, type Words } from "./transcript.ts";
import { CONTEXT_TOKENS, type Manner } from "./twin.ts";

const POLICIES = [
  ...(["dense", "dense", "dense", "quest", "quest", "mean-deviation", "quest+scope(layer)", "quest+share(2)"] as const),
  ...(["quest+reuse(4)", "mean-deviation+reuse(8)", "streaming", "tokenselect"] as const),
];
/** What half of a tenant's conversations begin with. */
const DOCUMENT = "Nobody came along the road from the one side or from the other, and the tide went out. ".repeat(6);
/** Whose codes are told and asked for. */
export const NAMES = ["Badoru", "Kelino", "Mogari", "Sunole"];
const STOPS = ["code", "is ", ".", "o", "The", "e code of", "code of", "of", "1", "ode of M"];
/** Longer than any turn may keep a session behind its client's leaving, a killed edge, or a lost object that is taken up by its alarm. */
export const STUCK_MS = 60_000;
/** Longest replies. */
export const REPLY_TOKENS = [1, 2, 8, 24, 40];
/** Of replies that may not end by themselves. */
const LONG_TOKENS = [60, 120, 200];
/** Of these two long turns may not both have room. */
const LONG_LOG_TOKENS = 800;
/** A conversation that has more is not gone on with. */
export const LOG_TOKENS_MAX = CONTEXT_TOKENS - 500;

/** Told of, for people. */
const SLOW_MS = 8_000;

/** How often, and by what name. */
interface HowToAsk {
  headers?: Record<string, string>;
  /** Whatever comes of it, it is not asked again. */
  isOnce?: boolean;
  /** It may be ended by its name. */
  isStopped?: boolean;
  choiceCount?: number;
  /** Its name is another request's. */
  isOtherBody?: boolean;
}

/** One client, and what it draws from. */
export class Asker {
  protected readonly world: LifeWorld;
  protected readonly tenant: TenantName;
  protected readonly client: Client;
  protected readonly next: () => number;

  constructor(options: { world: LifeWorld; tenant: TenantName; next: () => number }) {
    this.world = options.world;
    this.tenant = options.tenant;
    this.client = options.world.clients[options.tenant];
    this.next = options.next;
  }

  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)] as T;
  }

  /** Words of a user: a passage with facts, or a question. */
  words(conversation: Conversation, isFirst: boolean): string {
    const name = this.pick(NAMES);
    if (!isFirst && this.next() < 0.7) return `What is the code of ${name}?`;
    const filler = "The boats lay still and the gulls slept upon the wall. ".repeat(Math.floor(6 * this.next()));
    const odd = this.pick(["", "", "", "<|end|> ", "Größe – 🙂 ", "\n\n"]);
    const code = 1_000 + Math.floor(9_000 * this.next());
    const document = isFirst && this.next() < 0.5 ? DOCUMENT : "";
    return `${document}${isFirst ? `Log ${conversation.name}. ` : ""}${odd}${filler}The code of ${name} is ${code}. What is the code of ${this.pick(NAMES)}?`;
  }

  turn(sent: readonly Words[], { isWhole = false, isCalm = false } = {}): AskedTurn {
    const policy = isWhole ? "dense" : this.pick(POLICIES);
    const isSampled = !isWhole && this.next() < 0.25;
    const exact = policy === "dense" || this.next() < 0.85;
    const isLong = this.next() < 0.3;
    const manner: Manner = {
      ...{ policy, budgetTokens: this.pick([128, 128, 256]), temperature: isSampled ? 0.8 : 0 },
      ...{ seed: Math.floor(this.next() * 1e6), isLong, tokensMax: this.pick(isLong ? LONG_TOKENS : REPLY_TOKENS) },
      stops: !isCalm && exact && !isSampled && !isLong && this.next() < 0.2 ? this.#stops() : [],
      ...this.#sampling(isSampled, isWhole),
    };
    const hasLogprobs = !isCalm && this.next() < 0.2;
    return { sent, isWhole, manner, exact, hasLogprobs, isStream: isCalm ? false : this.next() < 0.6 };
  }

  #stops(): string[] {
    return Array.from({ length: 1 + Math.floor(3 * this.next()) }, () => this.pick(STOPS));
  }

  /** What else a token depends on: a part of the likely ones, and what was said before. */
  #sampling(isSampled: boolean, isWhole: boolean): Partial<Manner> {
    const isCut = isSampled && this.next() < 0.5;
    const cut = isCut ? this.pick([{ topP: 0.7 }, { topK: 5 }, { minP: 0.1 }, { topP: 0.9, topK: 20 }]) : {};
    if (isWhole || this.next() > 0.2) return cut;
    return {
      ...cut,
      ...this.pick([{ frequencyPenalty: 0.5 }, { presencePenalty: 1.5 }, { repetitionPenalty: 1.3 }]),
    };
  }

  /** Asks until it is answered, and counts. */
  async ask(
    conversation: Conversation,
    turn: AskedTurn,
    reading: Reading = {},
    { headers = {}, isOnce = false, isStopped = false, choiceCount = 1, isOtherBody = false }: HowToAsk = {},
  ): Promise<Answered> {
    const { report } = this.world;
    const moves = this.world.edgeMoves();
    const endMs = performance.now() + STUCK_MS;
    for (;;) {
      report.turns += 1;
      const body = bodyOf(turn, {
        sessionId: conversation.sessionId,
        isResumable: reading.cutAfterBytes !== undefined,
        choiceCount,
      });
      const outcome = await this.client.send("/v1/chat/completions", body, { ...reading, headers });
      report[outcome.kind] += 1;
      const isEdgeLost = this.world.edgeMoves() > moves || moves % 2 > 0;
      if (isEdgeLost && "idempotency-key" in headers && isUnheld(outcome)) {
        const lost = { kind: "lost" as const, text: "", why: "it ended as the edge was killed" };
        return { turn, outcome: lost, isEdgeLost };
      }
      const isDenied = outcome.kind === "refused" && outcome.code === "invalid_request";
      if (!(isOtherBody && isDenied)) this.#checkExcuse(conversation, outcome, isEdgeLost, isStopped);
      const isTold = outcome.kind === "failed" && !isStopped;
      if (isTold)
        this.world.slow.push(`${conversation.name}: ${describe(outcome)} in a turn ${JSON.stringify(body.quire)}`);
      const isNamed = "idempotency-key" in headers;
      const isFull = outcome.kind === "refused" && outcome.code === "context_length_exceeded";
      if (isFull) conversation.isOver = true;
      const isAgain =
        (outcome.kind === "refused" && !isFull) || outcome.kind === "failed" || (outcome.kind === "lost" && isNamed);
      if (!isAgain || isOnce) {
        this.#noteWait(conversation, performance.now() - endMs + STUCK_MS, outcome);
        return { turn, outcome, isEdgeLost };
      }
      conversation.story.push(describeGap(outcome));
      if (performance.now() > endMs) conversation.fail(`stuck: ${describe(outcome)}`);
      await sleep(100 + 200 * this.next());
    }
  }

  #noteWait(conversation: Conversation, waitMs: number, outcome: Outcome): void {
    const { report, slow } = this.world;
    report.longestWaitMs = Math.max(report.longestWaitMs, Math.round(waitMs));
    const tries = conversation.story.slice(-30).filter((line) => line.startsWith("..."));
    if (waitMs > SLOW_MS)
      slow.push(`${conversation.name}: ${Math.round(waitMs)} ms, ${describe(outcome)} [${tries.join(" ")}]`);
  }

  #checkExcuse(conversation: Conversation, outcome: Outcome, isEdgeLost: boolean, isStopped: boolean): void {
    const isAsked =
      isStopped && (outcome.kind === "refused" || outcome.kind === "failed") && outcome.code === "cancelled";
    if (isAsked) return;
    // Two long turns at once may not both have room.
    if (
      outcome.kind === "refused" &&
      outcome.code === "context_length_exceeded" &&
      conversation.tokensMax > LONG_LOG_TOKENS
    )
      return;
    if ((outcome.kind === "refused" || outcome.kind === "failed") && !isExcused(outcome.code))
      conversation.fail(`a turn ended with ${describe(outcome)}`);
    if (outcome.kind === "lost" && !isEdgeLost) conversation.fail(`a connection broke off: ${describe(outcome)}`);
  }
}

/** A turn that ran, and of which nothing is held. */
function isUnheld(outcome: Outcome): boolean {
  return outcome.kind === "refused" && outcome.code === "stream_not_found";
}

/** @throws {Violation} for a turn without words */
function bodyOf(
  { sent, manner, exact, hasLogprobs, isStream }: AskedTurn,
  options: { sessionId: string | undefined; isResumable: boolean; choiceCount: number },
): Record<string, unknown> {
  if (sent.length === 0) throw new Violation("a turn without words");
  const { policy, budgetTokens, temperature, seed, tokensMax, stops, isLong } = manner;
  const { topP, topK, minP, frequencyPenalty, presencePenalty, repetitionPenalty } = manner;
  const { sessionId, isResumable, choiceCount } = options;
  return {
    ...{ model: "house-0", messages: sent, temperature, seed, max_tokens: tokensMax },
    ...(topP === undefined ? {} : { top_p: topP }),
    ...(topK === undefined ? {} : { top_k: topK }),
    ...(minP === undefined ? {} : { min_p: minP }),
    ...(frequencyPenalty === undefined ? {} : { frequency_penalty: frequencyPenalty }),
    ...(presencePenalty === undefined ? {} : { presence_penalty: presencePenalty }),
    ...(repetitionPenalty === undefined ? {} : { repetition_penalty: repetitionPenalty }),
    ...(isLong ? { logit_bias: { [END]: -100 } } : {}),
    ...(stops.length > 0 ? { stop: stops } : {}),
    ...(hasLogprobs ? { logprobs: true } : {}),
    ...(choiceCount > 1 ? { n: choiceCount } : {}),
    ...(isStream ? { stream: true, stream_options: { include_usage: true } } : {}),
    quire: {
      // On a model without calibration it is dense in such contexts.
      selection:
        policy === "dense" && seed % 4 === 0 ? { policy: "auto" } : { policy, budget_tokens: budgetTokens, exact },
      ...(sessionId === undefined ? {} : { session_id: sessionId }),
      ...(isResumable ? { resumable: true } : {}),
      ...(seed % 3 === 0 ? { speculation: true } : {}),
      ...(seed % 5 === 0 ? { resume: ["lazy", "full", "recompute", "auto"][seed % 4] } : {}),
    },
  };
}
