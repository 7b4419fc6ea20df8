/** A seeded life of the stack: several clients at once talk, leave, come back, fork and delete, while engines, the edge and the store are disturbed. */
import { setTimeout as sleep } from "node:timers/promises";
import { LIMITS } from "../../../protocol/limits.ts";
import { uniform } from "../../engine/tiny-model.ts";
import { Acts } from "./acts.ts";
import { Client } from "./client.ts";
import { type Conversation, Violation } from "./conversation.ts";
import { checkEnd, checkRevoked } from "./end.ts";
import { natureOf } from "./nature.ts";
import { OPERATOR_ACTS, Operator } from "./operator.ts";
import { type LifeReport, newReport } from "./report.ts";
import { Stack, type TenantName } from "./stack.ts";
import { Twins } from "./twins.ts";

const CLIENT_COUNT = 5;
const CONVERSATIONS_EACH = 3;
/** Longer than an engine may be silent before its turns go to another one. */
const FROZEN_MS = LIMITS.engineExpiryMs + 2_000;
const WHO_TALKS: readonly TenantName[] = ["one", "two"];

/** How long a life is. */
export interface LifeOptions {
  seed: number;
  /** Of each client. */
  actCount: number;
  signal: AbortSignal;
  /** Gets what is worth knowing and no failure. */
  tell?: (line: string) => void;
}

/** What a life's parts share. */
export interface LifeWorld {
  stack: Stack;
  twins: Twins;
  report: LifeReport;
  clients: Readonly<Record<TenantName, Client>>;
  /** How often the edge went and came: odd while it is not there. */
  edgeMoves(): number;
  /** Sessions that were deleted and not begun anew. */
  deleted: { tenant: TenantName; sessionId: string }[];
  /** Nobody but engines deletes objects from the store, or puts any there. */
  readonly isStoreAlone: boolean;
  /** Answers that were long in coming, or failed when they had begun. */
  slow: string[];
}

/** Lives it. @throws {Violation} naming what cannot be, with how to see it again */
export async function live({ seed, actCount, signal, tell = () => undefined }: LifeOptions): Promise<LifeReport> {
  const nature = natureOf(seed);
  const stack = await Stack.open({ ...nature, signal });
  const twins = await Twins.open(nature.kinds);
  const life = new Life({ stack, twins, seed, actCount, signal, ...nature });
  try {
    await life.run();
    for (const line of life.slow) tell(`  ${line}; ${life.story.join(", ")}`);
    return life.report;
  } catch (thrown) {
    if (!(thrown instanceof Violation)) throw thrown;
    const words = (await stack.words()).join("\n");
    throw new Violation(
      `${thrown.message}\n${words}\n${life.story.join(", ")}\nengines: ${nature.words}\nagain: npm run sim -- --stack --seed ${seed}`,
    );
  } finally {
    life.stop();
    await stack.close();
    await twins.close();
  }
}

class Life implements LifeWorld {
  readonly stack: Stack;
  readonly twins: Twins;
  readonly report = newReport();
  readonly clients: LifeWorld["clients"];
  readonly deleted: LifeWorld["deleted"] = [];
  readonly slow: string[] = [];
  /** What was disturbed, and when. */
  readonly story: string[] = [];
  readonly #seed: number;
  readonly #actCount: number;
  readonly #signal: AbortSignal;
  readonly #startMs = performance.now();
  readonly #conversations: Conversation[] = [];
  /** Of disturbances: less is more of them. */
  readonly #pace: number;
  readonly #operator: Operator;
  readonly #frozen: Promise<void>[] = [];
  #isOver = false;
  #edgeMoves = 0;
  readonly isStoreAlone: boolean;

  constructor(options: {
    stack: Stack;
    twins: Twins;
    seed: number;
    actCount: number;
    signal: AbortSignal;
    isStoreAlone: boolean;
    pace: number;
  }) {
    const { stack, twins, seed, actCount, signal, isStoreAlone, pace } = options;
    this.#pace = pace;
    this.isStoreAlone = isStoreAlone;
    this.stack = stack;
    this.twins = twins;
    this.#seed = seed;
    this.#actCount = actCount;
    this.#signal = signal;
    const client = (name: TenantName) => new Client(() => stack.url, stack.keys[name]);
    this.clients = {
      ...{ one: client("one"), two: client("two"), strangers: client("strangers"), operators: client("operators") },
    };
    this.#operator = new Operator(this, uniform(seed * 31_337 + 5));
  }

