/** Lets the instrument look into the steps of a model: the queries and outputs of every layer's attention, and the logits. */
import type { Device, DeviceBuffer, StepRecorder } from "../../kernels/contract.ts";
import type { ModelConfig } from "../../models/contract.ts";
import type { Observation } from "../../models/observer.ts";

type Args<Op extends "select" | "attend"> = Parameters<StepRecorder[Op]>[0];

/** Copies of what the last step of one row computed, while `isOn`. */
export class Capture {
  isOn = false;
  /** One per layer: f32 `[headCount, headDim]`, post-RoPE. */
  readonly queries: readonly DeviceBuffer[];
  /** As `queries`: what attention gave. */
  readonly outputs: readonly DeviceBuffer[];
  readonly #width: number;
  #logits: Float32Array = new Float32Array(0);

  constructor(device: Device, shape: Pick<ModelConfig, "layerCount" | "headCount" | "headDim">) {
    const { layerCount, headCount, headDim } = shape;
    this.#width = headCount * headDim;
    const buffers = (name: string) =>
      Array.from({ length: layerCount }, (_, layer) => device.buffer(`eval.${name}.${layer}`, this.#width * 4));
    this.queries = buffers("queries");
    this.outputs = buffers("outputs");
  }

  /** Raw logits of the last sampled row. */
  get logits(): Float32Array {
    return this.#logits;
  }

  /** The runner's observer. */
  readonly observe = ({ stage, values }: Observation): void => {
    if (stage === "logits") this.#logits = values;
  };

  /** The device as the model is to see it: steps that it begins are looked into. Everything else is the device's own. */
  wrap(device: Device): Device {
    return intercept(device, {
      begin: (slices: Parameters<Device["begin"]>[0]) => this.#wrapRecorder(device.begin(slices)),
    });
  }

  #wrapRecorder(recorder: StepRecorder): StepRecorder {
    return intercept(recorder, {
      select: (args: Args<"select">) => {
        recorder.select(args);
        if (this.isOn) this.#copy(recorder, this.queries[args.layer] as DeviceBuffer, args.q);
      },
      attend: (args: Args<"attend">) => {
        recorder.attend(args);
        if (this.isOn) this.#copy(recorder, this.outputs[args.layer] as DeviceBuffer, args.out);
      },
    });
  }

  #copy(recorder: StepRecorder, out: DeviceBuffer, x: DeviceBuffer): void {
    recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: this.#width });
  }
}

/** `target` with some methods replaced; it must outlive what is returned. */
export function intercept<T extends object>(target: T, methods: Partial<T>): T {
  return new Proxy(target, {
    get(_, name) {
      if (Object.hasOwn(methods, name)) return methods[name as keyof T];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
