/** What writing behind costs those who decode: with a session against without one, and while the store answers nothing at all. */
import { setTimeout as sleep } from "node:timers/promises";
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { GetOptions, PutOptions, PutResult, StoreObject } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import type { BenchModel } from "../decode/bench-model.ts";
import { randomTokens, startTurn } from "../schedule/bench-engine.ts";
import { gapMs, withEngine } from "./measure-resume.ts";

const PROMPT_TOKENS = 512;
const SELECTION: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };

/** Share of its decode speed that a turn keeps. */
export interface WritingShares {
  /** With write-behind, against a turn without a session. */
  persisting: number;
  /** While no call of the store ends, against the time before. */
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

/** Runs both; takes `tokens` of decoding twice, then `stallMs` once with and a third of it without a store that answers. */
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

async function stalledShare(model: BenchModel, prompt: readonly number[], stallMs: number): Promise<number> {
  const store = new StallingStore();
  return await withEngine(model, store, async (opened) => {
    const maxTokens = model.capacityTokens - PROMPT_TOKENS - 64;
    const turn = startTurn(opened, { tokens: prompt, maxTokens, selection: SELECTION, session: { id: "stalled" } });
    turn.ended.catch(() => undefined);
    while (turn.tokensMs.length < 8) await sleep(5);
    const countIn = async (ms: number) => {
      const before = turn.tokensMs.length;
      const startMs = performance.now();
      await Promise.race([sleep(ms), turn.ended]);
      return (turn.tokensMs.length - before) / (performance.now() - startMs);
    };
    const calm = await countIn(stallMs / 3);
    const answer = store.stall();
    const stalled = await countIn(stallMs);
    answer();
    turn.cancel();
    await turn.ended.catch(() => undefined);
    return stalled / calm;
  });
}
