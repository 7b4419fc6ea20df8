/** The plot of `npm run demo:failover`: engines are killed while they speak, and what the client reads is what it would have read anyway. */
import { randomUUID } from "node:crypto";
import type { SelectionConfiguration } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { SseParser } from "../sdk/index.ts";
import { demoPassage } from "./demo-passage.ts";
import type { Stage, StageEngine } from "./demo-stage.ts";

/** How a reply is made; each manner has a reply of its own that nobody disturbed. */
export interface Manner {
  name: string;
  policy: SelectionConfiguration;
  /** 0 is greedy. */
  temperature: number;
}

/** One reply as its client read it. */
export interface Spoken {
  text: string;
  /** Engines that served it, in order. */
  engines: string[];
  /** The longest wait between two events of the stream. */
  gapMsMax: number;
}

/** One reply whose engine was killed. */
export interface Killed extends Spoken {
  manner: Manner;
  /** Characters that the client had when the engine was killed. */
  length: number;
  identical: boolean;
}

/** Told what is going on, for people who watch. */
export interface FailoverAudience {
  undisturbed(manner: Manner, spoken: Spoken): void;
  /** Text as it arrives. */
  speaks(text: string): void;
  kills(engine: StageEngine): void;
  over(killed: Killed): void;
  /** The reply was over before the kill: it does not count. */
  missed(): void;
}

/** All that a run needs. */
export interface FailoverOptions {
  stage: Stage;
  killCount: number;
  /** In [0, 1): when an engine is killed. */
  random: () => number;
  audience: FailoverAudience;
}

/** Fewer tokens than an eighth of the context, so that selection is at work. */
const budgetTokens = 256;
const replyTokens = 240;
/** Replies that may be over before their engine is killed, for each that is not. */
const missCountMax = 4;
/** house-0's end token, which is kept from it: its answers alone would be over too soon. */
const endToken = 259;
/** One speaks, one takes over, one is being started for the next time. */
const engineCount = 3;

const manners: readonly Manner[] = [
  { name: "quest, greedy", policy: "quest", temperature: 0 },
  { name: "dense, greedy", policy: "dense", temperature: 0 },
  { name: "quest, sampled", policy: "quest", temperature: 0.8 },
];

/**
 * Plays it: a reply of each manner that nobody disturbs, then `killCount` replies whose engine is killed at a random moment.
 * @throws {Error} when a stream breaks off, and when most kills come too late
 */
export async function playFailover({ stage, killCount, random, audience }: FailoverOptions): Promise<Killed[]> {
  const engines = await Promise.all(Array.from({ length: engineCount }, () => stage.addEngine()));
  const expected = new Map<Manner, string>();
  const results: Killed[] = [];
  /** The next engine comes up while others speak; there are always two. */
  let replacing: Promise<void> = Promise.resolve();
  for (let tries = 0; results.length < killCount; tries++) {
    if (tries > missCountMax * killCount) throw new Error("replies are over before their engine can be killed");
    const manner = manners[results.length % manners.length] as Manner;
    let calm = expected.get(manner);
    if (calm === undefined) {
      const spoken = await speak(stage, (await listen(stage, manner)).session, manner, () => undefined);
      audience.undisturbed(manner, spoken);
      calm = spoken.text;
      expected.set(manner, calm);
    }
    const { session, engineId } = await listen(stage, manner);
    await replacing;
    const index = engines.findIndex(({ id }) => id === engineId);
    const victim = engines[index];
    if (!victim) throw new Error(`the engine ${engineId} is not one of this stage`);
    const moment = { length: Math.floor(random() * 0.8 * calm.length), waitMs: random() * 4 };
    const killing = new Killing(victim, moment, audience);
    const spoken = await speak(stage, session, manner, (text) => killing.hear(text));
    if (await killing.done()) {
      replacing = stage.addEngine().then((engine) => {
        engines[index] = engine;
      });
      // Awaited before the next kill, which says so if it failed.
      replacing.catch(() => undefined);
    }
    if (spoken.engines.length > 1) {
      const result = { ...spoken, manner, length: killing.length, identical: spoken.text === calm };
      results.push(result);
      audience.over(result);
    } else {
      audience.missed();
    }
  }
  return results;
}

