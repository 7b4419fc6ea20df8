/** Conversations of many tenants: what they begin with, how they go on, and when. */
import { drawExponential, drawInteger, drawPareto, seededRandom } from "../random.ts";

/** A conversation; its later turns are drawn when they come. */
export interface SimSession {
  id: number;
  /** What it begins with, shared with others of its tenant: a system prompt, a document. Unique among all tenants. */
  prefixId: number;
  prefixTokens: number;
  turnsLeft: number;
  /** Tokens of earlier turns, prefix included. */
  loggedTokens: number;
  /** The engine that served it last; -1 before the first turn. */
  engine: number;
  endedMs: number;
  random: () => number;
}

/** What the next turn brings. */
export interface SimTurn {
  newTokens: number;
  replyTokens: number;
}

const TENANT_COUNT = 2_000;
/** Tenants and their prefixes are as popular as ranks are: a few have most of it. */
const TENANT_SKEW = 1;
const PREFIXES_MAX = 8;
const PREFIX_TOKENS = { min: 1_000, max: 64_000, alpha: 0.9 };
const NEW_TOKENS = { min: 30, max: 8_000, alpha: 0.9 };
const REPLY_TOKENS = { min: 30, max: 1_000, alpha: 1.1 };
/** Two turns on average. */
const TURN_END_SHARE = 0.5;
const TURNS_MAX = 30;
const THINK_MS = 45_000;

/** All sessions of a seed; each draws from a stream of its own, so they are the same whoever serves them. */
export class Workload {
  readonly #seed: number;
  /** First prefix id of each tenant, ascending; one more at the end. */
  readonly #firstPrefix: number[] = [0];
  readonly #prefixTokens: number[] = [];
  /** Summed popularity of tenants. */
  readonly #popularity: number[] = [];

  constructor(seed: number) {
    this.#seed = seed;
    const random = seededRandom(seed, 0xffff_ffff);
    let sum = 0;
    for (let tenant = 0; tenant < TENANT_COUNT; tenant++) {
      for (let count = drawInteger(random, { min: 1, max: PREFIXES_MAX }); count > 0; count--) {
        this.#prefixTokens.push(Math.floor(drawPareto(random, PREFIX_TOKENS)));
      }
      this.#firstPrefix.push(this.#prefixTokens.length);
      sum += 1 / (tenant + 1) ** TENANT_SKEW;
      this.#popularity.push(sum);
    }
  }

  /** The session of a number. */
  session(id: number): SimSession {
    const random = seededRandom(this.#seed, id);
    const tenant = this.#drawTenant(random());
    const [first = 0, end = 1] = [this.#firstPrefix[tenant], this.#firstPrefix[tenant + 1]];
    // The first prefix of a tenant is its most usual one.
    const prefixId = first + Math.floor((end - first) * random() ** 2);
    let turnsLeft = 1;
    while (turnsLeft < TURNS_MAX && random() > TURN_END_SHARE) turnsLeft += 1;
    const prefixTokens = this.#prefixTokens[prefixId] ?? 0;
    return { id, prefixId, prefixTokens, turnsLeft, loggedTokens: 0, engine: -1, endedMs: 0, random };
  }

  turn({ random }: SimSession): SimTurn {
    return {
      newTokens: Math.floor(drawPareto(random, NEW_TOKENS)),
      replyTokens: Math.floor(drawPareto(random, REPLY_TOKENS)),
    };
  }

  /** Until the reader has read and written. */
  thinkMs({ random }: SimSession): number {
    return drawExponential(random, THINK_MS);
  }

  #drawTenant(uniform: number): number {
    const target = uniform * (this.#popularity.at(-1) ?? 0);
    let [low, high] = [0, this.#popularity.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#popularity[middle] as number) > target) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
