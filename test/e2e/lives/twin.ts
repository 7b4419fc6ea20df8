/** What house-0 must say: the simulation's naive twin on the real model, one query group after the other, in a process that no engine runs in. */
import { setImmediate } from "node:timers/promises";
import { BLOCK_TOKENS, type Device } from "../../../kernels/contract.ts";
import { openDevice } from "../../../kernels/open.ts";
import { openModel } from "../../../models/open.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import type { SamplingParams } from "../../../protocol/generate.ts";
import { poolFormOf } from "../../../storage/block-encoding.ts";
import type { StoredEncoding } from "../../../storage/geometry.ts";
import { TranscriptTwin } from "../../sim/transcript-twin.ts";
import { repositoryRoot } from "../../style/source-tree.ts";
import { END, type Prompt, textOf } from "./transcript.ts";

/** Prompt and reply of any turn of a life. */
export const CONTEXT_TOKENS = 2_048;
const TWIN_COUNT = 4;

/** How a turn is to be answered. */
export interface Manner {
  policy: string;
  budgetTokens: number;
  temperature: number;
  seed: number;
  tokensMax: number;
  /** Its end token is kept from it. */
  isLong: boolean;
  stops: readonly string[];
  topP?: number;
  topK?: number;
  minP?: number;
  frequencyPenalty?: number;
  presencePenalty?: number;
  repetitionPenalty?: number;
}

/** Greedy and dense, a few tokens. */
export const DENSE: Manner = {
  ...{ policy: "dense", budgetTokens: 128, temperature: 0, seed: 1, tokensMax: 6, isLong: false, stops: [] },
};

/** The reply that follows. */
export interface Expected {
  /** Kept by the log, without an end token. */
  ids: readonly number[];
  isEnded: boolean;
  text: string;
  reason: "stop" | "length";
  /** As usage counts them. */
  completionTokens: number;
  logprobs: readonly number[];
  how: { prompt: string; reply: string };
}

/** Provenance of a turn: a first prompt is read in full. */
export function howOf({ policy, budgetTokens }: Manner, turnStart: number): { prompt: string; reply: string } {
  if (policy === "dense") return { prompt: policy, reply: policy };
  const named = `${policy}.${policyNamed(policy).version}:${budgetTokens}`;
  return { prompt: turnStart === 0 ? "dense" : `${named}@16`, reply: `${named}@1` };
}

/** Computes one reply at a time. */
export class HouseTwin {
  readonly #device: Device;
  readonly #twins: readonly TranscriptTwin[];
  #last: Promise<unknown> = Promise.resolve();

  private constructor(device: Device, twins: readonly TranscriptTwin[]) {
    this.#device = device;
    this.#twins = twins;
  }

  static async open(pages: StoredEncoding): Promise<HouseTwin> {
    const device = await openDevice({ kind: "wasm", threads: 1 });
    const blockCount = (TWIN_COUNT * CONTEXT_TOKENS) / BLOCK_TOKENS;
    const runner = await openModel({
      folder: `${repositoryRoot}/weights/house-0`,
      device,
      encoding: "int8",
      kv: {
        ...poolFormOf(pages),
        summaryKinds: ["min-max", "mean-deviation"],
        blockCount: blockCount * 4,
        openSlotCount: TWIN_COUNT,
        summarySlotCount: blockCount,
      },
      rowsMax: 64,
      sampledMax: 1,
    });
    const twins = Array.from({ length: TWIN_COUNT }, (_, index) => {
      return new TranscriptTwin(runner, { index, contextTokensMax: CONTEXT_TOKENS });
    });
    return new HouseTwin(device, twins);
  }

  /** @param name of the conversation: what it said before is not computed again while nobody else takes its place */
  reply(name: string, prompt: Prompt, manner: Manner): Promise<Expected> {
    const computed = this.#last.then(() => this.#compute(name, prompt, manner));
    this.#last = computed.catch(() => undefined);
    return computed;
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  async #compute(name: string, prompt: Prompt, manner: Manner): Promise<Expected> {
    const twin = this.#twins[[...name].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % TWIN_COUNT];
    if (!twin) throw new Error("a twin for each place");
    const { tokensMax, stops } = manner;
    const how = howOf(manner, prompt.turnStart);
    const spans = [...prompt.spans, { end: prompt.ids.length, how: how.prompt }];
    const reply = { ids: [] as number[], logprobs: [] as number[] };
    // In pieces: most replies end by themselves.
    for (let reason: "stop" | "length" | undefined; reason === undefined; ) {
      const more = await twin.reply({
        ...{
          ids: [...prompt.ids, ...reply.ids],
          replyHow: how.reply,
          sampling: samplingOf(manner),
          replyStart: prompt.ids.length,
        },
        spans:
          reply.ids.length === 0 ? spans : [...spans, { end: prompt.ids.length + reply.ids.length, how: how.reply }],
        tokensMax: Math.min(16, tokensMax - reply.ids.length),
      });
      reply.ids.push(...more.ids);
      reply.logprobs.push(...more.logprobs);
      // The device computes in this thread, which has clients to listen to as well.
      await setImmediate();
      if (reply.ids.includes(END) || reply.ids.length >= tokensMax || stopOf(textOf(reply.ids), stops)) break;
    }
    return { ...endOf(reply, stops), how };
  }
}

function endOf({ ids, logprobs }: { ids: number[]; logprobs: number[] }, stops: readonly string[]) {
  const end = ids.indexOf(END);
  const said = end < 0 ? ids : ids.slice(0, end);
  const stop = stopOf(textOf(said), stops);
  if (stop) {
    // Texts of lives are bytes: what stops them stands behind as many tokens as characters where it is ASCII.
    const kept = said.slice(0, stop.at);
    const completionTokens = stop.end;
    return { ids: kept, isEnded: false, text: textOf(kept), reason: "stop" as const, completionTokens, logprobs };
  }
  const text = textOf(said);
  const isEnded = end >= 0;
  const completionTokens = said.length + (isEnded ? 1 : 0);
  return {
    ids: said,
    isEnded,
    text,
    reason: isEnded ? ("stop" as const) : ("length" as const),
    completionTokens,
    logprobs,
  };
}

/** The stop string that is complete first; of those that end together the longest. */
function stopOf(text: string, stops: readonly string[]): { at: number; end: number } | undefined {
  const found = stops.flatMap((stop) => {
    const at = text.indexOf(stop);
    return at < 0 ? [] : [{ at, end: at + stop.length }];
  });
  return found.sort((a, b) => a.end - b.end || a.at - b.at)[0];
}

function samplingOf({ temperature, seed, isLong, ...manner }: Manner): SamplingParams {
  const { topP = 1, topK = 0, minP = 0, frequencyPenalty = 0, presencePenalty = 0, repetitionPenalty = 1 } = manner;
  return {
    ...{ temperature, seed, topP, topK, minP, frequencyPenalty, presencePenalty, repetitionPenalty },
    logitBias: isLong ? [[END, -100]] : [],
  };
}
