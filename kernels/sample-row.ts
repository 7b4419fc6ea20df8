/**
 * Sampling of one row, shared by every CPU device: a pure function of the logits and the row's parameters.
 *
 * In this order: logit bias is added; the repetition penalty (CTRL, as in HF transformers) divides positive and multiplies negative
 * logits of every seen id; the frequency and presence penalties (OpenAI) subtract `count * frequency + (count > 0) * presence`;
 * temperature divides; top-k keeps the k best; top-p keeps the shortest best-first run whose mass among what is left reaches p;
 * min-p keeps probabilities >= minP times the largest. Then `argmax(logit + Gumbel noise)`, which draws from the softmax of what is kept.
 * Temperature 0 is greedy: the largest penalized logit, with no truncation and no noise. All ties go to the lower id.
 * A NaN logit counts as -Infinity and is never kept beside a finite one; a row with no finite logit gives id 0.
 */
import type { Sample, SampleRow } from "./contract.ts";

/**
 * Samples one row. `logits` `[vocabularySize]` is neither changed nor kept. Logprobs are those of the softmax of `logits` as given.
 */
export function sampleRow(logits: Float32Array, row: SampleRow): Sample {
  const tokenId = chooseToken(logits, row);
  if (row.topLogprobs === undefined) return { tokenId };
  const logSum = logSumExp(logits);
  const logprobOf = (id: number): number => clean(logits[id]) - logSum;
  const top = bestIds(logits, row.topLogprobs).map((id): [number, number] => [id, logprobOf(id)]);
  return { tokenId, logprob: logprobOf(tokenId), top };
}

/** Whether sampling this row is no more than the largest logit, the lower id of equals: greedy, nothing added, nothing reported. */
export function isPlainArgmax(row: SampleRow): boolean {
  const { temperature, topLogprobs, biasIds, seenIds, repetitionPenalty, frequencyPenalty, presencePenalty } = row;
  const isPenalized = repetitionPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0;
  return (
    temperature <= 0 && topLogprobs === undefined && biasIds.length === 0 && (seenIds.length === 0 || !isPenalized)
  );
}

/**
 * Standard Gumbel noise of one (seed, position, token): `-ln(-ln(u))` with `u = (hash + 1/2) / 2^32`. A step that is run again, on whatever
 * host, sees the same noise.
 */
export function gumbelNoise(seed: number, position: number, tokenId: number): number {
  return gumbelOf(noiseKey(seed, position), tokenId);
}

/** For a given seed this is a bijection of the position, so no two positions of a sequence share their noise. */
export function noiseKey(seed: number, position: number): number {
  return mix32(mix32(seed ^ 0x51697265) ^ position);
}

function gumbelOf(key: number, tokenId: number): number {
  const uniform = (mix32(key ^ mix32(tokenId + 0x9e3779b9)) + 0.5) / 2 ** 32;
  return -Math.log(-Math.log(uniform));
}

/** MurmurHash3's 32-bit finalizer: a bijection in which every input bit reaches every output bit. */
function mix32(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function clean(logit: number | undefined): number {
  return logit === undefined || Number.isNaN(logit) ? Number.NEGATIVE_INFINITY : logit;
}

function chooseToken(logits: Float32Array, row: SampleRow): number {
  const adjusted = adjustLogits(logits, row);
  if (row.temperature <= 0) return argmax(adjusted);
  scale(adjusted, row.temperature);
  const kept = truncate(adjusted, row);
  const key = noiseKey(row.seed, row.position);
  return kept === undefined ? noisyArgmax(adjusted, key) : noisyArgmaxAmong(adjusted, key, kept);
}

/** Divides by the temperature, in place. */
function scale(logits: Float64Array, temperature: number): void {
  for (let id = 0; id < logits.length; id++) logits[id] = (logits[id] as number) / temperature;
}

/** No hash gives more noise: a logit this far below the best noisy one needs no logarithms. */
const GUMBEL_MAX = -Math.log(-Math.log((2 ** 32 - 0.5) / 2 ** 32));

/** The id with the largest logit + noise; 0 where no logit is finite. */
function noisyArgmax(logits: Float64Array, key: number): number {
  let best = 0;
  let bestValue = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] as number;
    if (logit + GUMBEL_MAX <= bestValue) continue;
    const value = logit + gumbelOf(key, id);
    if (value > bestValue) {
      best = id;
      bestValue = value;
    }
  }
  return best;
}

/** As {@link noisyArgmax} over some ids, in whatever order. */
function noisyArgmaxAmong(logits: Float64Array, key: number, ids: readonly number[]): number {
  let best = 0;
  let bestValue = Number.NEGATIVE_INFINITY;
  for (const id of ids) {
    const value = (logits[id] as number) + gumbelOf(key, id);
    if (value > bestValue || (value === bestValue && value > Number.NEGATIVE_INFINITY && id < best)) {
      best = id;
      bestValue = value;
    }
  }
  return best;
}

