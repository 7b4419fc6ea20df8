/** What clients do to conversations, drawn by a seed. */
import { setTimeout as sleep } from "node:timers/promises";
import { Asker, LOG_TOKENS_MAX, NAMES, REPLY_TOKENS, STUCK_MS } from "./asking.ts";
import type { Reading } from "./client.ts";
import { type Answered, Conversation, describe, isExcused, Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import { NamedTurns } from "./named-turns.ts";
import type { TenantName } from "./stack.ts";
import { NO_TRANSCRIPT, rawPrompt, type Transcript, type Words } from "./transcript.ts";
import { CONTEXT_TOKENS, DENSE } from "./twin.ts";

/** One client's. */
export class Acts extends Asker {
  readonly #named: NamedTurns;

  constructor(options: { world: LifeWorld; tenant: TenantName; next: () => number }) {
    super(options);
    this.#named = new NamedTurns(options);
  }

  /** A conversation of which nothing is said yet: in a session, or without one. */
  begin(name: string): Conversation {
    const { twins, report } = this.world;
    const sessionId = this.next() < 0.75 ? `life-${name}` : undefined;
    return new Conversation(name, { sessionId, client: this.client, twins, report });
  }

  /** Does something. @returns a fork, where that is what it did */
  async act(conversation: Conversation): Promise<Conversation | undefined> {
    const { known, sessionId } = conversation;
    if (sessionId === undefined && this.next() < 0.15) return void (await this.#listed());
    if (sessionId === undefined) return void (await this.#plain(conversation));
    const kind = this.next();
    if (known === undefined) await this.#one(conversation, { leaves: false });
    else if (known.turnCount === 0 || kind < 0.35) await this.#one(conversation, { leaves: true });
    else if (kind < 0.47) await this.#again(conversation, known);
    else if (kind < 0.57) await this.#two(conversation);
    else if (kind < 0.67) await this.#named.repeated(conversation, known);
    else if (kind < 0.76) await this.#named.cut(conversation);
    else if (kind < 0.82) await this.#named.stop(conversation);
    else if (kind < 0.88) return await this.#fork(conversation, known);
    else if (kind < 0.92) await this.#delete(conversation);
    else if (kind < 0.94) await this.#tooLong(conversation);
    else await conversation.look();
    if ((conversation.known?.ids.length ?? 0) > LOG_TOKENS_MAX) conversation.isOver = true;
    return undefined;
  }

  /** New words in the session, heard to the end or left. */
  async #one(conversation: Conversation, { leaves }: { leaves: boolean }): Promise<void> {
    const isFirst = conversation.known?.turnCount === 0;
    const system: Words[] = isFirst && this.next() < 0.3 ? [{ role: "system", content: "Be brief." }] : [];
    const sent = [...system, { role: "user" as const, content: this.words(conversation, isFirst) }];
    const turn = this.turn(sent, { isCalm: !leaves });
    const reading: Reading = {};
    if (leaves && this.next() < 0.35) reading.leaveAfter = this.pick([0, 0, 1, 4, 12]);
    if (reading.leaveAfter === 0) reading.pauseMs = Math.floor(this.next() * 250);
    else if (turn.isStream && this.next() < 0.25) reading.pauseMs = Math.floor(this.next() * 120);
    await conversation.take([await this.ask(conversation, turn, reading)]);
  }

  /** More than the context holds: refused by name, and the session is what it was. */
  async #tooLong(conversation: Conversation): Promise<void> {
    const content = "To and fro. ".repeat(CONTEXT_TOKENS / 6);
    const turn = this.turn([{ role: "user", content }], { isCalm: this.next() < 0.5 });
    const moves = this.world.edgeMoves();
    const quire = { session_id: conversation.sessionId, resumable: turn.isStream };
    const body = { model: "house-0", messages: turn.sent, stream: turn.isStream, quire };
    const outcome = await this.client.send("/v1/chat/completions", body);
    const isRefused =
      outcome.kind === "refused" && (outcome.code === "context_length_exceeded" || isExcused(outcome.code));
    const isEdgeLost = this.world.edgeMoves() > moves || moves % 2 > 0;
    if (!isRefused && !(outcome.kind === "lost" && isEdgeLost))
      conversation.fail(`a turn that no context holds was answered with ${describe(outcome)}`);
    this.world.report.tooLong += 1;
    await conversation.look();
  }

  /** The transcript again, without its last reply, with an earlier message edited, or cut in the middle. */
  async #again(conversation: Conversation, known: Transcript): Promise<void> {
    const words = known.messages.map(({ role, content }) => ({ role, content }));
    const users = words.flatMap(({ role }, index) => (role === "user" ? [index] : []));
    const at = this.pick(users);
    const sent = words.slice(0, at + 1);
    const last = sent.at(-1) as Words;
    const kept = last.content.slice(0, Math.floor(last.content.length * this.next()));
    if (this.next() < 0.6)
      sent.splice(-1, 1, { role: "user", content: `${kept} And ${this.words(conversation, false)}` });
    const replies = words.slice(0, at).flatMap(({ role }, index) => (role === "assistant" ? [index] : []));
    if (replies.length > 1 && this.next() < 0.2) {
      const edited = this.pick(replies.slice(1));
      sent.splice(edited, 1, { role: "assistant", content: `${sent[edited]?.content.slice(0, 5)} I do not know.` });
    }
    await conversation.take([await this.ask(conversation, this.turn(sent))]);
  }

  /** Two turns at once: one runs, or one after the other. */
  async #two(conversation: Conversation): Promise<void> {
    const first = this.turn([{ role: "user", content: this.words(conversation, false) }], {
      isCalm: true,
    });
    const isSame = this.next() < 0.5;
    const sent = [{ role: "user" as const, content: this.words(conversation, false) }];
    const second = isSame ? first : this.turn(sent, { isCalm: true });
    const turns = [first, second].map((turn) => ({ ...turn, exact: true }));
    const answers = await Promise.all(turns.map((turn) => this.ask(conversation, turn, {}, { isOnce: true })));
    await conversation.take(answers);
  }

  /** A fork, in four of ten beside a turn of the session: it has that turn or not. */
  async #fork(conversation: Conversation, known: Transcript): Promise<Conversation | undefined> {
    const beside = this.next() < 0.4 ? this.#beside(conversation) : undefined;
    if (beside) await sleep(300 * this.next());
    const answer = await this.client.ask("POST", `/v1/sessions/${conversation.sessionId}/fork`, {});
    if (beside) await conversation.take([await beside]);
    if (!answer || answer.status >= 500) return undefined;
    if (answer.status !== 200) conversation.fail(`a fork was answered ${answer.status} ${JSON.stringify(answer.body)}`);
    this.world.report.forks += 1;
    const { twins, report } = this.world;
    const sessionId = String(answer.body.id);
    return new Conversation(`fork of ${conversation.name}`, {
      sessionId,
      client: this.client,
      twins,
      report,
      states: beside ? [known, ...conversation.states.filter((state) => state !== known)] : [known],
    });
  }

  /** A turn that nothing waits for. */
  #beside(conversation: Conversation): Promise<Answered> {
    const turn = this.turn([{ role: "user", content: this.words(conversation, false) }], { isCalm: true });
    const asked = this.ask(conversation, { ...turn, exact: true }, {}, { isOnce: true });
    // Awaited later, and thrown then.
    asked.catch(() => undefined);
    return asked;
  }

  /** A deletion beside a turn: the one is before the other, or is refused. */
  async #deleteBeside(conversation: Conversation): Promise<void> {
    const beside = this.#beside(conversation);
    await sleep(200 * this.next());
    const deletion = await this.client.ask("DELETE", `/v1/sessions/${conversation.sessionId}`);
    const answered = await beside;
    conversation.story.push(`delete beside a turn -> ${deletion?.status}`);
    if (deletion?.status === 409) return conversation.take([answered]);
    // Nobody knows what became of one that was not answered, and of a turn that was not.
    if (deletion?.status !== 200 || !["done", "refused"].includes(answered.outcome.kind)) {
      conversation.isOver = true;
      return;
    }
    this.world.report.deletions += 1;
    const isBehind = answered.outcome.kind === "done" && answered.outcome.usage.prompt_tokens < conversation.tokensMax;
    if (!isBehind) await conversation.take([answered]);
    conversation.states = [NO_TRANSCRIPT];
    if (isBehind) await conversation.take([answered]);
  }

  async #delete(conversation: Conversation): Promise<void> {
    if (this.next() < 0.3) return this.#deleteBeside(conversation);
    const sessionId = conversation.sessionId as string;
    const moves = this.world.edgeMoves();
    const endMs = performance.now() + STUCK_MS;
    for (;;) {
      const answer = await this.client.ask("DELETE", `/v1/sessions/${sessionId}`);
      conversation.story.push(`delete -> ${answer?.status}`);
      if (answer?.status === 200) break;
      const isSecond = answer?.status === 404 && (this.world.edgeMoves() > moves || moves % 2 > 0);
      if (isSecond) break;
      if (answer && ![409, 500, 503, 504].includes(answer.status))
        conversation.fail(`a deletion was answered ${answer.status} ${JSON.stringify(answer.body)}`);
      if (performance.now() > endMs) conversation.fail("cannot be deleted");
      await sleep(300);
    }
    this.world.report.deletions += 1;
    conversation.states = [NO_TRANSCRIPT];
    // Its name is taken again, or nobody's.
    if (this.next() < 0.5) return;
    conversation.isOver = true;
    this.world.deleted.push({ tenant: this.tenant, sessionId });
  }

  /** A whole transcript that names no session, as OpenAI's clients send it. */
  async #plain(conversation: Conversation): Promise<void> {
    const said = conversation.states[0]?.messages.map(({ role, content }) => ({ role, content })) ?? [];
    const sent = [...said, { role: "user" as const, content: this.words(conversation, said.length === 0) }];
    const turn = this.turn(sent, { isWhole: true });
    const choiceCount = this.next() < 0.2 ? 3 : 1;
    const answer = await this.ask(conversation, turn, {}, { choiceCount });
    const { outcome } = answer;
    // Nothing is kept for whoever names nothing: what was not heard was not said.
    if (outcome.kind === "done") await this.#takePlain(conversation, answer);
    if (conversation.states[0] && conversation.states[0].ids.length > LOG_TOKENS_MAX) conversation.isOver = true;
  }

  /** Raw texts, several at once, that belong to nothing. */
  async #listed(): Promise<void> {
    const tokensMax = this.pick(REPLY_TOKENS);
    const prompts = Array.from({ length: 1 + Math.floor(3 * this.next()) }, () => `The code of ${this.pick(NAMES)} is`);
    const quire = { selection: { policy: "dense", exact: true } };
    const body = { model: "house-0", prompt: prompts, temperature: 0, max_tokens: tokensMax, quire };
    const outcome = await this.client.send("/v1/completions", body);
    this.world.report.turns += 1;
    this.world.report[outcome.kind] += 1;
    if (outcome.kind !== "done") return;
    for (const [index, prompt] of prompts.entries()) {
      const manner = { ...DENSE, tokensMax };
      const expected = await this.world.twins.replies("raw", rawPrompt(prompt), manner);
      const { text, reason } = outcome.choices[index] ?? {};
      if (!expected.some((one) => text === one.text && reason === one.reason))
        throw new Violation(
          `raw text ${index} of ${prompts.length} ${JSON.stringify(prompt)}: ${JSON.stringify(text)}, and should be ${JSON.stringify(expected[0]?.text)}`,
        );
      this.world.report.compared += 1;
    }
  }

  async #takePlain(conversation: Conversation, answer: Answered): Promise<void> {
    await conversation.take([answer]);
    const [state] = conversation.states;
    // Bytes that are no text do not come back as they went out.
    if (state?.messages.some(({ content }) => content.includes("\ufffd"))) conversation.isOver = true;
  }
}
