/** Between the sampler on the device and a sequence's tokens. */
import type { Sample, SampleRow } from "../../kernels/contract.ts";
import type { SequenceResult } from "../../models/contract.ts";
import type { SamplingParams, TokenLogprob } from "../../protocol/generate.ts";
import type { Sequence } from "./sequence.ts";

const NONE = new Uint32Array(0);
/** Logits divided by less grow beyond the numbers that a device has (f32 on a GPU), and long before that no noise moves them. */
const TEMPERATURE_MIN = 1e-30;

/** What the device needs to sample the next token, or one `ahead` of it: noise depends on the seed and the token's position alone, so a step can be repeated. */
export function sampleParams(sequence: Sequence, ahead = 0): Omit<SampleRow, "row"> {
  const { sampling, topLogprobs } = sequence.request;
  const { seenIds, seenCounts } = seen(sequence);
  return {
    temperature: sampling.temperature < TEMPERATURE_MIN ? 0 : sampling.temperature,
    topK: sampling.topK,
    topP: sampling.topP,
    minP: sampling.minP,
    frequencyPenalty: sampling.frequencyPenalty,
    presencePenalty: sampling.presencePenalty,
    repetitionPenalty: sampling.repetitionPenalty,
    seenIds,
    seenCounts,
    biasIds: Uint32Array.from(sampling.logitBias, ([id]) => id),
    biasValues: Float32Array.from(sampling.logitBias, ([, value]) => value),
    seed: sampling.seed,
    position: sequence.tokenCount + ahead,
    ...(topLogprobs === undefined ? {} : { topLogprobs }),
  };
}

/** Tokens of prompt and reply with their counts in the reply; empty where no penalty asks for them. */
function seen(sequence: Sequence): { seenIds: Uint32Array; seenCounts: Uint32Array } {
  if (!hasPenalties(sequence.request.sampling)) return { seenIds: NONE, seenCounts: NONE };
  const counts = new Map<number, number>();
  for (const [position, id] of sequence.ids.entries()) {
    counts.set(id, (counts.get(id) ?? 0) + (position >= sequence.replyStart ? 1 : 0));
  }
  return { seenIds: Uint32Array.from(counts.keys()), seenCounts: Uint32Array.from(counts.values()) };
}

/** Whether tokens that the text has already are penalized: then each sample depends on every token before it by more than its KV. */
export function hasPenalties({ frequencyPenalty, presencePenalty, repetitionPenalty }: SamplingParams): boolean {
  return frequencyPenalty !== 0 || presencePenalty !== 0 || repetitionPenalty !== 1;
}

/** All samples of a step's slice, in the order of their rows. */
export function samplesOf({ draftSamples = [], sample }: SequenceResult): Sample[] {
  return sample === undefined ? [] : [...draftSamples, sample];
}

/** Appends a sampled token, reports it, and decides whether the turn ends with it. */
export function takeSample(sequence: Sequence, sample: Sample, nowMs: number): void {
  const { request, usage } = sequence;
  if (!sequence.started) {
    sequence.started = true;
    usage.firstTokenMs = nowMs - sequence.queuedAtMs;
  }
  sequence.accept(sample.tokenId);
  usage.completionTokens = sequence.generatedCount;
  if (request.stopTokens.includes(sample.tokenId)) sequence.finishReason = "stop";
  else if (sequence.generatedCount >= request.maxTokens) sequence.finishReason = "length";
  sequence.sink.token(sample.tokenId, logprobOf(sample));
}

function logprobOf(sample: Sample): TokenLogprob | undefined {
  return sample.logprob === undefined ? undefined : { logprob: sample.logprob, top: sample.top ?? [] };
}
