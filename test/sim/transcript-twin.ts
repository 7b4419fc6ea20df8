/**
 * The naive twin: a plain transcript. It holds the ids and spans of a log and nothing else, computes them one query group at a time with
 * a runner of its own, and shares no line with the engine: no cache, no store, no batch, no chunks, no checkpoint.
 */
import { BLOCK_TOKENS, PAGE_TOKENS, type SampleRow } from "../../kernels/contract.ts";
import type { ModelRunner } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SamplingParams, Span } from "../../protocol/generate.ts";

/** What the next turn of a log must give. */
export interface TwinReply {
  ids: number[];
  logprobs: number[];
}

/** What a turn asks of the log's end. */
export interface TwinTurn {
  /** The whole prompt, the log's tokens first. */
  ids: readonly number[];
  /** Of every token of `ids`. */
  spans: readonly Span[];
  /** Of the tokens of the reply. */
  replyHow: string;
  tokensMax: number;
  sampling: SamplingParams;
  /** Where the reply begins, for penalties; absent where there are none. */
  replyStart?: number;
}

const NONE = new Uint32Array(0);

/** One log's tokens and their KV, in a part of the pool that is its own. */
export class TranscriptTwin {
  readonly #runner: ModelRunner;
  readonly #index: number;
  readonly #blockCapacity: number;
  /** Tokens that have KV. */
  #ids: number[] = [];
  #hows: string[] = [];

  constructor(runner: ModelRunner, options: { index: number; contextTokensMax: number }) {
    this.#runner = runner;
    this.#index = options.index;
    this.#blockCapacity = Math.ceil(options.contextTokensMax / BLOCK_TOKENS);
  }

  /** Computes what is not computed yet and samples the reply. */
  async reply(turn: TwinTurn): Promise<TwinReply> {
    const ids = [...turn.ids];
    const hows = perToken(turn.spans);
    this.#keepCommon(ids, hows);
    const reply: TwinReply = { ids: [], logprobs: [] };
    while (reply.ids.length < turn.tokensMax) {
      const sample = await this.#advance(ids, hows, turn);
      reply.ids.push(sample.tokenId);
      reply.logprobs.push(sample.logprob ?? Number.NaN);
      ids.push(sample.tokenId);
      hows.push(turn.replyHow);
    }
    return reply;
  }

