/**
 * Seeded lives of one session: three clients at once, that read, leave, come back and delete, while the objects behind them are lost. What was said to be done
 * is in the log, once, in its order; what was not may be, once; nobody waits without end.
 */
import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { expect, inject, it } from "vitest";
import { fleetOf } from "../../workers/fleet.ts";
import { limiterOf } from "../../workers/limits/tenant-limiter.ts";
import { indexOf, sessionOf } from "../../workers/stubs.ts";
import { isolateSessions } from "../../workers/worker-turn/known-sessions.ts";
import type { Step } from "./fake-engine/script.ts";
import {
  ASSISTANT,
  BOS,
  END,
  edge,
  env,
  ids,
  KEY_B,
  makeWorld,
  register,
  streamOf,
  USER,
  type World,
} from "./world.ts";

const CLIENT_COUNT = 3;
const TURNS_EACH = 4;
/** A machine that is so slow that every turn would meet some of them comes to an end, too. */
const FAULTS_MAX = 20;
/** However slow the machine: a turn takes half a second at most, and a session whose turn was lost is free within 5 s. */
const STUCK_MS = 120_000;

const REPLY = "Antwort – äöü – 🙂.";
const REPLY_IDS = ids(REPLY);
/** At once, or so slowly that a resumable turn is written down meanwhile. */
const repliesIn = (gapMs: number): Step[] => [
  { do: "admit" },
  { do: "reply", ids: [...REPLY_IDS, END], gapMs },
  { do: "done", reason: "stop" },
];

const ACTS = [
  "stream",
  "stream",
  "whole",
  "whole",
  "resumable",
  "resumable",
  "leave",
  "leave whole",
  "delete",
] as const;
const FAULTS = ["session", "session", "fleet", "limiter", "index", "forgotten", "evicted"] as const;

/** Of a turn, or of a deletion. Begins and ends are counted by one clock, so that it is known which came before which. */
interface Deed {
  name: string;
  begun: number;
  ended: number;
  /** Nothing is known of one whose end its client did not hear. */
  is: "done" | "refused" | "unknown";
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Questions of a prompt with what was said to each; nothing was to the last. */
function turnsOf(tokens: readonly number[]): { name: string; said: number[] }[] {
  expect([tokens[0], tokens.at(-1)]).toEqual([BOS, ASSISTANT]);
  const turns: { name: string; said: number[] }[] = [];
  for (let at = 1; at < tokens.length; ) {
    expect(tokens[at]).toBe(USER);
    const asked = tokens.indexOf(ASSISTANT, at);
    const end = tokens.indexOf(END, asked);
    const name = new TextDecoder().decode(Uint8Array.from(tokens.slice(at + 1, asked)));
    turns.push({ name, said: end < 0 ? [] : tokens.slice(asked + 1, end) });
    at = end < 0 ? tokens.length : end + 1;
  }
  return turns;
}

/** Text of a response until it ends or breaks off, or for so long. */
async function read(response: Response, msMax = Number.POSITIVE_INFINITY): Promise<string> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const decoder = new TextDecoder();
  const late = Promise.withResolvers<undefined>();
  const timer = Number.isFinite(msMax) ? setTimeout(() => late.resolve(undefined), msMax) : undefined;
  let text = "";
  try {
    for (;;) {
      const part = await Promise.race([reader.read(), late.promise]);
      if (!part || part.done) break;
      text += decoder.decode(part.value, { stream: true });
    }
  } catch {
    // It broke off.
  }
  clearTimeout(timer);
  await reader.cancel().catch(() => undefined);
  return text;
}

