/** Sampling on the host's side: what the kernels are told of each row, and what is read back. */
import { assert } from "../../protocol/assert.ts";
import type { Sample, SampleRow } from "../contract.ts";
import { noiseKey } from "../sample-row.ts";
import { SAMPLE_FIELDS } from "./wgsl/sample.ts";
import { NOWHERE } from "./wgsl/unit.ts";
import { type Addresses, floatBits, type Words } from "./words.ts";

/** Where the result of one sampled row is in the outcome. */
export interface SamplePlace {
  at: number;
  /** undefined: no logprobs. */
  topCount: number | undefined;
}

/** Rows of one `sample` op. */
export interface SampleBatch {
  jobsAt: number;
  count: number;
  places: SamplePlace[];
  isGreedy: boolean;
  wantsLogprobs: boolean;
}

/** Writes the rows of one op into the tables; scratch is that op's alone. */
export function sampleBatch(
  rows: readonly SampleRow[],
  width: number,
  { tables, scratch, outcome }: { tables: Words; scratch: Addresses; outcome: Addresses },
): SampleBatch {
  const places: SamplePlace[] = [];
  const jobs = rows.map((row) => {
    const wantsLogprobs = row.topLogprobs !== undefined;
    const topCount = Math.min(row.topLogprobs ?? 0, width);
    const at = outcome.take(wantsLogprobs ? 2 + 2 * topCount : 1);
    places.push({ at, topCount: wantsLogprobs ? topCount : undefined });
    const biases = mergedBiases(row);
    const values: Record<(typeof SAMPLE_FIELDS)[number], number> = {
      ...{ row: row.row, temperature: floatBits(Math.max(0, row.temperature)), top_k: Math.max(0, row.topK) },
      ...{ top_p: floatBits(row.topP), log_min_p: floatBits(Math.log(Math.max(0, row.minP))) },
      frequency_penalty: floatBits(row.frequencyPenalty),
      presence_penalty: floatBits(row.presencePenalty),
      repetition_penalty: floatBits(row.repetitionPenalty),
      seen_at: tables.push(Array.from(row.seenIds).flatMap((id, index) => [id, row.seenCounts[index] ?? 0])),
      seen_count: row.seenIds.length,
      bias_at: tables.push(biases.flatMap(([id, bias]) => [id, floatBits(bias)])),
      bias_count: biases.length,
      noise_key: noiseKey(row.seed, row.position),
      ...{ adjusted_at: scratch.take(width), cutoff_at: scratch.take(3) },
      ...{ outcome_at: at, wants_logprobs: wantsLogprobs ? 1 : 0, top_count: topCount },
    };
    return values;
  });
  const jobsAt = tables.length;
  for (const values of jobs) tables.record(SAMPLE_FIELDS, values);
  return {
    ...{ jobsAt, count: rows.length, places },
    isGreedy: rows.every((row) => row.temperature <= 0),
    wantsLogprobs: places.some(({ topCount }) => topCount !== undefined),
  };
}

/** Each id once: the kernel adds biases side by side. */
function mergedBiases({ biasIds, biasValues }: SampleRow): [id: number, bias: number][] {
  const sums = new Map<number, number>();
  biasIds.forEach((id, index) => {
    sums.set(id, (sums.get(id) ?? 0) + (biasValues[index] ?? 0));
  });
  return [...sums];
}

/** The samples, from the outcome's words. */
export function readSamples(places: readonly SamplePlace[], outcome: Uint32Array): Sample[] {
  const floats = new Float32Array(outcome.buffer, outcome.byteOffset, outcome.length);
  return places.map(({ at, topCount }) => {
    const tokenId = outcome[at];
    assert(tokenId !== undefined && tokenId !== NOWHERE, "a sample is missing in the readback");
    if (topCount === undefined) return { tokenId };
    const top = Array.from({ length: topCount }, (_, n): [number, number] => [
      outcome[at + 2 + 2 * n] as number,
      floats[at + 3 + 2 * n] as number,
    ]);
    return { tokenId, logprob: floats[at + 1] as number, top };
  });
}
