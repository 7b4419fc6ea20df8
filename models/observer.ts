import type { Device, DeviceBuffer, StepRecorder } from "../kernels/contract.ts";
import type { ModelConfig } from "./contract.ts";

/**
 * What one step computed. `hidden`: layer l in `[0, layerCount)` is the input of layer l (0: the embeddings) for every row of the step;
 * `layerCount` is the final norm's output for the sampled rows. `logits`: raw, for the sampled rows; `layer` is `layerCount`.
 */
export interface Observation {
  stage: "hidden" | "logits";
  layer: number;
  rows: number;
  width: number;
  /** f32 `[rows, width]`; the callback may keep it. */
  values: Float32Array;
}

/** Called after each step, in the order of the computation. */
export type Observe = (observation: Observation) => void;

interface Pending extends Omit<Observation, "values"> {
  buffer: DeviceBuffer;
}

/** Copies what a step passes by into buffers of its own, since the runner's are overwritten within the step. */
export class Observer {
  readonly #device: Device;
  readonly #config: ModelConfig;
  readonly #observe: Observe;
  readonly #hidden: DeviceBuffer[];
  readonly #logits: DeviceBuffer;
  #pending: Pending[] = [];

  constructor(device: Device, config: ModelConfig, rows: { rowsMax: number; sampledMax: number }, observe: Observe) {
    this.#device = device;
    this.#config = config;
    this.#observe = observe;
    this.#hidden = Array.from({ length: config.layerCount + 1 }, (_, layer) =>
      device.buffer(`observed.${layer}`, rows.rowsMax * config.width * 4),
    );
    this.#logits = device.buffer("observed.logits", rows.sampledMax * config.vocabularySize * 4);
  }

  /** Records a copy of a layer's input. */
  hidden(recorder: StepRecorder, { layer, x, rows }: { layer: number; x: DeviceBuffer; rows: number }): void {
    const width = this.#config.width;
    this.#copy(recorder, x, { stage: "hidden", layer, rows, width, buffer: this.#hidden[layer]! });
  }

  /** Records a copy of the raw logits, before sampling may change them. */
  logits(recorder: StepRecorder, { x, rows }: { x: DeviceBuffer; rows: number }): void {
    const { layerCount, vocabularySize } = this.#config;
    this.#copy(recorder, x, { stage: "logits", layer: layerCount, rows, width: vocabularySize, buffer: this.#logits });
  }

  /** Reads the copies back and calls the observer. To be awaited after `submit`. */
  async deliver(): Promise<void> {
    for (const { buffer, ...observation } of this.#pending.splice(0)) {
      const bytes = await this.#device.read(buffer, 0, observation.rows * observation.width * 4);
      this.#observe({ ...observation, values: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4) });
    }
  }

  /** Forgets what was recorded and not delivered: the step failed. */
  reset(): void {
    this.#pending = [];
  }

  #copy(recorder: StepRecorder, x: DeviceBuffer, pending: Pending): void {
    recorder.copyRows({ out: pending.buffer, outRow: 0, x, xRow: 0, rows: pending.rows, width: pending.width });
    this.#pending.push(pending);
  }
}
