/** Conformance of sampling on a device: the shared definition, row by row, and the contract's order of results. */
import { expect, it } from "vitest";
import type { Sample, SampleRow } from "../../../kernels/contract.ts";
import { sampleRow } from "../../../kernels/sample-row.ts";
import { upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";

/** Greedy, without penalties. */
export function plainRow(row: number, changes: Partial<SampleRow> = {}): SampleRow {
  return {
    ...{ row, temperature: 0, topK: 0, topP: 1, minP: 0 },
    ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
    ...{ seenIds: new Uint32Array(0), seenCounts: new Uint32Array(0) },
    ...{ biasIds: new Uint32Array(0), biasValues: new Float32Array(0) },
    ...{ seed: 7, position: 3, ...changes },
  };
}

/** Samples of a device against `sampleRow` on the same logits. */
export function describeSampling(lane: Lane): void {
  describeGreedy(lane);
  it(`samples rows in the order recorded, over several ops (seed ${SEED})`, async () => {
    const device = lane.device();
    const width = 259;
    const logits = new Random(SEED).normals(6 * width, 3);
    logits.fill(Number.NEGATIVE_INFINITY, 2 * width, 3 * width - 5);
    logits.fill(1.5, 3 * width, 4 * width);
    const rows = [
      plainRow(4),
      plainRow(0, { topLogprobs: 3 }),
      plainRow(3, { topLogprobs: 2 }),
      plainRow(2, { temperature: 1, topLogprobs: 0 }),
      ...Array.from({ length: 20 }, (_, position) => plainRow(1, { temperature: 0.8, topP: 0.95, position })),
      // The largest of a row among rows that are drawn.
      ...[plainRow(4), plainRow(0)],
      plainRow(5, { temperature: 1.3, topK: 10, minP: 0.02, seed: 4_294_967_295, position: 31_000 }),
      plainRow(5, {
        ...{ repetitionPenalty: 1.3, frequencyPenalty: 0.4, presencePenalty: 0.6 },
        ...{ seenIds: Uint32Array.of(3, 8), seenCounts: Uint32Array.of(0, 2) },
        ...{ biasIds: Uint32Array.of(8, 200), biasValues: Float32Array.of(4, 100) },
      }),
    ];
    const buffer = upload(device, "logits", logits);
    const recorder = device.begin([]);
    recorder.sample({ logits: buffer, width, rows: rows.slice(0, 5) });
    recorder.sample({ logits: buffer, width, rows: rows.slice(5) });
    const { samples } = await recorder.submit();
    expect(samples.length).toBe(rows.length);
    rows.forEach((row, index) => {
      const expected = sampleRow(logits.slice(row.row * width, (row.row + 1) * width), row);
      expectSample(samples[index]!, expected, lane.tolerances.logprob, `row ${row.row}, sample ${index}`);
    });
    expect(samples.at(-1)?.tokenId, "a bias of 100 decides").toBe(200);
    expect(samples[2]?.tokenId, "a tie goes to the lower id").toBe(0);
    expect(samples[3]!.tokenId, "-Infinity is never sampled").toBeGreaterThanOrEqual(width - 5);
  });
}

/** Greedy rows of every small width, with ties, infinities, NaN and zeros of both signs. */
function describeGreedy(lane: Lane): void {
  it(`greedy takes the largest, the lower id of equals, at every width (seed ${SEED})`, async () => {
    const device = lane.device();
    const random = new Random(SEED);
    const values = [0, -0, 1, 2, 2, 3, Number.NaN, Number.NEGATIVE_INFINITY, -1e30];
    for (let width = 1; width <= 41; width++) {
      const rowCount = 12;
      const logits = Float32Array.from({ length: rowCount * width }, () => values[random.integer(values.length)]!);
      logits.fill(Number.NaN, 0, width);
      logits.fill(Number.NEGATIVE_INFINITY, width, 2 * width);
      if (width > 2) logits[2 * width - 1] = -1e30;
      const buffer = upload(device, "logits", logits);
      const seen = { seenIds: Uint32Array.of(0), seenCounts: Uint32Array.of(3) };
      const rows = Array.from({ length: rowCount }, (_, row) => plainRow(row, row % 2 === 0 ? seen : {}));
      const recorder = device.begin([]);
      recorder.sample({ logits: buffer, width, rows });
      const { samples } = await recorder.submit();
      const expected = rows.map(({ row }) => firstLargest([...logits.slice(row * width, (row + 1) * width)]));
      expect(
        samples.map(({ tokenId }) => tokenId),
        `width ${width}`,
      ).toEqual(expected);
      device.release(buffer);
    }
  });
}

function firstLargest(logits: readonly number[]): number {
  const numbers = logits.map((logit) => (Number.isNaN(logit) ? Number.NEGATIVE_INFINITY : logit));
  const most = Math.max(...numbers);
  return numbers.indexOf(most);
}

function expectSample(actual: Sample, expected: Sample, tolerance: number, what: string): void {
  expect(actual.tokenId, what).toBe(expected.tokenId);
  expect(actual.logprob === undefined, `${what}: logprob only when asked for`).toBe(expected.logprob === undefined);
  expect(Math.abs((actual.logprob ?? 0) - (expected.logprob ?? 0)), what).toBeLessThanOrEqual(tolerance);
  expect(
    actual.top?.map(([id]) => id),
    what,
  ).toEqual(expected.top?.map(([id]) => id));
  actual.top?.forEach(([, logprob], index) => {
    expect(Math.abs(logprob - expected.top![index]![1]), what).toBeLessThanOrEqual(tolerance);
  });
}
