/** One resumed turn on an engine that knows nothing, over a store behind a link. */
import { openEngine } from "../../engine/open.ts";
import { ENGINE_DEFAULTS, systemClock } from "../../engine/settings.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import { type BenchModel, CHUNK_ROWS } from "../decode/bench-model.ts";
import { type BenchTurn, percentileMs, startTurn } from "../schedule/bench-engine.ts";
import { DelayedStore, type Link } from "./delayed-store.ts";

/** How the context comes back: not at all, as a whole, by selection (waiting for every selected page, or for half a second). */
export type ResumeMode = "recompute" | "full" | "lazy" | "lazy-default";

/** What is resumed, and how. */
export interface ResumeCase {
  mode: ResumeMode;
  /** Context, then the turn's own tokens. */
  tokens: readonly number[];
  contextTokens: number;
  selection: SelectionRequest;
  replyTokens: number;
  namespace: string;
  sessionId: string;
}

/** One line of the result. */
export interface ResumeRow {
  context: number;
  mode: ResumeMode;
  ttftMs: number;
  bytesBeforeFirstToken: number;
  bytesSession: number;
  /** The first over the second. */
  bytesShare: number;
  pagesBeforeFirstToken: number;
  /** Selected and not waited for; in the whole turn. */
  pagesMissed: number;
  recomputedTokens: number;
  /** Median between the tokens after the first. */
  msPerToken: number;
  /** Whether the reply is that of an engine that has everything on its device; undefined where it need not be. */
  identical: boolean | undefined;
}

/** Runs turns on fresh engines over one model; each engine starts with an empty cache. */
export class Resumer {
  readonly #model: BenchModel;
  readonly #store: PageStore;
  readonly #link: Link;

  constructor(model: BenchModel, store: PageStore, link: Link) {
    this.#model = model;
    this.#store = store;
    this.#link = link;
  }

  /** The turn on an engine that has just been started. `empty`: over a store that holds nothing. */
  async cold(what: ResumeCase, empty: PageStore | undefined): Promise<BenchTurn> {
    return await this.#withEngine(empty ?? this.#store, this.#link, (engine) => this.#turn(engine, what));
  }

  /** The same turn where everything was read before, over a store that takes no time. */
  async resident(what: ResumeCase): Promise<BenchTurn> {
    const atHand = { rttMs: 0, mbps: 1e6 };
    return await this.#withEngine(this.#store, atHand, async (engine) => {
      const dense: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };
      await this.#turn(engine, { ...what, selection: dense, replyTokens: 1 });
      return await this.#turn(engine, what);
    });
  }

  async #withEngine(
    store: PageStore,
    link: Link,
    run: (engine: ReturnType<typeof openEngine>) => Promise<BenchTurn>,
  ): Promise<BenchTurn> {
    const opened = openEngine({
      runner: this.#model.runner,
      numericsId: this.#model.device.numericsId,
      store: new DelayedStore(store, link),
      settings: {
        ...ENGINE_DEFAULTS,
        ...{ engineId: "bench", modelId: "bench", contextTokensMax: this.#model.config.contextTokensMax },
        ...{ runningMax: 1, stepRowsMax: CHUNK_ROWS, turnMsMax: 3_600_000 },
      },
      clock: systemClock,
      log() {},
    });
    try {
      return await run(opened);
    } finally {
      await opened.engine.stop(60_000);
    }
  }

  #turn({ engine }: ReturnType<typeof openEngine>, what: ResumeCase): Promise<BenchTurn> {
    const { tokens, contextTokens, selection, replyTokens, namespace, sessionId } = what;
    const known = {
      session: { id: sessionId },
      turnStart: contextTokens,
      spans: [{ end: contextTokens, how: "dense" }],
    };
    return startTurn({ engine }, { tokens, maxTokens: replyTokens, selection, namespace, ...known }).ended;
  }
}

/** The result's line of a turn. */
export function resumeRow(
  what: ResumeCase,
  turn: BenchTurn,
  reference: { bytesSession: number; ids: readonly number[] | undefined },
): ResumeRow {
  const { usage, tokensMs, submittedMs } = turn;
  const gaps = tokensMs.slice(1).map((ms, index) => ms - (tokensMs[index] as number));
  const { bytesSession, ids } = reference;
  return {
    context: what.contextTokens,
    mode: what.mode,
    ttftMs: (tokensMs[0] as number) - submittedMs,
    bytesBeforeFirstToken: usage.bytesBeforeFirstToken,
    bytesSession,
    bytesShare: usage.bytesBeforeFirstToken / bytesSession,
    pagesBeforeFirstToken: usage.pagesBeforeFirstToken,
    pagesMissed: usage.pagesMissed,
    recomputedTokens: usage.recomputedTokens,
    msPerToken: gaps.length === 0 ? Number.NaN : percentileMs(gaps, 50),
    identical: ids && ids.join() === turn.ids.join(),
  };
}