  /** Forgets everything from the first token on that differs, back to the start of its block: a sealed block is kept whole or not at all. */
  #keepCommon(ids: readonly number[], hows: readonly string[]): void {
    let same = 0;
    while (
      same < this.#ids.length &&
      same < ids.length &&
      this.#ids[same] === ids[same] &&
      this.#hows[same] === hows[same]
    )
      same += 1;
    // The last token's logits are wanted, so it is computed again; the block is computed from its start.
    const kept = Math.floor(Math.min(same, ids.length - 1) / BLOCK_TOKENS) * BLOCK_TOKENS;
    this.#ids = this.#ids.slice(0, kept);
    this.#hows = this.#hows.slice(0, kept);
  }

  async #advance(ids: readonly number[], hows: readonly string[], { sampling, replyStart }: TwinTurn) {
    for (;;) {
      const from = groupStart(this.#ids.length, hows);
      const to = groupEnd(from, hows);
      const last = to === ids.length;
      const sample = await this.#step(ids, hows, {
        from,
        to,
        ...(last ? { sample: sampleOf(sampling, ids, replyStart) } : {}),
      });
      this.#ids = ids.slice(0, to);
      this.#hows = hows.slice(0, to);
      if (last) {
        if (!sample) throw new Error("the last row gives a sample");
        return sample;
      }
    }
  }

  async #step(
    ids: readonly number[],
    hows: readonly string[],
    { from, to, sample }: { from: number; to: number; sample?: Omit<SampleRow, "row"> },
  ) {
    const parsed = parse(hows[from] as string);
    const { layerCount } = this.#runner.config;
    const first = this.#index * this.#blockCapacity;
    const slots = Int32Array.from({ length: this.#blockCapacity }, (_, block) => first + block);
    const [result] = await this.#runner.step([
      {
        slice: {
          position: from,
          rowCount: to - from,
          blockIds: Int32Array.from({ length: layerCount * this.#blockCapacity }, (_, i) => first * layerCount + i),
          blockCapacity: this.#blockCapacity,
          summarySlots: slots,
          openSlots: Int32Array.of(this.#index),
          groupStarts: Int32Array.of(0),
          ...(parsed && from >= parsed.budgetTokens && parsed.runTokens > 1 ? { voters: "first" } : {}),
          plan:
            parsed && from >= parsed.budgetTokens
              ? policyNamed(parsed.policy).plan(parsed.budgetTokens)
              : { kind: "dense" },
        },
        tokens: Uint32Array.from(ids.slice(from, to)),
        exact: true,
        ...(sample ? { sample } : {}),
      },
    ]);
    if (result?.misses.length !== 0) throw new Error("the twin has every block");
    return result.sample;
  }
}

/** The twin keeps no choices: where the rows of a run choose by its first, it computes the run again for each of them. */
function groupStart(position: number, hows: readonly string[]): number {
  const { runTokens = 1 } = parse(hows[position] as string) ?? {};
  let start = position;
  while (start % runTokens !== 0 && hows[start - 1] === hows[position]) start -= 1;
  return start;
}

/** A group ends with its page, with its span, where the budget makes way for selection, and in decode after one row, or after a run. */
function groupEnd(from: number, hows: readonly string[]): number {
  const how = hows[from] as string;
  const parsed = parse(how);
  const most = parsed?.groupTokens === 1 ? parsed.runTokens : PAGE_TOKENS;
  let to = from + 1;
  while (to < hows.length && to % most !== 0 && hows[to] === how && to !== parsed?.budgetTokens) to += 1;
  return to;
}

function parse(
  how: string,
): { policy: string; budgetTokens: number; groupTokens: number; runTokens: number } | undefined {
  if (how === "dense") return undefined;
  const [name = "", numbers = ""] = how.split(":");
  const [budget, group] = numbers.split(/[@#]/);
  return {
    policy: name.slice(0, name.lastIndexOf(".")),
    budgetTokens: Number(budget),
    groupTokens: Number(group),
    runTokens: how.includes("@1") && !how.includes("@16") ? Number(/reuse\((\d+)\)/.exec(name)?.[1] ?? 1) : 1,
  };
}

/** Of every token, with the place where its span begins: a query group ends with its span, also where the next is computed alike. */
function perToken(spans: readonly Span[]): string[] {
  const hows: string[] = [];
  for (const { end, how } of spans) {
    const start = hows.length;
    while (hows.length < end) hows.push(how.endsWith("@1") || how === "dense" ? how : `${how}#${start}`);
  }
  return hows;
}

/** Of the token behind `ids`. A penalty knows every token before it, and counts those of the reply. */
function sampleOf(sampling: SamplingParams, ids: readonly number[], replyStart?: number): Omit<SampleRow, "row"> {
  const { temperature, topK, topP, minP, frequencyPenalty, presencePenalty, repetitionPenalty, seed } = sampling;
  const { logitBias } = sampling;
  return {
    temperature,
    topK,
    topP,
    minP,
    frequencyPenalty,
    presencePenalty,
    repetitionPenalty,
    ...seenOf(ids, replyStart),
    biasIds: Uint32Array.from(logitBias, ([id]) => id),
    biasValues: Float32Array.from(logitBias, ([, value]) => value),
    seed,
    position: ids.length,
    topLogprobs: 0,
  };
}

function seenOf(ids: readonly number[], replyStart: number | undefined) {
  if (replyStart === undefined) return { seenIds: NONE, seenCounts: NONE };
  const seen = [...new Set(ids)];
  const reply = ids.slice(replyStart);
  const counts = seen.map((id) => reply.filter((said) => said === id).length);
  return { seenIds: Uint32Array.from(seen), seenCounts: Uint32Array.from(counts) };
}
