/** Random traces of continuous batching: sequences that advance side by side under changing plans, groups and residency. */
import { describe, expect, it } from "vitest";
import type { PageScorer, SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, type Part, type Sequence, type StageShape } from "../support/stage.ts";

const LENGTH_MAX = 330;

/** Runs `count` traces, each named by its seed; every step is judged by the oracle and the reference. */
export function describeTraces(lane: Lane, count: number): void {
  const seeds = Array.from({ length: count }, (_, index) => SEED * 1000 + index);
  describe("random traces", () => {
    it.each(seeds)("seed %i", async (seed) => {
      const random = new Random(seed);
      const shape = randomShape(random);
      const sequences = Array.from({ length: 1 + random.integer(3) }, (_, index) =>
        makeSequence(shape, 20 + random.integer(LENGTH_MAX), seed + index),
      );
      const twin = new Twin(lane, shape, { blockCapacity: sequences.length * Math.ceil(LENGTH_MAX / 64 + 1), seed });
      const done = new Map<Sequence, number>();
      for (const sequence of sequences) {
        const start = random.integer(sequence.length);
        await twin.fill(sequence, start);
        done.set(sequence, start);
      }
      let rowCount = 0;
      for (let step = 0; step < 4; step++) {
        const parts = sequences.flatMap(
          (sequence) => randomPart(random, sequence, { position: done.get(sequence)!, mayRest: step > 0, shape }) ?? [],
        );
        if (parts.length === 0) continue;
        await twin.run(parts);
        for (const part of parts) {
          done.set(part.sequence, part.position + part.rowCount);
          rowCount += part.rowCount;
        }
      }
      expect(rowCount, "the trace did something").toBeGreaterThan(0);
    });
  });
}

function pick<T>(random: Random, choices: readonly T[]): T {
  return choices[random.integer(choices.length)]!;
}

function randomShape(random: Random): StageShape {
  const kvHeadCount = 1 + random.integer(3);
  return {
    layerCount: 1 + random.integer(2),
    headCount: kvHeadCount * (1 + random.integer(4)),
    kvHeadCount,
    headDim: 4 * (1 + random.integer(6)),
    encoding: pick(random, ["f32", "int8"] as const),
    summaryKinds: pick(random, [
      ["min-max", "mean-deviation"],
      ["mean-deviation", "min-max"],
      ["representatives", "min-max", "centre-deviation"],
    ] as const),
  };
}

function randomPlan(random: Random, { summaryKinds }: StageShape): SelectionPlan {
  const scorer: PageScorer = {
    summary: pick(random, summaryKinds),
    radiusWeight: pick(random, [0, 0.5, 1]),
  };
  const sizes = { budgetPages: random.integer(20), sinkPages: random.integer(4), recentPages: random.integer(5) };
  const kind = random.integer(5);
  if (kind === 0) return { kind: "dense" };
  if (kind === 1) return { kind: "tokens", ...sizes, candidatePages: random.integer(16), scorer };
  const combine = pick(random, ["max", "softmax-sum"] as const);
  const scope = pick(random, ["kv-head", "layer"] as const);
  return { kind: "pages", ...sizes, scope, combine, ...(kind === 2 ? {} : { scorer }) };
}

/** The next rows of a sequence; undefined where it rests in this step or is at its end. */
function randomPart(
  random: Random,
  sequence: Sequence,
  { position, mayRest, shape }: { position: number; mayRest: boolean; shape: StageShape },
): Part | undefined {
  const left = sequence.length - position;
  if (left === 0 || (mayRest && random.next() < 0.2)) return undefined;
  const rowCount = Math.min(left, pick(random, [1, 1, 2, 9, 40, 90]));
  const groupStarts = [0];
  for (let row = 1; row < rowCount; row++) if (random.next() < 0.08) groupStarts.push(row);
  const absent: NonNullable<Part["absent"]> = [];
  for (let block = 0; block < Math.floor(position / 64); block++) {
    if (random.next() < 0.2) absent.push(random.next() < 0.5 ? { block } : { block, layer: 0 });
  }
  return { sequence, position, rowCount, groupStarts, absent, plan: randomPlan(random, shape) };
}