/** What a stream said, and whether that is all. */
function wordsOf(stream: string): { text: string; isWhole: boolean } {
  const events = [...stream.matchAll(/^data: (\{.*)$/gm)].map(([, data]) => JSON.parse(data ?? ""));
  const text = events.map(({ choices }) => choices?.[0]?.delta?.content ?? "").join("");
  return { text, isWhole: stream.includes("data: [DONE]\n") };
}

class Life {
  readonly id = `life-${crypto.randomUUID()}`;
  readonly deeds: Deed[] = [];
  /** What happened, for whoever has to find out why. */
  readonly story: string[];
  readonly #world: World;
  readonly #namespace: string;
  readonly #random: () => number;
  #clock = 0;
  #isOver = false;

  constructor(world: World, namespace: string, seed: number) {
    this.#world = world;
    this.#namespace = namespace;
    this.#random = randomOf(seed * 104_729);
    this.story = [`seed ${seed}`];
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random() * list.length)] as T;
  }

  async run(): Promise<void> {
    const faults = this.#fault();
    await Promise.all(Array.from({ length: CLIENT_COUNT }, (_, index) => this.#client(`c${index}`)));
    this.#isOver = true;
    await faults;
  }

  async #fault(): Promise<void> {
    const namespace = this.#namespace;
    const stub = () => sessionOf(env, namespace, this.id);
    const lose = (lost: unknown) =>
      runInDurableObject(lost as DurableObjectStub, (_: object, state) => state.abort("lost")).catch(() => undefined);
    for (let count = 0; count < FAULTS_MAX && !this.#isOver; count++) {
      await sleep(100 + 500 * this.#random());
      const fault = this.#pick(FAULTS);
      this.story.push(`-- ${fault}`);
      if (fault === "session") await lose(stub());
      else if (fault === "limiter") await lose(limiterOf(env, namespace));
      else if (fault === "index") await lose(indexOf(env, namespace));
      else if (fault === "evicted") await evictDurableObject(stub()).catch(() => undefined);
      else if (fault === "forgotten") isolateSessions.take(namespace, this.id);
      else {
        await lose(fleetOf(env, namespace));
        await register(this.#world.engine, this.#world.model).catch(() => undefined);
      }
    }
  }

  async #client(client: string): Promise<void> {
    for (let index = 0; index < TURNS_EACH; index++) {
      const act = this.#pick(ACTS);
      const deed: Deed = { name: `${client}.${index} ${act}`, begun: 0, ended: 0, is: "refused" };
      this.deeds.push(deed);
      const startMs = Date.now();
      deed.is = act === "delete" ? await this.#delete(deed) : await this.#turn(deed, act);
      deed.ended = this.#clock++;
      this.story.push(`${deed.name}: ${deed.is}, ${Date.now() - startMs} ms`);
    }
  }

  /** Asks again while that is refused for another turn's sake, or an object is lost. */
  async #ask(deed: Deed, send: () => Promise<Response>): Promise<Response> {
    const endMs = Date.now() + STUCK_MS;
    for (;;) {
      deed.begun = this.#clock++;
      const response = await send();
      if (response.status === 200 || response.status === 404) return response;
      this.story.push(`${deed.name}: ${response.status} ${await response.text()}`);
      if (Date.now() > endMs) throw new Error(`stuck: ${this.story.join("\n")}`);
      await sleep(30 + 100 * this.#random());
    }
  }

  async #delete(deed: Deed): Promise<Deed["is"]> {
    const headers = { authorization: `Bearer ${KEY_B}` };
    const response = await this.#ask(deed, () => edge(`/v1/sessions/${this.id}`, { method: "DELETE", headers }));
    await response.text();
    // One that finds no session may be the second try of one that was lost behind its deed.
    return response.status === 200 ? "done" : "unknown";
  }

  async #turn(deed: Deed, act: (typeof ACTS)[number]): Promise<Deed["is"]> {
    const resumable = act === "resumable";
    const stream = !act.endsWith("whole");
    const idempotencyKey = crypto.randomUUID();
    const body = { stream, quire: { session_id: this.id, resumable } };
    const options = { key: KEY_B, ...(resumable && { headers: { "idempotency-key": idempotencyKey } }) };
    let response = await this.#ask(deed, () => this.#world.chat(deed.name, body, options));
    if (response.status === 404) throw new Error(this.story.join("\n"));
    if (act.startsWith("leave")) {
      await read(response, 150 * this.#random());
      return "unknown";
    }
    let text = await read(response);
    if (!stream) return JSON.parse(text).choices?.[0]?.message.content === REPLY ? "done" : "unknown";
    while (resumable && !wordsOf(text).isWhole && !text.includes('"error"')) {
      text = text.slice(0, text.lastIndexOf("\n\n") + 2);
      const lastId = [...text.matchAll(/^id: (\S+)$/gm)].at(-1)?.[1];
      response = await streamOf(this.id, { key: KEY_B, ...(lastId === undefined ? { idempotencyKey } : { lastId }) });
      if (response.status !== 200) return "unknown";
      text += await read(response);
    }
    const { text: said, isWhole } = wordsOf(text);
    if (isWhole && said !== REPLY) throw new Error(`said ${said}: ${this.story.join("\n")}`);
    return isWhole ? "done" : "unknown";
  }

  /** What the log must hold, and must not, behind all that was done. */
  check(log: readonly { name: string; said: number[] }[]): void {
    const names = log.map(({ name }) => name);
    const why = () => `${names.join(", ")}\n${this.story.join("\n")}`;
    expect(new Set(names).size, why()).toBe(names.length);
    const deletions = this.deeds.filter(({ name }) => name.endsWith("delete"));
    for (const { name, said } of log) {
      const deed = this.deeds.find((known) => known.name === name);
      expect(deed, `${name} of ${why()}`).toBeDefined();
      expect(REPLY_IDS.slice(0, said.length), `${name} of ${why()}`).toEqual(said);
      if (deed?.is === "done") expect(said, `${name} of ${why()}`).toEqual(REPLY_IDS);
    }
    for (const { name, begun, ended, is } of this.deeds) {
      if (name.endsWith("delete")) continue;
      const isGone = deletions.some((deletion) => deletion.is === "done" && deletion.begun > ended);
      const mayBeGone = deletions.some((deletion) => deletion.ended > begun);
      if (isGone) expect(names, `deleted ${name} of ${why()}`).not.toContain(name);
      if (is === "done" && !mayBeGone) expect(names, `${name} of ${why()}`).toContain(name);
    }
    const done = this.deeds.filter(({ name, is }) => is === "done" && names.includes(name));
    for (const a of done) {
      for (const b of done) {
        if (a.ended < b.begun) expect(names.indexOf(a.name), why()).toBeLessThan(names.indexOf(b.name));
      }
    }
  }
}

