/**
 * What a step costs on this machine, learnt from the steps themselves:
 *
 *   ms = fixed + perRow * rows + perSample * sampledRows + perAttended * attendedTokens / 1024
 *
 * A Kalman filter follows the four numbers: it starts ignorant, trusts a step less the longer it took (noise is relative), lets the
 * numbers drift (other work comes and goes on the machine), and takes at most a bounded correction from one step, so that one
 * step behind a garbage collection spoils nothing. Numerics of the model never depend on it.
 */

/** A step in the numbers that its time follows. */
export interface StepLoad {
  rows: number;
  /** Rows whose logits are wanted: the head is the widest matrix. */
  sampledRows: number;
  /** Summed over rows: tokens that attention reads for the row, in the context or of its selection, page scores included. */
  attendedTokens: number;
}

const FEATURE_COUNT = 4;
/** Milliseconds, in the order of the formula: wrong by far on every machine, and forgotten after a few steps. */
const PRIOR_MS = [1, 0.3, 0.3, 0.05];
const PRIOR_DEVIATION_MS = [10, 5, 5, 2];
/** Of a step's time, and at least: what the same step differs by from one time to the next. */
const NOISE_SHARE = 0.12;
const NOISE_MS_MIN = 0.15;
/** Of each number, per step. */
const DRIFT_SHARE = 0.01;
/** A step further off than so many deviations counts as one that is so far off. */
const SURPRISE_MAX = 3;

/** A prompt token attends to so many others. */
const TYPICAL_CONTEXT_TOKENS = 2048;

/** Predicts the time of steps. Pure arithmetic over what it was shown. */
export class CostModel {
  readonly #ms = Float64Array.from(PRIOR_MS);
  /** Covariance, row-major. */
  readonly #spread = new Float64Array(FEATURE_COUNT * FEATURE_COUNT);
  #observedCount = 0;

  constructor() {
    for (const [i, deviation] of PRIOR_DEVIATION_MS.entries()) this.#spread[i * FEATURE_COUNT + i] = deviation ** 2;
  }

  /** Steps it has learnt from. */
  get observedCount(): number {
    return this.#observedCount;
  }

  /** Milliseconds of a step without its rows. */
  get fixedMs(): number {
    return this.#ms[0]!;
  }

  /** Milliseconds that a step is expected to take; 0 for one without rows. */
  predictMs(load: StepLoad): number {
    return load.rows === 0 ? 0 : this.#dot(featuresOf(load));
  }

  /** Milliseconds that one more row adds to a step. */
  rowMs(attendedTokens: number): number {
    return this.#ms[1]! + (this.#ms[3]! * attendedTokens) / 1024;
  }

  /** What one more prompt token adds, where nobody says what is before it; undefined before any step has told. */
  get typicalRowMs(): number | undefined {
    return this.#observedCount === 0 ? undefined : this.rowMs(TYPICAL_CONTEXT_TOKENS);
  }

  /** Takes a measured step. */
  observe(load: StepLoad, ms: number): void {
    const features = featuresOf(load);
    this.#drift();
    const predicted = this.#dot(features);
    const noise = NOISE_MS_MIN + NOISE_SHARE * Math.max(predicted, ms);
    const spread = this.#spread;
    const seen = features.map((_, i) => features.reduce((sum, f, j) => sum + spread[i * FEATURE_COUNT + j]! * f, 0));
    const variance = features.reduce((sum, f, i) => sum + f * seen[i]!, noise ** 2);
    const bound = SURPRISE_MAX * Math.sqrt(variance);
    const surprise = Math.max(-bound, Math.min(bound, ms - predicted));
    for (let i = 0; i < FEATURE_COUNT; i++) {
      const gain = seen[i]! / variance;
      this.#ms[i] = Math.max(0, this.#ms[i]! + gain * surprise);
      for (let j = 0; j < FEATURE_COUNT; j++) spread[i * FEATURE_COUNT + j]! -= gain * seen[j]!;
    }
    this.#observedCount += 1;
  }

  /** What was learnt ages; what no step has told of for long is no less certain than in the beginning. */
  #drift(): void {
    for (let i = 0; i < FEATURE_COUNT; i++) {
      const at = i * FEATURE_COUNT + i;
      const drift = (DRIFT_SHARE * Math.max(this.#ms[i]!, PRIOR_MS[i]! / 10)) ** 2;
      this.#spread[at] = Math.min(PRIOR_DEVIATION_MS[i]! ** 2, this.#spread[at]! + drift);
    }
  }

  #dot(features: readonly number[]): number {
    return features.reduce((sum, feature, i) => sum + feature * this.#ms[i]!, 0);
  }
}

function featuresOf({ rows, sampledRows, attendedTokens }: StepLoad): number[] {
  return [1, rows, sampledRows, attendedTokens / 1024];
}