/** Kills an engine when its client has read so much, and a moment more. */
class Killing {
  /** Characters that were read before the kill. */
  length = 0;
  readonly #engine: StageEngine;
  readonly #moment: { length: number; waitMs: number };
  readonly #audience: FailoverAudience;
  #kill: Promise<void> | undefined;
  #isKilled = false;

  constructor(engine: StageEngine, moment: { length: number; waitMs: number }, audience: FailoverAudience) {
    this.#engine = engine;
    this.#moment = moment;
    this.#audience = audience;
  }

  hear(text: string): void {
    this.#audience.speaks(text);
    if (this.#isKilled) return;
    this.length += text.length;
    if (this.length >= this.#moment.length) this.#kill ??= this.#run();
  }

  /** False when it never came to it. */
  async done(): Promise<boolean> {
    await this.#kill;
    return this.#kill !== undefined;
  }

  async #run(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, this.#moment.waitMs));
    this.#isKilled = true;
    this.#audience.kills(this.#engine);
    await this.#engine.kill();
  }
}

/** A new session's first turn: it reads the passage, and from then on belongs to the engine that did. */
async function listen(stage: Stage, manner: Manner): Promise<{ session: string; engineId: string }> {
  const session = `failover-${randomUUID()}`;
  const reply = stage.client
    .session({ id: session, temperature: 0, selection: { policy: manner.policy, budgetTokens, exact: true } })
    .send(`${demoPassage}What is the code of Kelino?`);
  const { quire } = await reply.usage;
  return { session, engineId: quire.engines?.at(-1) ?? "" };
}

/** A turn of `replyTokens` tokens, event by event. @throws {Error} when it does not end well. */
async function speak(stage: Stage, session: string, manner: Manner, onText: (text: string) => void): Promise<Spoken> {
  const response = await fetch(`${stage.edgeUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${stage.apiKey}`, "content-type": "application/json" },
    body: JSON.stringify({
      model: "default",
      messages: [{ role: "user", content: "What is the code of Badoru?" }],
      stream: true,
      stream_options: { include_usage: true },
      temperature: manner.temperature,
      seed: 7,
      max_tokens: replyTokens,
      logit_bias: { [endToken]: -100 },
      quire: { session_id: session, selection: { policy: manner.policy, budget_tokens: budgetTokens, exact: true } },
    }),
    // The edge ends a turn itself; how long one takes beside other work says nothing about failover.
    signal: AbortSignal.timeout(2 * LIMITS.turnMsMax),
  });
  if (!response.ok || response.body === null) throw new Error(`the edge answered ${response.status}`);
  const parser = new SseParser();
  const spoken: Spoken = { text: "", engines: [], gapMsMax: 0 };
  let isOver = false;
  let lastMs = performance.now();
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    for (const { data } of parser.push(chunk)) {
      spoken.gapMsMax = Math.max(spoken.gapMsMax, performance.now() - lastMs);
      lastMs = performance.now();
      if (data === "[DONE]") isOver = true;
      else take(JSON.parse(data) as Chunk, spoken, onText);
    }
  }
  if (!isOver) throw new Error("the stream broke off");
  return spoken;
}

interface Chunk {
  choices?: { delta?: { content?: string } }[];
  usage?: { quire: { engines: string[] } } | null;
  error?: { message: string };
}

function take(chunk: Chunk, spoken: Spoken, onText: (text: string) => void): void {
  if (chunk.error) throw new Error(`the stream ended with an error: ${chunk.error.message}`);
  if (chunk.usage) spoken.engines = chunk.usage.quire.engines;
  const text = chunk.choices?.[0]?.delta?.content ?? "";
  if (text === "") return;
  spoken.text += text;
  onText(text);
}
