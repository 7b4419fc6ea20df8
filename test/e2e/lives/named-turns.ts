/** Turns that can be asked for once more: by the name that their client gave them, or behind an event that was heard. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Asker } from "./asking.ts";
import type { Outcome } from "./client.ts";
import { type AskedTurn, type Conversation, describe, isExcused } from "./conversation.ts";
import type { Transcript } from "./transcript.ts";

/** One client's. */
export class NamedTurns extends Asker {
  /** The same request twice under one name, at once or one after the other: it is run once. */
  async repeated(conversation: Conversation, known: Transcript): Promise<void> {
    const headers = { "idempotency-key": randomUUID() };
    const turn = this.turn([{ role: "user", content: this.words(conversation, false) }]);
    const kind = this.next();
    const moves = this.world.edgeMoves();
    this.world.report.repeated += 1;
    if (kind < 0.65) return this.#oneAfterTheOther(conversation, { turn, headers, isOther: kind < 0.3 });
    const ask = () => this.ask(conversation, turn, { cutAfterBytes: 1e9 }, { headers, isOnce: true });
    const [a, b] = await Promise.all([ask(), ask()]);
    const [whole, also] = [a, b].map(({ outcome }) => (outcome.kind === "done" ? outcome : undefined));
    if (whole && also && whole.id === also.id) {
      const [x, y] = [whole.choices[0], also.choices[0]];
      if (x?.text !== y?.text)
        conversation.fail(`one turn was told in two ways: ${describe(a.outcome)}, ${describe(b.outcome)}`);
      await conversation.take([a]);
    } else if (this.world.edgeMoves() > moves || moves % 2 > 0) {
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

  /** A turn that has ended is told again, whatever became of the edge meanwhile; another body under its name is refused. */
  async #oneAfterTheOther(
    conversation: Conversation,
    { turn, headers, isOther }: { turn: AskedTurn; headers: Record<string, string>; isOther: boolean },
  ): Promise<void> {
    const first = await this.ask(conversation, turn, { cutAfterBytes: 1e9 }, { headers });
    await conversation.take([first]);
    if (first.outcome.kind !== "done") return;
    const other = { ...turn, sent: [{ role: "user" as const, content: "Something else?" }] };
    const asked = { headers, isOnce: isOther, isOtherBody: isOther };
    const { outcome, isEdgeLost } = await this.ask(conversation, isOther ? other : turn, { cutAfterBytes: 1e9 }, asked);
    if (isEdgeLost && outcome.kind === "lost") return;
    if (isOther && outcome.kind === "done")
      conversation.fail(`another body under a turn's name was answered: ${describe(outcome)}`);
    if (!isOther && (outcome.kind !== "done" || outcome.id !== first.outcome.id))
      conversation.fail(`a turn was run again: ${describe(first.outcome)}, then ${describe(outcome)}`);
    if (!isOther && outcome.kind === "done" && outcome.choices[0]?.text !== first.outcome.choices[0]?.text)
      conversation.fail(`one turn was told in two ways: ${describe(first.outcome)}, ${describe(outcome)}`);
  }

  /** A resumable stream, cut somewhere and taken up again. */
  async cut(conversation: Conversation): Promise<void> {
    const turn = {
      ...this.turn([{ role: "user", content: this.words(conversation, false) }]),
      isStream: true,
    };
    const cutAfterBytes = Math.floor(this.next() * 6_000);
    this.world.report.cuts += 1;
    const headers = { "idempotency-key": randomUUID() };
    const moves = this.world.edgeMoves();
    const beside = this.next() < 0.3 ? this.#followed(conversation, headers, 400 * this.next()) : undefined;
    const answer = await this.ask(conversation, { ...turn, hasLogprobs: false }, { cutAfterBytes }, { headers });
    await conversation.take([answer]);
    const { outcome } = answer;
    const also = await beside;
    if (outcome.kind !== "done" || this.next() < 0.3) return;
    const again = await this.#followed(conversation, headers, 0);
    // Undisturbed it is there; whatever is heard of it is the same.
    const isCalm = () => this.world.edgeMoves() === moves && moves % 2 === 0;
    for (const heard of [again, ...(also?.kind === "done" ? [also] : [])]) {
      if (heard.kind !== "done" ? isCalm() : !isTold(outcome, heard, 0))
        conversation.fail(`${describe(outcome)} was told again as ${describe(heard)}`);
    }
    await this.#takenUp(conversation, outcome, isCalm);
  }

  /** From an event in its middle, and from one that there never was. */
  async #takenUp(conversation: Conversation, outcome: Done, isCalm: () => boolean): Promise<void> {
    const { marks = [], choices } = outcome;
    const mark = this.pick(marks.filter(({ length }) => length < (choices[0]?.text.length ?? 0)));
    if (!mark) return;
    this.world.report.takenUp += 1;
    const from = mark.length;
    const rest = await this.client.follow(conversation.sessionId as string, { "last-event-id": mark.id });
    if (rest.kind !== "done" ? isCalm() : !isTold(outcome, rest, from))
      conversation.fail(`behind character ${from} of ${describe(outcome)} there is ${describe(rest)}`);
    const [turnId = "", number] = mark.id.split(".");
    const nobodys = { "last-event-id": `${[...turnId].reverse().join("")}.${number}` };
    const none = await this.client.follow(conversation.sessionId as string, nobodys);
    const isRefused = none.kind === "refused" && (none.code === "stream_not_found" || isExcused(none.code));
    if (!isRefused && none.kind !== "lost") conversation.fail(`an event of no turn is followed by ${describe(none)}`);
  }

  async #followed(conversation: Conversation, headers: Record<string, string>, delayMs: number): Promise<Outcome> {
    await sleep(delayMs);
    return this.client.follow(conversation.sessionId as string, headers);
  }

  /** A resumable turn that is ended by its name while it runs, before it comes, or too late. */
  async stop(conversation: Conversation): Promise<void> {
    const words = { role: "user" as const, content: this.words(conversation, false) };
    const turn = { ...this.turn([words], { isCalm: true }), isStream: true };
    const headers = { "idempotency-key": randomUUID() };
    const asked = this.ask(conversation, turn, { cutAfterBytes: 1e9 }, { headers, isOnce: true, isStopped: true });
    asked.catch(() => undefined);
    await sleep(500 * this.next() ** 2);
    const stopped = await this.client.ask(
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
    this.world.report.stopped += 1;
  }
}

type Done = Extract<Outcome, { kind: "done" }>;

/** Whether the rest of a turn, from a character on, is what was told of it. */
function isTold(told: Done, { id, choices }: Done, from: number): boolean {
  const [all, rest] = [told.choices[0], choices[0]];
  return id === told.id && rest?.text === all?.text.slice(from) && rest?.reason === all?.reason;
}
