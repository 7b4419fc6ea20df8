/** Turns of a stored session on engines that know nothing, over a store behind a link. */
import { type OpenedEngine, openEngine } from "../../engine/open.ts";
import { ENGINE_DEFAULTS, type EngineSettings, systemClock } from "../../engine/settings.ts";
import type { ResumeMode, SelectionRequest, Span } from "../../protocol/generate.ts";
import type { PageStore } from "../../storage/contract.ts";
import type { MemoryStore } from "../../storage/memory-store.ts";
import { type BenchModel, CHUNK_ROWS } from "../decode/bench-model.ts";
import { type BenchTurn, percentileMs, startTurn } from "../schedule/bench-engine.ts";
import { DelayedStore, type Link } from "./delayed-store.ts";

/** How the context comes back: not at all, as a whole, by selection (waiting for every selected page, or as long as default mode does); or it never left. */
export type BenchMode = "recompute" | "full" | "lazy" | "lazy-default" | "resident";

/** A session so far: what the log of an edge would hold. */
export interface StoredTurns {
  namespace: string;
  sessionId: string;
  tokens: readonly number[];
  spans: readonly Span[];
}

/** What is resumed, and how. */
export interface ResumeCase {
  mode: BenchMode;
  session: StoredTurns;
  prompt: readonly number[];
  selection: Omit<SelectionRequest, "exact">;
  replyTokens: number;
}

/** One line of the result. */
export interface ResumeRow {
  context: number;
  mode: BenchMode;
  ttftMs: number;
  bytesBeforeFirstToken: number;
  bytesSession: number;
  /** The first over the second. */
  bytesShare: number;
  pagesBeforeFirstToken: number;
  /** Selected and not waited for: before the first token, and in the whole turn. */
  pagesMissedBefore: number;
  pagesMissed: number;
  recomputedTokens: number;
  /** Median between the tokens after the first. */
  msPerToken: number;
  /** Whether the reply is that of an engine that has everything on its device; undefined where it need not be. */
  identical: boolean | undefined;
}

/** A turn, and what had been missed when its first token came. */
export interface ResumedTurn extends BenchTurn {
  pagesMissedBefore: number;
}

const AT_HAND: Link = { rttMs: 0, mbps: 1e6 };

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

  /** A turn as the mode says; what the engine writes goes nowhere. `resident`: everything was read before, over a store that takes no time. */
  async run(what: ResumeCase): Promise<ResumedTurn> {
    const isResident = what.mode === "resident";
    const store = new DelayedStore(this.#store, isResident ? AT_HAND : this.#link);
    return await withEngine(this.#model, store, async (opened) => {
      if (isResident) await turnOf(opened, { ...what, mode: "full", replyTokens: 1 });
      return await turnOf(opened, what);
    });
  }

  /** A turn whose engine writes to the store itself: the session is longer by it, and knows what it chose. */
  async goOn(what: ResumeCase): Promise<StoredTurns> {
    const turn = await withEngine(this.#model, this.#store, (opened) => turnOf(opened, what));
    const { session, prompt } = what;
    const end = session.tokens.length;
    return {
      ...session,
      tokens: [...session.tokens, ...prompt, ...turn.ids],
      spans: [...session.spans, ...turn.spans.filter((span) => span.end > end)],
    };
  }
}

/** A fresh engine on the model, for as long as `run` takes. */
export async function withEngine<T>(
  model: BenchModel,
  store: PageStore,
  run: (opened: OpenedEngine) => Promise<T>,
  settings: Partial<EngineSettings> = {},
): Promise<T> {
  const opened = openEngine({
    runner: model.runner,
    numericsId: model.device.numericsId,
    store,
    settings: {
      ...ENGINE_DEFAULTS,
      ...{ engineId: "bench", modelId: "bench", contextTokensMax: model.config.contextTokensMax },
      ...{ runningMax: 1, stepRowsMax: CHUNK_ROWS, turnMsMax: 3_600_000, hostPoolBytes: 0 },
      ...settings,
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

const RESUME: Readonly<Record<BenchMode, ResumeMode>> = {
  recompute: "recompute",
  full: "full",
  lazy: "lazy",
  "lazy-default": "lazy",
  resident: "lazy",
};

async function turnOf({ engine }: OpenedEngine, what: ResumeCase): Promise<ResumedTurn> {
  const { mode, session, prompt, selection, replyTokens } = what;
  const { namespace, sessionId, tokens, spans } = session;
  const requestId = `bench-${crypto.randomUUID()}`;
  const turn = await startTurn(
    { engine },
    {
      ...{ requestId, namespace, tokens: [...tokens, ...prompt], maxTokens: replyTokens },
      ...{ session: { id: sessionId }, turnStart: tokens.length, spans: [...spans] },
      ...{ selection: { ...selection, exact: mode !== "lazy-default" }, resume: RESUME[mode] },
    },
  ).ended;
  const first = engine.traces.find(requestId)?.events.find(({ name }) => name === "first token");
  return { ...turn, pagesMissedBefore: first?.fields.pagesMissed ?? Number.NaN };
}

/** Median between the tokens after the first. */
export function gapMs({ tokensMs }: Pick<BenchTurn, "tokensMs">): number {
  const gaps = tokensMs.slice(1).map((ms, index) => ms - (tokensMs[index] as number));
  return gaps.length === 0 ? Number.NaN : percentileMs(gaps, 50);
}

/** The result's line of a turn. */
export function resumeRow(
  what: ResumeCase & { context: number },
  turn: ResumedTurn,
  reference: { bytesSession: number; ids: readonly number[] | undefined },
): ResumeRow {
  const { usage, tokensMs, submittedMs } = turn;
  const { bytesSession, ids } = reference;
  return {
    context: what.context,
    mode: what.mode,
    ttftMs: (tokensMs[0] as number) - submittedMs,
    bytesBeforeFirstToken: usage.bytesBeforeFirstToken,
    bytesSession,
    bytesShare: usage.bytesBeforeFirstToken / bytesSession,
    pagesBeforeFirstToken: usage.pagesBeforeFirstToken,
    pagesMissedBefore: turn.pagesMissedBefore,
    pagesMissed: usage.pagesMissed,
    recomputedTokens: usage.recomputedTokens,
    msPerToken: gapMs(turn),
    identical: ids && ids.join() === turn.ids.join(),
  };
}

/** Bytes of a session in a store: everything that its manifest names (summaries of all kinds), and the manifest. */
export async function sessionBytes(store: MemoryStore): Promise<number> {
  let bytes = 0;
  for (let cursor: string | undefined; ; ) {
    const page = await store.list("kv/", cursor === undefined ? {} : { cursor });
    bytes += page.keys.reduce((sum, key) => sum + key.bytes, 0);
    if (page.cursor === undefined) return bytes;
    cursor = page.cursor;
  }
}