/** Bias and penalties in f64, NaN replaced by -Infinity. Ids beyond the vocabulary are ignored. */
function adjustLogits(logits: Float32Array, row: SampleRow): Float64Array {
  const adjusted = new Float64Array(logits.length);
  for (let id = 0; id < logits.length; id++) adjusted[id] = clean(logits[id]);
  row.biasIds.forEach((id, index) => {
    if (id < adjusted.length) adjusted[id] = (adjusted[id] as number) + (row.biasValues[index] as number);
  });
  row.seenIds.forEach((id, index) => {
    if (id >= adjusted.length) return;
    let logit = adjusted[id] as number;
    logit = logit > 0 ? logit / row.repetitionPenalty : logit * row.repetitionPenalty;
    const count = row.seenCounts[index] as number;
    adjusted[id] = logit - count * row.frequencyPenalty - (count > 0 ? row.presencePenalty : 0);
  });
  return adjusted;
}

function argmax(values: Float64Array): number {
  let best = 0;
  for (let id = 1; id < values.length; id++) {
    if ((values[id] as number) > (values[best] as number)) best = id;
  }
  return best;
}

/** The ids that top-k, top-p and min-p leave; undefined: all. */
function truncate(logits: Float64Array, row: SampleRow): number[] | undefined {
  let kept: number[] | undefined;
  if (row.topK > 0 && row.topK < logits.length) kept = bestIds(logits, row.topK);
  if (row.topP < 1) kept = nucleus(logits, row.topP, kept);
  if (row.minP > 0) {
    const threshold = (logits[argmax(logits)] as number) + Math.log(row.minP);
    const isLikely = (id: number): boolean => (logits[id] as number) >= threshold;
    kept = kept === undefined ? idsWhere(logits, (_, id) => isLikely(id)) : kept.filter(isLikely);
  }
  return kept;
}

/** Best first. `among` must be sorted best first; undefined: the whole vocabulary. */
function nucleus(logits: Float64Array, topP: number, among: number[] | undefined): number[] {
  const best = logits[among?.[0] ?? argmax(logits)] as number;
  if (best === Number.NEGATIVE_INFINITY) return among ?? [];
  const weight = (id: number): number => Math.exp((logits[id] as number) - best);
  let total = 0;
  if (among === undefined) for (let id = 0; id < logits.length; id++) total += weight(id);
  else for (const id of among) total += weight(id);
  // Sorting a whole vocabulary costs more than a small model's step; nearly always the mass lies in a short head.
  for (let depth = 4; ; depth *= 2) {
    const isHead = depth < 1000;
    const head =
      among ??
      sortedBestFirst(
        logits,
        idsWhere(logits, (logit) => !isHead || logit >= best - depth),
      );
    let mass = 0;
    for (let count = 0; count < head.length; count++) {
      mass += weight(head[count] as number);
      if (mass >= topP * total) return head.slice(0, count + 1);
    }
    if (among !== undefined || !isHead) return head;
  }
}

function idsWhere(logits: Float64Array, keep: (logit: number, id: number) => boolean): number[] {
  const ids: number[] = [];
  for (let id = 0; id < logits.length; id++) if (keep(logits[id] as number, id)) ids.push(id);
  return ids;
}

function sortedBestFirst(logits: ArrayLike<number>, ids: number[]): number[] {
  return ids.sort((a, b) => byLogit(logits, a, b));
}

function byLogit(logits: ArrayLike<number>, a: number, b: number): number {
  const [logitA, logitB] = [clean(logits[a]), clean(logits[b])];
  return logitA === logitB ? a - b : logitB > logitA ? 1 : -1;
}

/** The `count` best ids, best first, ties to the lower id: a bounded heap whose root is the worst id kept. */
function bestIds(logits: ArrayLike<number>, count: number): number[] {
  if (count === 0) return [];
  const heap: number[] = [];
  const worse = (a: number, b: number): boolean => byLogit(logits, a, b) > 0;
  for (let id = 0; id < logits.length; id++) {
    if (heap.length < count) {
      heap.push(id);
      siftUp(heap, worse);
    } else if (worse(heap[0] as number, id)) {
      heap[0] = id;
      siftDown(heap, worse);
    }
  }
  return sortedBestFirst(logits, heap);
}

function siftUp(heap: number[], worse: (a: number, b: number) => boolean): void {
  let child = heap.length - 1;
  while (child > 0) {
    const parent = (child - 1) >> 1;
    if (!worse(heap[child] as number, heap[parent] as number)) return;
    swap(heap, child, parent);
    child = parent;
  }
}

function siftDown(heap: number[], worse: (a: number, b: number) => boolean): void {
  let parent = 0;
  for (;;) {
    let worst = parent;
    for (const child of [2 * parent + 1, 2 * parent + 2]) {
      if (child < heap.length && worse(heap[child] as number, heap[worst] as number)) worst = child;
    }
    if (worst === parent) return;
    swap(heap, parent, worst);
    parent = worst;
  }
}

function swap(heap: number[], a: number, b: number): void {
  [heap[a], heap[b]] = [heap[b] as number, heap[a] as number];
}

/** ln(sum(exp(logits))) in f64, ids ascending. */
function logSumExp(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) max = Math.max(max, clean(logits[id]));
  if (max === Number.NEGATIVE_INFINITY) return 0;
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sum += Math.exp(clean(logits[id]) - max);
  return max + Math.log(sum);
}
