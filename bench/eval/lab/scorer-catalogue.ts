/** The scorers that `--ablation scores` compares, for heads of 64 channels and others that 16 divides. */

import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import {
  channelBasis,
  codebooks,
  evenSteps,
  fixedSteps,
  jointBasis,
  keyScorer,
  narrowed,
  principalBasis,
  rotatedBasis,
  signs,
  unitScores,
} from "./key-scorers.ts";
import { residualSignsScorer } from "./residual-scorer.ts";
import type { HeadSample, Scorer } from "./scorer.ts";
import { summaryScorer } from "./summary-scorers.ts";

const SEED = 1;
/** An f16 offset and an f16 step for each coordinate of a block, in bytes a token. */
const STEPS_BYTES = 4 / 64;
/** An 8-bit length for each token and an f32 scale for each page. */
const LENGTH_BYTES = 1 + 4 / PAGE_TOKENS;

/** Every scorer, fitted to a sample of the KV head that it is for. */
export function scorersFor(sample: HeadSample, headDim: number): Scorer[] {
  const summary = {
    spread: "extremes",
    partTokens: PAGE_TOKENS,
    bits: 8,
    radiusWeight: 0.5,
    combine: "softmax-sum",
  } as const;
  const pages = { unitTokens: PAGE_TOKENS };
  const stepped = (bits: number, width: number) => (width * bits) / 8 + width * STEPS_BYTES;
  const principal = principalBasis(sample, headDim, 16);
  const joint = jointBasis(sample, headDim, headDim);
  const [joint16, joint32] = [narrowed(joint, headDim, 16), narrowed(joint, headDim, 32)];
  const channels = (count: number) => channelBasis(sample, headDim, count);
  const booksOf = (parts: number, size: number, basis = joint) =>
    codebooks({ parts, size, basis, sample, headDim, seed: SEED });
  const signed = {
    basis: rotatedBasis(sample, headDim, SEED),
    code: signs(),
    bytesPerToken: headDim / 8 + LENGTH_BYTES,
  };
  const small = { basis: joint16, code: booksOf(8, 16, joint16), bytesPerToken: 4 };
  const middle = { basis: joint32, code: booksOf(16, 16, joint32), bytesPerToken: 8 };
  const large = { basis: joint, code: booksOf(4, 256), bytesPerToken: 4 };
  const scalar = { basis: joint16, code: fixedSteps(2, joint16, sample, headDim), bytesPerToken: 4 };
  const largeScorer = keyScorer({ name: "4 codes of 256", ...pages, ...large });
  const quest = summaryScorer({ ...summary, name: "quest", radiusWeight: 1, combine: "max" }, headDim);
  return [
    quest,
    summaryScorer({ ...summary, name: "quest+radius(0.5)+combine(sum)" }, headDim),
    summaryScorer({ ...summary, name: "mean-deviation", spread: "deviation" }, headDim),
    summaryScorer({ ...summary, name: "extremes of 8 tokens, 4 bits", partTokens: 8, bits: 4 }, headDim),
    summaryScorer(
      { ...summary, name: "means of 4 tokens, 4 bits", spread: "deviation", partTokens: 4, bits: 4, radiusWeight: 0 },
      headDim,
    ),
    keyScorer({
      name: "16 channels, 4 bits",
      ...pages,
      basis: channels(16),
      code: evenSteps(4),
      bytesPerToken: stepped(4, 16),
    }),
    keyScorer({
      name: "32 channels, 2 bits",
      ...pages,
      basis: channels(32),
      code: evenSteps(2),
      bytesPerToken: stepped(2, 32),
    }),
    keyScorer({
      name: "16 principal directions, 4 bits",
      ...pages,
      basis: principal,
      code: evenSteps(4),
      bytesPerToken: stepped(4, 16),
    }),
    keyScorer({ name: "signs, rotated", ...pages, ...signed }),
    residualSignsScorer(headDim),
    keyScorer({ name: "16 joint directions, 2 bits", ...pages, ...scalar }),
    keyScorer({ name: "8 codes of 16", ...pages, ...small }),
    keyScorer({ name: "8 codes of 16, the best token's", ...pages, ...small, worth: "best" }),
    largeScorer,
    keyScorer({ name: "16 codes of 16", ...pages, ...middle }),
    keyScorer({ name: "16 codes of 16, the best token's", ...pages, ...middle, worth: "best" }),
    { ...quest, name: "quest, then the keys of a quarter", exactShare: 0.25 },
    { ...largeScorer, name: "4 codes of 256, then the keys of a tenth", exactShare: 0.1 },
    keysThemselves("keys themselves, for nothing", PAGE_TOKENS),
    keyScorer({ name: "signs, rotated: tokens", unitTokens: 1, ...signed }),
    keyScorer({ name: "16 joint directions, 2 bits: tokens", unitTokens: 1, ...scalar }),
    keyScorer({ name: "8 codes of 16: tokens", unitTokens: 1, ...small }),
    keyScorer({ name: "4 codes of 256: tokens", unitTokens: 1, ...large }),
    keyScorer({ name: "16 codes of 16: tokens", unitTokens: 1, ...middle }),
    keysThemselves("keys themselves, for nothing: tokens", 1),
  ];
}

/** The bound: what the best choice of so many bytes would be. */
export function keysThemselves(name: string, unitTokens: number): Scorer {
  return {
    ...{ name, unitTokens, bytesPerToken: 0, combine: "softmax-sum" },
    index: (keys, headDim) => (query) => unitScores(keys, query, { headDim, unitTokens }),
  };
}
