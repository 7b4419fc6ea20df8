/** house-0 against HF transformers: logits and greedy text. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { Observation } from "../../models/observer.ts";
import { Conversation } from "./conversation.ts";
import { HOUSE_END, type HouseCase, houseCases, openHouse, promptIds, textOf } from "./house.ts";
import { relativeError } from "./measures.ts";

/** f32 against f32; the vectors themselves are rounded to four decimals, at most 5e-6 of their largest value. */
const LOGITS_ERROR_MAX = 1e-4;

let cases: HouseCase[];
beforeAll(async () => {
  cases = await houseCases();
});

describe.each(["reference", "wasm"] as const)("house-0 in f32 on the %s device", (kind) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind });
  });
  afterAll(() => device?.close());

  /** All turns of a case in one conversation, KV reused from turn to turn; `cuts` end chunks at the positions that have vectors. */
  async function converse(house: HouseCase): Promise<void> {
    const logits = new Map<number, Float32Array>();
    let conversation: Conversation;
    const observe = ({ stage, rows, width, values }: Observation) => {
      if (stage === "logits") logits.set(conversation.tokens.length, values.subarray((rows - 1) * width));
    };
    const contextTokens = house.turns.at(-1)!.prompt_tokens + 64;
    const runner = await openHouse({ device, contextTokens, observe });
    conversation = new Conversation(runner, { contextTokens, chunkTokens: 256 });
    const ends = Object.keys(house.turns[0]!.logits_at ?? {}).map((position) => Number(position) + 1);
    const cuts = ends.map((end, i) => end - (ends[i - 1] ?? 0));
    let fed = 0;
    let endToken: number[] = [];
    for (const [i, turn] of house.turns.entries()) {
      const prompt = [...endToken, ...promptIds(house, i)];
      if (turn.ids !== undefined) expect([...conversation.tokens, ...prompt]).toEqual(turn.ids);
      const first = await conversation.prefill(prompt, i === 0 ? cuts : []);
      fed += prompt.length;
      expect(fed).toBe(turn.prompt_tokens);
      expect(relativeError(logitsAt(logits, prompt.length, fed), turn.last_logits)).toBeLessThan(LOGITS_ERROR_MAX);
      const answer = await conversation.generate(first, { tokensMax: 40, endId: HOUSE_END });
      expect(answer).toEqual(turn.greedy);
      expect(textOf(answer)).toBe(turn.text);
      fed += answer.length - 1;
      endToken = [answer.at(-1)!];
    }
    ends.forEach((end, i) => {
      const expected = house.turns[0]!.logits_at![String(end - 1)]!;
      const start = end - cuts[i]!;
      expect(relativeError(logits.get(start)!, expected)).toBeLessThan(LOGITS_ERROR_MAX);
    });
  }

  /** Logits are noted under the position at which their step began: the last chunk of a prompt is the last before its end. */
  function logitsAt(logits: ReadonlyMap<number, Float32Array>, promptTokens: number, end: number): Float32Array {
    const starts = [...logits.keys()].filter((start) => start < end && start >= end - promptTokens);
    return logits.get(Math.max(...starts))!;
  }

  it("equals the vectors over three turns of the short case, at five positions", () => converse(cases[0]!), 60_000);
  // The reference would take a minute for these.
  if (kind === "wasm") {
    it("equals them at 1,700 tokens", () => converse(cases[1]!), 60_000);
    it("equals them at 6,200 tokens", () => converse(cases[2]!), 60_000);
  }
});
