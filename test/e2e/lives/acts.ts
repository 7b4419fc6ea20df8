/** What clients do to conversations, drawn by a seed. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, describeGap, type Outcome, type Reading } from "./client.ts";
import { type Answered, type AskedTurn, Conversation, describe, isExcused, Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import type { TenantName } from "./stack.ts";
import { END, NO_TRANSCRIPT, rawPrompt, type Transcript, type Words } from "./transcript.ts";
import { CONTEXT_TOKENS, DENSE, type Manner } from "./twin.ts";

const POLICIES = [
  ...(["dense", "dense", "dense", "quest", "quest", "mean-deviation", "quest+scope(layer)", "quest+share(2)"] as const),
  ...(["quest+reuse(4)", "mean-deviation+reuse(8)", "streaming", "tokenselect"] as const),
];
/** What half of a tenant's conversations begin with. */
const DOCUMENT = "Nobody came along the road from the one side or from the other, and the tide went out. ".repeat(6);
const NAMES = ["Badoru", "Kelino", "Mogari", "Sunole"];
const STOPS = ["code", "is ", ".", "o", "The"];
/** Longer than any turn may keep a session behind its client's leaving, a killed edge, or a lost object that is taken up by its alarm. */
const STUCK_MS = 60_000;
const REPLY_TOKENS = [1, 2, 8, 24, 40];
/** Of replies that may not end by themselves. */
const LONG_TOKENS = [60, 120, 200];
const LONG_LOG_TOKENS = CONTEXT_TOKENS / 2;
const LOG_TOKENS_MAX = CONTEXT_TOKENS - 500;

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
}

/** One client's. */
export class Acts {
  readonly #world: LifeWorld;
  readonly #tenant: TenantName;
  readonly #client: Client;
  readonly #next: () => number;

  constructor(options: { world: LifeWorld; tenant: TenantName; next: () => number }) {
    this.#world = options.world;
    this.#tenant = options.tenant;
    this.#client = options.world.clients[options.tenant];
    this.#next = options.next;
  }

