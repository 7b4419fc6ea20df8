/** Quantized weights and int8 KV against f32: the same answers, and distributions that are close. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device, KvEncoding, MatrixEncoding } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { Observation } from "../../models/observer.ts";
import { Conversation } from "./conversation.ts";
import { HOUSE_END, type HouseCase, houseCases, openHouse, promptIds } from "./house.ts";
import { argmax, divergence } from "./measures.ts";

let cases: HouseCase[];
beforeAll(async () => {
  cases = await houseCases();
});

describe.each([
  { kind: "wasm", index: 0 },
  { kind: "wasm", index: 1 },
] as const)("on the $kind device, case $index", ({ kind, index }) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind });
  });
  afterAll(() => device?.close());

  /** The whole conversation, the vectors' answers fed back; greedy ids and the logits they came from, in order. */
  async function replay(
    encoding: MatrixEncoding,
    kvEncoding: KvEncoding,
  ): Promise<{ greedy: number[][]; logits: Float32Array[] }> {
    const house = cases[index]!;
    const logits: Float32Array[] = [];
    const observe = ({ stage, rows, width, values }: Observation) => {
      if (stage === "logits") logits.push(values.slice((rows - 1) * width));
    };
    const contextTokens = house.turns.at(-1)!.prompt_tokens + 64;
    const runner = await openHouse({ device, contextTokens, encoding, kvEncoding, observe });
    const conversation = new Conversation(runner, { contextTokens, chunkTokens: 256 });
    const greedy: number[][] = [];
    for (const turn of house.turns.keys()) {
      const end = turn === 0 ? [] : [HOUSE_END];
      const first = await conversation.prefill([...end, ...promptIds(house, turn)]);
      greedy.push(await conversation.generate(first, { tokensMax: 40, endId: HOUSE_END }));
    }
    return { greedy, logits };
  }

  // More than none: quantization really ran. Measured on the short case, int8: mean 7.8e-6, largest 3.0e-4 nats.
  it.each([
    { encoding: "int8", meanMax: 1e-4, largestMax: 5e-3 },
    { encoding: "int4", meanMax: 5e-3, largestMax: 0.2 },
  ] as const)(
    "$encoding gives the vectors' greedy ids, and nearly the distributions of f32",
    async (limits) => {
      const { encoding, meanMax, largestMax } = limits;
      const exact = await replay("f32", "f32");
      const quantized = await replay(encoding, "int8");
      expect(exact.logits.length).toBeGreaterThan(84);
      const divergences = exact.logits.map((logits, i) => divergence(logits, quantized.logits[i]!));
      const agreed = exact.logits.filter((logits, i) => argmax(logits) === argmax(quantized.logits[i]!)).length;
      const mean = divergences.reduce((a, b) => a + b) / divergences.length;
      const count = exact.logits.length;
      const largest = Math.max(...divergences);
      console.log(
        `${encoding}: top-1 ${agreed}/${count}, KL mean ${mean.toExponential(1)}, largest ${largest.toExponential(1)}`,
      );
      expect(quantized.greedy).toEqual(cases[index]!.turns.map(({ greedy }) => greedy));
      expect(quantized.logits.length).toBe(count);
      expect(agreed).toBe(count);
      expect(mean).toBeGreaterThan(1e-7);
      expect(mean).toBeLessThan(meanMax);
      expect(largest).toBeLessThan(largestMax);
    },
    60_000,
  );
});
