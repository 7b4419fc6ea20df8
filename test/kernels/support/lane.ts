/** What every part of the conformance suite is given: the device under test, the reference, and how far they may differ. */
import type { Device } from "../../../kernels/contract.ts";

/** How far a device may be from the reference and from f64; 0 demands equality. */
export interface Tolerances {
  /** f32 products, relative to the sum of |x||w|. */
  matmul: number;
  /** int8 products, which the contract defines to the bit: relative to the sum of |x||w|. */
  matmulInt8: number;
  /** rmsNorm and siluMul, relative to the element. */
  elementwise: number;
  /** RoPE and mean-and-deviation summaries, relative to the largest element of the row or block. */
  rotation: number;
  /** Attention, relative to the largest |value| of the sequence. */
  attention: number;
  /**
   * The same where blocks are sealed in int8: a device may round scaled queries and weights to 16 bits, which is 1/258 of what the 8 bits of
   * keys and values are rounded by.
   */
  attentionInt8: number;
  /** Selection scores closer than this, relative to the largest, may be ranked either way. */
  score: number;
  /** Logprobs, absolute. */
  logprob: number;
}

/** What rounding alone explains on a device that computes in f32. */
export const F32_TOLERANCES: Tolerances = {
  matmul: 1e-6,
  matmulInt8: 1e-6,
  elementwise: 3e-6,
  rotation: 1e-6,
  attention: 5e-6,
  attentionInt8: 5e-6,
  score: 1e-5,
  logprob: 1e-4,
};

/** For a device that takes int8 blocks in integers (kernels/wasm/assembly/attend-int8.ts); 2.7e-5 is the most that was seen. */
export const INTEGER_ATTENTION_TOLERANCES: Tolerances = { ...F32_TOLERANCES, attentionInt8: 5e-5 };

/** One device's run of the suite. */
export interface Lane {
  /** Open while tests run. */
  device(): Device;
  reference(): Device;
  tolerances: Tolerances;
}