  edgeMoves(): number {
    return this.#edgeMoves;
  }

  stop(): void {
    this.#isOver = true;
  }

  async run(): Promise<void> {
    await this.#operator.revokeOne();
    const disturbed = this.#disturb();
    // Whoever finds something ends all of it.
    const clients = Array.from({ length: CLIENT_COUNT }, (_, index) => this.#client(index));
    await Promise.race([Promise.all(clients), disturbed.then(() => Promise.all(clients))]);
    this.#isOver = true;
    await disturbed;
    await Promise.all(this.#frozen);
    await checkEnd(this, this.#conversations);
    // Where an isolate may not remember it any more; a short life does not wait for that.
    for (const { key, atMs } of this.#operator.revoked)
      if (performance.now() - atMs > LIMITS.keyCacheMsMax + 1_000) await checkRevoked(this, key);
  }

  async #client(index: number): Promise<void> {
    const next = uniform(this.#seed * 104_729 + index);
    const tenant = WHO_TALKS[index % WHO_TALKS.length] as TenantName;
    const acts = new Acts({ world: this, tenant, next });
    const own: Conversation[] = [];
    for (let act = 0; act < this.#actCount && !this.#isOver && !this.#signal.aborted; act++) {
      const at = Math.floor(next() * CONVERSATIONS_EACH);
      let conversation = own[at];
      if (conversation === undefined || conversation.isOver) {
        conversation = acts.begin(`${tenant}-${index}-${act}`);
        own[at] = conversation;
        this.#conversations.push(conversation);
      }
      const fork = await acts.act(conversation);
      if (fork) {
        own[(at + 1) % CONVERSATIONS_EACH] = fork;
        this.#conversations.push(fork);
      }
    }
  }

  async #disturb(): Promise<void> {
    const next = uniform(this.#seed * 65_537 + 11);
    const acts = [
      "kill",
      "kill",
      "drain",
      "edge",
      "store",
      "store",
      "freeze",
      "freeze edge",
      "collect",
      "age",
      "add",
      "restart",
      ...OPERATOR_ACTS,
    ] as const;
    for (;;) {
      await sleep(this.#pace * (300 + 2_000 * next()));
      if (this.#isOver || this.#signal.aborted) return;
      const drawn = acts[Math.floor(next() * acts.length)] as (typeof acts)[number];
      const isRefused = this.isStoreAlone && ["collect", "age", "remove", "import", "verify"].includes(drawn);
      const act = isRefused ? "restart" : drawn;
      this.story.push(`${act} at ${((performance.now() - this.#startMs) / 1000).toFixed(1)} s`);
      const operated = OPERATOR_ACTS.find((one) => one === act);
      if (operated) await this.#operator.act(operated);
      else await this.#disturbBy(act, next());
    }
  }

  async #disturbBy(act: string, chance: number): Promise<void> {
    const { stack, report } = this;
    const chosen = stack.engines[Math.floor(chance * stack.engines.length)];
    const engine = ["kill", "freeze", "restart"].includes(act) ? await stack.busiest() : chosen;
    if (act === "edge") {
      report.edgesKilled += 1;
      this.#edgeMoves += 1;
      await stack.restartEdge();
      this.#edgeMoves += 1;
    } else if (act.startsWith("freeze")) {
      report.frozen += 1;
      if (act === "freeze edge") await stack.freezeEdge(FROZEN_MS / 2);
      // Others go on meanwhile, and may befall this one.
      else if (engine) this.#frozen.push(stack.freezeEngine(engine, FROZEN_MS));
    } else if (act === "collect" || act === "age") {
      report.collected += await stack.collect(act === "age" ? 1_000 : undefined).catch(() => 0);
    } else if (act === "add" && stack.engines.length < 3) await stack.addEngine();
    else if (act === "store" && engine) {
      report.storesDisturbed += 1;
      stack.disturbStore(engine);
    } else if (act === "kill" && engine) {
      report.enginesKilled += 1;
      // Sometimes the last one: turns wait for another.
      if (stack.engines.length < 2 && chance < 0.5) await stack.addEngine();
      await stack.killEngine(engine);
      if (stack.engines.length < 2) await stack.addEngine();
    } else if (act === "restart" && engine) {
      report.enginesKilled += 1;
      await stack.restartEngine(engine);
    } else if (act === "drain" && engine) {
      report.enginesDrained += 1;
      await Promise.all([stack.addEngine(), stack.drainEngine(engine)]);
    }
  }
}
