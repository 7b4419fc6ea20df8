/** Whether a model and its pool fit into a device, found out before anything is loaded. Pure arithmetic. */
import type { MatrixEncoding } from "../kernels/contract.ts";
import type { ModelConfig } from "../models/contract.ts";
import { activationBytes, weightBytes } from "../models/plan-memory.ts";
import { QuireError } from "../protocol/errors.ts";

/** Kept free for what a step allocates beside the planned buffers: tables, scores, checkpoints of missed layers. */
const SPARE_SHARE = 1 / 64;

/** What is to be held at once. */
export interface DeviceLoad {
  config: ModelConfig;
  weightEncoding: MatrixEncoding;
  /** Rows of a step, and how many of them are sampled. */
  rowsMax: number;
  sampledMax: number;
  /** Bytes of the planned pool, and of the smallest that would do. */
  poolBytes: number;
  poolBytesMin: number;
}

/** @throws {QuireError} `invalid_request`: one line that says what is too much and what would fit. */
export function assertFits(load: DeviceLoad, memoryBytesMax: number): void {
  const { config, weightEncoding, rowsMax, sampledMax, poolBytes, poolBytesMin } = load;
  const usable = Math.floor(memoryBytesMax * (1 - SPARE_SHARE));
  const weights = weightBytes(config, weightEncoding);
  const activations = activationBytes(config, rowsMax, sampledMax);
  if (weights + activations + poolBytes <= usable) return;
  const room = usable - weights - activations;
  const smaller = room + weights - weightBytes(config, "int8");
  const advice =
    room >= poolBytesMin
      ? `a pool of at most ${mebibytes(room)} would fit`
      : weightEncoding !== "int8" && smaller >= poolBytesMin
        ? `int8 weights and a pool of at most ${mebibytes(smaller)} would fit`
        : `this context needs a pool of ${mebibytes(poolBytesMin)}: take a shorter context or a smaller model`;
  throw new QuireError(
    "invalid_request",
    `${mebibytes(weights)} of ${weightEncoding} weights, ${mebibytes(activations)} for steps and a KV pool of ${mebibytes(poolBytes)} ` +
      `do not fit into the device's ${mebibytes(memoryBytesMax)}; ${advice}.`,
    { param: "pool_bytes" },
  );
}

/** Rounded down, so that what is advised does fit. */
function mebibytes(bytes: number): string {
  return `${(Math.floor((Math.max(0, bytes) / 2 ** 20) * 10) / 10).toFixed(1)} MiB`;
}
