/** RoPE frequencies under each scaling, rounded to f32 where HF's `modeling_rope_utils` rounds. */
import type { ModelConfig, RopeScaling } from "./contract.ts";

const { fround } = Math;

/** Radians per position of each channel pair, and what cosines and sines are multiplied with. */
export interface RopeFrequencies {
  /** f32 `[headDim/2]`. */
  inverse: Float32Array;
  magnitude: number;
}

/** `1 / theta^(2i/headDim)`, then scaled as the configuration says. */
export function ropeFrequencies(config: Pick<ModelConfig, "headDim" | "ropeTheta" | "ropeScaling">): RopeFrequencies {
  const { headDim, ropeTheta: theta, ropeScaling: scaling } = config;
  const powers = Float32Array.from({ length: headDim / 2 }, (_, i) => theta ** fround((2 * i) / headDim));
  const plain = powers.map((power) => 1 / power);
  switch (scaling?.type) {
    case undefined:
      return { inverse: plain, magnitude: 1 };
    case "linear":
      return { inverse: plain.map((frequency) => frequency / scaling.factor), magnitude: 1 };
    case "factors":
      return { inverse: plain.map((frequency, i) => frequency / scaling.factors[i]!), magnitude: 1 };
    case "llama3":
      return { inverse: plain.map((frequency) => llama3(frequency, scaling)), magnitude: 1 };
    case "yarn":
      return { inverse: yarn(powers, scaling, { headDim, theta }), magnitude: scaling.attentionFactor };
  }
}

/** Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated. */
function llama3(frequency: number, scaling: Extract<RopeScaling, { type: "llama3" }>): number {
  const { factor, lowFreqFactor, highFreqFactor, originalContextTokens } = scaling;
  const wavelength = fround((2 * Math.PI) / frequency);
  if (wavelength > originalContextTokens / lowFreqFactor) return frequency / factor;
  if (wavelength < originalContextTokens / highFreqFactor) return frequency;
  const smooth = fround(
    fround(fround(originalContextTokens / wavelength) - lowFreqFactor) / (highFreqFactor - lowFreqFactor),
  );
  return fround(fround(fround(1 - smooth) * frequency) / factor) + fround(smooth * frequency);
}

/** YaRN (Peng et al. 2023): channels that turn often keep their frequency, those that hardly turn are interpolated, a ramp between. */
function yarn(
  powers: Float32Array,
  scaling: Extract<RopeScaling, { type: "yarn" }>,
  { headDim, theta }: { headDim: number; theta: number },
): Float32Array {
  const { factor, originalContextTokens, betaFast, betaSlow, truncate } = scaling;
  const channelOf = (turns: number) =>
    (headDim * Math.log(originalContextTokens / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const low = Math.max(truncate ? Math.floor(channelOf(betaFast)) : channelOf(betaFast), 0);
  const high = Math.min(truncate ? Math.ceil(channelOf(betaSlow)) : channelOf(betaSlow), headDim - 1);
  const span = low === high ? 0.001 : high - low;
  return powers.map((power, i) => {
    const ramp = Math.min(1, Math.max(0, fround(fround(i - low) / span)));
    const kept = fround(1 - ramp);
    const interpolated = fround(1 / fround(factor * power));
    return fround(interpolated * fround(1 - kept)) + fround(fround(1 / power) * kept);
  });
}
