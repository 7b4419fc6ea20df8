import type { Device, DeviceBuffer } from "../kernels/contract.ts";
import type { ModelConfig } from "./contract.ts";

/** The runner's working memory, allocated once; f32 `[rows, width]` each, slices' rows in order. */
export interface Activations {
  /** Residual stream: the input of the current layer. */
  readonly x: DeviceBuffer;
  readonly normed: DeviceBuffer;
  readonly query: DeviceBuffer;
  readonly key: DeviceBuffer;
  readonly value: DeviceBuffer;
  readonly attended: DeviceBuffer;
  readonly gate: DeviceBuffer;
  readonly up: DeviceBuffer;
  /** The rest hold only the rows that are sampled: after its attention the last layer needs no others. */
  readonly sampledX: DeviceBuffer;
  readonly sampledAttended: DeviceBuffer;
  readonly logits: DeviceBuffer;
}

/** Allocates the buffers for steps of up to `rowsMax` rows of which `sampledMax` are sampled. */
export function allocateActivations(
  device: Device,
  config: ModelConfig,
  rows: { rowsMax: number; sampledMax: number },
): Activations {
  const buffer = (label: string, rowCount: number, width: number) => device.buffer(label, rowCount * width * 4);
  const { rowsMax, sampledMax } = rows;
  const queryWidth = config.headCount * config.headDim;
  const keyWidth = config.kvHeadCount * config.headDim;
  return {
    x: buffer("x", rowsMax, config.width),
    normed: buffer("normed", rowsMax, config.width),
    query: buffer("query", rowsMax, queryWidth),
    key: buffer("key", rowsMax, keyWidth),
    value: buffer("value", rowsMax, keyWidth),
    attended: buffer("attended", rowsMax, queryWidth),
    gate: buffer("gate", rowsMax, config.ffnWidth),
    up: buffer("up", rowsMax, config.ffnWidth),
    sampledX: buffer("sampled.x", sampledMax, config.width),
    sampledAttended: buffer("sampled.attended", sampledMax, queryWidth),
    logits: buffer("logits", sampledMax, config.vocabularySize),
  };
}
