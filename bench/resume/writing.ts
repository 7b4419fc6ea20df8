/** What writing behind costs those who decode: with a session against without one, and while the store answers nothing at all. */
import { setTimeout as sleep } from "node:timers/promises";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { GetOptions, PutOptions, PutResult, StoreObject } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import type { BenchModel } from "../decode/bench-model.ts";
import { randomTokens, startTurn } from "../schedule/bench-engine.ts";
import { gapMs, withEngine } from "./measure-resume.ts";

const PROMPT_TOKENS = 512;
/** Decoded before a store stalls. */
const FIRST_TOKENS = 8;
const SELECTION: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };

/** Share of its decode speed that a turn keeps. */
export interface WritingShares {
  /** With write-behind, against a turn without a session. */
  persisting: number;
  /** While no call of the store ends, against the same tokens over one that answers. */
  stalled: number;
}

/** A store that can stop answering. */
class StallingStore extends MemoryStore {
  #stall: Promise<void> | undefined;

  /** Until the returned function is called, no call ends. */
  stall(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#stall = promise;
    return () => {
      this.#stall = undefined;
      resolve();
    };
  }

  override async get(key: string, options?: GetOptions): Promise<StoreObject | undefined> {
    await this.#stall;
    return await super.get(key, options);
  }

  override async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<PutResult> {
    await this.#stall;
    return await super.put(key, bytes, options);
  }
}

/** Runs both; takes `tokens` of decoding twice, then `stallMs` without a store that answers and as many tokens with one. */
export async function measureWriting(
  model: BenchModel,
  { seed, tokens, stallMs }: { seed: number; tokens: number; stallMs: number },
): Promise<WritingShares> {
  const prompt = randomTokens(model.config, seed, PROMPT_TOKENS);
  const gap = (session: { id: string } | undefined) =>
    withEngine(model, new MemoryStore(), async (opened) => {
      const turn = startTurn(opened, { tokens: prompt, maxTokens: tokens, selection: SELECTION, session });
      return gapMs(await turn.ended);
    });
  const [without, with_] = [await gap(undefined), await gap({ id: "written" })];
  return { persisting: without / with_, stalled: await stalledShare(model, prompt, stallMs) };
}

/**
 * The same tokens of the same turn, decoded while the store answers nothing and while it answers: a step costs more the longer its context is, so
 * that the seconds before a stall say nothing of those in it.
 */
async function stalledShare(model: BenchModel, prompt: readonly number[], stallMs: number): Promise<number> {
  const tokensMax = model.capacityTokens - PROMPT_TOKENS - 64;
  const stalled = await decodeOver(model, prompt, { stallMs, tokensMax });
  const answered = await decodeOver(model, prompt, { stallMs: 0, tokensMax: stalled.tokens });
  return answered.ms / stalled.ms;
}

/** Tokens after the first few of a turn whose store stalls for so long (0: not at all), and the time that they took. */
async function decodeOver(
  model: BenchModel,
  prompt: readonly number[],
  { stallMs, tokensMax }: { stallMs: number; tokensMax: number },
): Promise<{ tokens: number; ms: number }> {
  const store = new StallingStore();
  return await withEngine(model, store, async (opened) => {
    const session = { id: "stalled" };
    const turn = startTurn(opened, { tokens: prompt, maxTokens: tokensMax, selection: SELECTION, session });
    turn.ended.catch(() => undefined);
    while (turn.tokensMs.length < FIRST_TOKENS) await sleep(5);
    const answer = stallMs > 0 ? store.stall() : () => undefined;
    await Promise.race([stallMs > 0 ? sleep(stallMs) : turn.ended, turn.ended]);
    const tokens = turn.tokensMs.length;
    const ms = (turn.tokensMs[tokens - 1] as number) - (turn.tokensMs[FIRST_TOKENS - 1] as number);
    answer();
    turn.cancel();
    await turn.ended.catch(() => undefined);
    return { tokens, ms };
  });
}