  /** A conversation of which nothing is said yet: in a session, or without one. */
  begin(name: string): Conversation {
    const { twin, report } = this.#world;
    const sessionId = this.#next() < 0.75 ? `life-${name}` : undefined;
    return new Conversation(name, { sessionId, client: this.#client, twin, report });
  }

  /** Does something. @returns a fork, where that is what it did */
  async act(conversation: Conversation): Promise<Conversation | undefined> {
    const { known, sessionId } = conversation;
    if (sessionId === undefined && this.#next() < 0.15) return void (await this.#listed());
    if (sessionId === undefined) return void (await this.#plain(conversation));
    const kind = this.#next();
    if (known === undefined) await this.#one(conversation, { leaves: false });
    else if (known.turnCount === 0 || kind < 0.35) await this.#one(conversation, { leaves: true });
    else if (kind < 0.47) await this.#again(conversation, known);
    else if (kind < 0.57) await this.#two(conversation);
    else if (kind < 0.67) await this.#repeated(conversation, known);
    else if (kind < 0.76) await this.#cut(conversation);
    else if (kind < 0.82) await this.#stop(conversation);
    else if (kind < 0.88) return await this.#fork(conversation, known);
    else if (kind < 0.93) await this.#delete(conversation);
    else await conversation.look();
    if ((conversation.known?.ids.length ?? 0) > LOG_TOKENS_MAX) conversation.isOver = true;
    return undefined;
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#next() * list.length)] as T;
  }

  /** Words of a user: a passage with facts, or a question. */
  #words(conversation: Conversation, isFirst: boolean): string {
    const name = this.#pick(NAMES);
    if (!isFirst && this.#next() < 0.7) return `What is the code of ${name}?`;
    const filler = "The boats lay still and the gulls slept upon the wall. ".repeat(Math.floor(6 * this.#next()));
    const odd = this.#pick(["", "", "", "<|end|> ", "Größe – 🙂 ", "\n\n"]);
    const code = 1_000 + Math.floor(9_000 * this.#next());
    const document = isFirst && this.#next() < 0.5 ? DOCUMENT : "";
    return `${document}${isFirst ? `Log ${conversation.name}. ` : ""}${odd}${filler}The code of ${name} is ${code}. What is the code of ${this.#pick(NAMES)}?`;
  }

  #turn(sent: readonly Words[], { isWhole = false, isCalm = false } = {}): AskedTurn {
    const policy = isWhole ? "dense" : this.#pick(POLICIES);
    const isSampled = !isWhole && this.#next() < 0.25;
    const exact = policy === "dense" || this.#next() < 0.85;
    const isLong = this.#next() < 0.3;
    const manner: Manner = {
      ...{ policy, budgetTokens: this.#pick([128, 128, 256]), temperature: isSampled ? 0.8 : 0 },
      ...{ seed: Math.floor(this.#next() * 1e6), isLong, tokensMax: this.#pick(isLong ? LONG_TOKENS : REPLY_TOKENS) },
      stops: !isCalm && exact && !isSampled && !isLong && this.#next() < 0.15 ? [this.#pick(STOPS)] : [],
    };
    const hasLogprobs = !isCalm && this.#next() < 0.2;
    return { sent, isWhole, manner, exact, hasLogprobs, isStream: isCalm ? false : this.#next() < 0.6 };
  }

  /** New words in the session, heard to the end or left. */
  async #one(conversation: Conversation, { leaves }: { leaves: boolean }): Promise<void> {
    const isFirst = conversation.known?.turnCount === 0;
    const system: Words[] = isFirst && this.#next() < 0.3 ? [{ role: "system", content: "Be brief." }] : [];
    const sent = [...system, { role: "user" as const, content: this.#words(conversation, isFirst) }];
    const turn = this.#turn(sent, { isCalm: !leaves });
    const reading: Reading = {};
    if (leaves && this.#next() < 0.35) reading.leaveAfter = this.#pick([0, 0, 1, 4, 12]);
    if (reading.leaveAfter === 0) reading.pauseMs = Math.floor(this.#next() * 250);
    else if (turn.isStream && this.#next() < 0.25) reading.pauseMs = Math.floor(this.#next() * 120);
    await conversation.take([await this.#ask(conversation, turn, reading)]);
  }

  /** The transcript again, without its last reply, with an earlier message edited, or cut in the middle. */
  async #again(conversation: Conversation, known: Transcript): Promise<void> {
    const words = known.messages.map(({ role, content }) => ({ role, content }));
    const users = words.flatMap(({ role }, index) => (role === "user" ? [index] : []));
    const at = this.#pick(users);
    const sent = words.slice(0, at + 1);
    const last = sent.at(-1) as Words;
    const kept = last.content.slice(0, Math.floor(last.content.length * this.#next()));
    if (this.#next() < 0.6)
      sent.splice(-1, 1, { role: "user", content: `${kept} And ${this.#words(conversation, false)}` });
    const replies = words.slice(0, at).flatMap(({ role }, index) => (role === "assistant" ? [index] : []));
    if (replies.length > 1 && this.#next() < 0.2) {
      const edited = this.#pick(replies.slice(1));
      sent.splice(edited, 1, { role: "assistant", content: `${sent[edited]?.content.slice(0, 5)} I do not know.` });
    }
    await conversation.take([await this.#ask(conversation, this.#turn(sent))]);
  }

  /** Two turns at once: one runs, or one after the other. */
  async #two(conversation: Conversation): Promise<void> {
    const first = this.#turn([{ role: "user", content: this.#words(conversation, false) }], {
      isCalm: true,
    });
    const isSame = this.#next() < 0.5;
    const sent = [{ role: "user" as const, content: this.#words(conversation, false) }];
    const second = isSame ? first : this.#turn(sent, { isCalm: true });
    const turns = [first, second].map((turn) => ({ ...turn, exact: true }));
    const answers = await Promise.all(turns.map((turn) => this.#ask(conversation, turn, {}, { isOnce: true })));
    await conversation.take(answers);
  }

  /** The same request twice, at once or one after the other, under one name: it is run once. */
  async #repeated(conversation: Conversation, known: Transcript): Promise<void> {
    const headers = { "idempotency-key": randomUUID() };
    const turn = this.#turn([{ role: "user", content: this.#words(conversation, false) }]);
    const isOther = this.#next() < 0.3;
    const other = isOther ? { ...turn, sent: [{ role: "user" as const, content: "Something else?" }] } : turn;
    const isAtOnce = !isOther && this.#next() < 0.5;
    const moves = this.#world.edgeMoves();
    const ask = (asked: AskedTurn) =>
      this.#ask(conversation, asked, { cutAfterBytes: 1e9 }, { headers, isOnce: isAtOnce });
    const first = isAtOnce ? undefined : await ask(turn);
    const [a, b] = first ? [first, await ask(other)] : await Promise.all([ask(turn), ask(turn)]);
    this.#world.report.repeated += 1;
    const [whole, also] = [a, b].map(({ outcome }) => (outcome.kind === "done" ? outcome : undefined));
    if (whole && also && whole.id === also.id) {
      const [x, y] = [whole.choices[0], also.choices[0]];
      if (x?.text !== y?.text)
        conversation.fail(`one turn was told in two ways: ${describe(a.outcome)}, ${describe(b.outcome)}`);
      await conversation.take([a]);
    } else if (this.#world.edgeMoves() > moves || moves % 2 > 0) {
      // Which of them ran, nobody can tell.
      conversation.isOver = true;
    } else if (whole && also) {
      conversation.fail(
        `a turn was run twice: ${describe(a.outcome)}, ${describe(b.outcome)} behind ${known.turnCount} turns`,
      );
    } else {
      const said = [a, b].filter(({ outcome }) => outcome.kind !== "refused");
      await conversation.take(
        said.length > 1 ? said.filter(({ outcome }) => outcome.kind === "done").slice(0, 1) : said,
      );
    }
  }

  /** A resumable stream, cut somewhere and taken up again. */
  async #cut(conversation: Conversation): Promise<void> {
    const turn = {
      ...this.#turn([{ role: "user", content: this.#words(conversation, false) }]),
      isStream: true,
    };
    const cutAfterBytes = Math.floor(this.#next() * 6_000);
    this.#world.report.cuts += 1;
    const headers = { "idempotency-key": randomUUID() };
    const answer = await this.#ask(conversation, { ...turn, hasLogprobs: false }, { cutAfterBytes }, { headers });
    await conversation.take([answer]);
    const { outcome } = answer;
    if (outcome.kind !== "done" || this.#next() < 0.5) return;
    const moves = this.#world.edgeMoves();
    const again = await this.#client.follow(conversation.sessionId as string, headers);
    const isSame =
      again.kind === "done" && again.choices[0]?.text === outcome.choices[0]?.text && again.id === outcome.id;
    if (!isSame && this.#world.edgeMoves() === moves && moves % 2 === 0)
      conversation.fail(`${describe(outcome)} was told again as ${describe(again)}`);
  }

  /** A resumable turn that is ended by its name while it runs, before it comes, or too late. */
  async #stop(conversation: Conversation): Promise<void> {
    const words = { role: "user" as const, content: this.#words(conversation, false) };
    const turn = { ...this.#turn([words], { isCalm: true }), isStream: true };
    const headers = { "idempotency-key": randomUUID() };
    const asked = this.#ask(conversation, turn, { cutAfterBytes: 1e9 }, { headers, isOnce: true, isStopped: true });
    asked.catch(() => undefined);
    await sleep(500 * this.#next() ** 2);
    const stopped = await this.#client.ask(
      "DELETE",
      `/v1/sessions/${conversation.sessionId}/stream`,
      undefined,
      headers,
    );
    if (stopped && ![200, 404].includes(stopped.status) && stopped.status < 500)
      conversation.fail(`a turn's end was answered ${stopped.status} ${JSON.stringify(stopped.body)}`);
    const { outcome, ...rest } = await asked;
    const isCancelled = outcome.kind === "failed" && outcome.code === "cancelled";
    const heard = isCancelled ? { kind: "left" as const, text: outcome.text, isStream: true } : outcome;
    await conversation.take([{ ...rest, outcome: heard }]);
    this.#world.report.stopped += 1;
  }

  /** A fork, in four of ten beside a turn of the session: it has that turn or not. */
  async #fork(conversation: Conversation, known: Transcript): Promise<Conversation | undefined> {
    const beside = this.#next() < 0.4 ? this.#beside(conversation) : undefined;
    if (beside) await sleep(300 * this.#next());
    const answer = await this.#client.ask("POST", `/v1/sessions/${conversation.sessionId}/fork`, {});
    if (beside) await conversation.take([await beside]);
    if (!answer || answer.status >= 500) return undefined;
    if (answer.status !== 200) conversation.fail(`a fork was answered ${answer.status} ${JSON.stringify(answer.body)}`);
    this.#world.report.forks += 1;
    const { twin, report } = this.#world;
    const sessionId = String(answer.body.id);
    return new Conversation(`fork of ${conversation.name}`, {
      sessionId,
      client: this.#client,
      twin,
      report,
      states: beside ? [known, ...conversation.states.filter((state) => state !== known)] : [known],
    });
  }

  /** A turn that nothing waits for. */
  #beside(conversation: Conversation): Promise<Answered> {
    const turn = this.#turn([{ role: "user", content: this.#words(conversation, false) }], { isCalm: true });
    const asked = this.#ask(conversation, { ...turn, exact: true }, {}, { isOnce: true });
    // Awaited later, and thrown then.
    asked.catch(() => undefined);
    return asked;
  }

  /** A deletion beside a turn: the one is before the other, or is refused. */
  async #deleteBeside(conversation: Conversation): Promise<void> {
    const beside = this.#beside(conversation);
    await sleep(200 * this.#next());
    const deletion = await this.#client.ask("DELETE", `/v1/sessions/${conversation.sessionId}`);
    const answered = await beside;
    conversation.story.push(`delete beside a turn -> ${deletion?.status}`);
    if (deletion?.status === 409) return conversation.take([answered]);
    // Nobody knows what became of one that was not answered, and of a turn that was not.
    if (deletion?.status !== 200 || !["done", "refused"].includes(answered.outcome.kind)) {
      conversation.isOver = true;
      return;
    }
    this.#world.report.deletions += 1;
    const isBehind = answered.outcome.kind === "done" && answered.outcome.usage.prompt_tokens < conversation.tokensMax;
    if (!isBehind) await conversation.take([answered]);
    conversation.states = [NO_TRANSCRIPT];
    if (isBehind) await conversation.take([answered]);
  }

  async #delete(conversation: Conversation): Promise<void> {
    if (this.#next() < 0.3) return this.#deleteBeside(conversation);
    const sessionId = conversation.sessionId as string;
    const moves = this.#world.edgeMoves();
    const endMs = performance.now() + STUCK_MS;
    for (;;) {
      const answer = await this.#client.ask("DELETE", `/v1/sessions/${sessionId}`);
      conversation.story.push(`delete -> ${answer?.status}`);
      if (answer?.status === 200) break;
      const isSecond = answer?.status === 404 && (this.#world.edgeMoves() > moves || moves % 2 > 0);
      if (isSecond) break;
      if (answer && ![409, 500, 503, 504].includes(answer.status))
        conversation.fail(`a deletion was answered ${answer.status} ${JSON.stringify(answer.body)}`);
      if (performance.now() > endMs) conversation.fail("cannot be deleted");
      await sleep(300);
    }
    this.#world.report.deletions += 1;
    conversation.states = [NO_TRANSCRIPT];
    // Its name is taken again, or nobody's.
    if (this.#next() < 0.5) return;
    conversation.isOver = true;
    this.#world.deleted.push({ tenant: this.#tenant, sessionId });
  }

  /** A whole transcript that names no session, as OpenAI's clients send it. */
  async #plain(conversation: Conversation): Promise<void> {
    const said = conversation.states[0]?.messages.map(({ role, content }) => ({ role, content })) ?? [];
    const sent = [...said, { role: "user" as const, content: this.#words(conversation, said.length === 0) }];
    const turn = this.#turn(sent, { isWhole: true });
    const choiceCount = this.#next() < 0.2 ? 3 : 1;
    const answer = await this.#ask(conversation, turn, {}, { choiceCount });
    const { outcome } = answer;
    // Nothing is kept for whoever names nothing: what was not heard was not said.
    if (outcome.kind === "done") await this.#takePlain(conversation, answer);
    if (conversation.states[0] && conversation.states[0].ids.length > LOG_TOKENS_MAX) conversation.isOver = true;
  }

  /** Raw texts, several at once, that belong to nothing. */
  async #listed(): Promise<void> {
    const tokensMax = this.#pick(REPLY_TOKENS);
    const prompts = Array.from(
      { length: 1 + Math.floor(3 * this.#next()) },
      () => `The code of ${this.#pick(NAMES)} is`,
    );
    const quire = { selection: { policy: "dense", exact: true } };
    const body = { model: "house-0", prompt: prompts, temperature: 0, max_tokens: tokensMax, quire };
    const outcome = await this.#client.send("/v1/completions", body);
    this.#world.report.turns += 1;
    this.#world.report[outcome.kind] += 1;
    if (outcome.kind !== "done") return;
    for (const [index, prompt] of prompts.entries()) {
      const manner = { ...DENSE, tokensMax };
      const expected = await this.#world.twin.reply("raw", rawPrompt(prompt), manner);
      const { text, reason } = outcome.choices[index] ?? {};
      if (text !== expected.text || reason !== expected.reason)
        throw new Violation(
          `raw text ${index} of ${prompts.length} ${JSON.stringify(prompt)}: ${JSON.stringify(text)}, and should be ${JSON.stringify(expected.text)}`,
        );
      this.#world.report.compared += 1;
    }
  }

  async #takePlain(conversation: Conversation, answer: Answered): Promise<void> {
    await conversation.take([answer]);
    const [state] = conversation.states;
    // Bytes that are no text do not come back as they went out.
    if (state?.messages.some(({ content }) => content.includes("\ufffd"))) conversation.isOver = true;
  }

  /** Asks until it is answered, and counts. */
  async #ask(
    conversation: Conversation,
    turn: AskedTurn,
    reading: Reading = {},
    { headers = {}, isOnce = false, isStopped = false, choiceCount = 1 }: HowToAsk = {},
  ): Promise<Answered> {
    const { report } = this.#world;
    const moves = this.#world.edgeMoves();
    const endMs = performance.now() + STUCK_MS;
    for (;;) {
      report.turns += 1;
      const body = bodyOf(turn, {
        sessionId: conversation.sessionId,
        isResumable: reading.cutAfterBytes !== undefined,
        choiceCount,
      });
      const outcome = await this.#client.send("/v1/chat/completions", body, { ...reading, headers });
      report[outcome.kind] += 1;
      const isEdgeLost = this.#world.edgeMoves() > moves || moves % 2 > 0;
      this.#checkExcuse(conversation, outcome, isEdgeLost, isStopped);
      const isTold = outcome.kind === "failed" && !isStopped;
      if (isTold)
        this.#world.slow.push(`${conversation.name}: ${describe(outcome)} in a turn ${JSON.stringify(body.quire)}`);
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
      await sleep(100 + 200 * this.#next());
    }
  }

  #noteWait(conversation: Conversation, waitMs: number, outcome: Outcome): void {
    const { report, slow } = this.#world;
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

/** @throws {Violation} for a turn without words */
function bodyOf(
  { sent, manner, exact, hasLogprobs, isStream }: AskedTurn,
  options: { sessionId: string | undefined; isResumable: boolean; choiceCount: number },
): Record<string, unknown> {
  if (sent.length === 0) throw new Violation("a turn without words");
  const { policy, budgetTokens, temperature, seed, tokensMax, stops, isLong } = manner;
  const { sessionId, isResumable, choiceCount } = options;
  return {
    ...{ model: "house-0", messages: sent, temperature, seed, max_tokens: tokensMax },
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