it.each(Array.from({ length: inject("isFull") ? 20 : 2 }, (_, index) => index + 1))(
  "of seed %i",
  { timeout: 600_000 },
  async (seed) => {
    const world = await makeWorld();
    // A tenant whose places nobody else counts: turns that were lost keep theirs for a while.
    await (await world.chat("?", {}, { key: KEY_B })).text();
    const { namespace } = (await world.engine.lastCall()).request;
    // More than will be asked for: a turn that is taken up, or began with another log, asks again.
    for (let count = 0; count < 6 * CLIENT_COUNT * TURNS_EACH; count++) {
      await world.engine.script(...repliesIn(count % 3 === 0 ? 20 : 3));
    }
    const life = new Life(world, namespace, seed);
    await life.run();
    const endMs = Date.now() + STUCK_MS;
    for (let isAsked = false; !isAsked; ) {
      const last = await world.chat("last", { quire: { session_id: life.id } }, { key: KEY_B });
      isAsked = last.status === 200;
      life.story.push(`last: ${last.status} ${await last.text()}`);
      // Whoever asks without a pause keeps a busy machine from ending the turn that it waits for.
      await sleep(100);
      if (Date.now() > endMs) throw new Error(`stuck: ${life.story.join("\n")}`);
    }
    life.check(turnsOf((await world.engine.lastCall()).request.tokens).slice(0, -1));
    expect(life.deeds.filter(({ is }) => is === "done").length).toBeGreaterThan(life.deeds.length / 4);
  },
);
