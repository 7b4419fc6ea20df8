/**
 * The classifier in workerd. onnxruntime-web knows browsers, which fetch and compile their module; workerd gives it compiled and lets nobody
 * compile. So `WebAssembly.instantiate` stands for an instance of that module while onnxruntime starts, and no longer.
 */

import runtime from "onnxruntime-web/ort-wasm-simd-threaded.wasm";
import { InferenceSession, env as ortEnv, Tensor } from "onnxruntime-web/wasm";
import { assert } from "../../protocol/assert.ts";
import settings from "./classifier.json";
import model from "./classifier.onnx";
import type { RouterAnswer } from "./contract.ts";
import { bestChoice, expectedBytes } from "./decide.ts";
import { charsOf, FEATURE_COUNT } from "./features.ts";

/** Starts the runtime and reads the model: nothing but microtasks, so that a Worker can do it while it starts. */
export async function openClassifier(): Promise<Classifier> {
  ortEnv.wasm.numThreads = 1;
  // Not what is instantiated: onnxruntime does not ask for a file when it has bytes.
  ortEnv.wasm.wasmBinary = new Uint8Array(1);
  const { instantiate } = WebAssembly;
  const given = (_: unknown, imports: WebAssembly.Imports) =>
    Promise.resolve({ module: runtime, instance: new WebAssembly.Instance(runtime, imports) });
  WebAssembly.instantiate = given as unknown as typeof instantiate;
  try {
    return new Classifier(await InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] }));
  } finally {
    WebAssembly.instantiate = instantiate;
  }
}

/** Chances of the choices, and the choice that is made by them. */
export class Classifier {
  readonly #session: InferenceSession;

  constructor(session: InferenceSession) {
    this.#session = session;
  }

  /** Chance of each choice to keep the answer, f32 `[choices]`. @throws {AssertionError} for features of another number, or a model that answers no numbers. */
  async chances(features: Float32Array): Promise<Float32Array> {
    assert(features instanceof Float32Array && features.length === FEATURE_COUNT, "features of another version");
    const { kept } = await this.#session.run({ features: new Tensor("float32", features, [1, FEATURE_COUNT]) });
    const chances = kept?.data;
    assert(chances instanceof Float32Array && chances.length === settings.choices.length, "a chance for each choice");
    assert(chances.every(Number.isFinite), "chances are numbers");
    return chances;
  }

  /** The choice that is worth most at the price that was set in training. */
  async choose(features: Float32Array): Promise<RouterAnswer> {
    const { choices, price, model: name } = settings;
    const chances = await this.chances(features);
    const choice = choices[bestChoice(chances, expectedBytes(choices, charsOf(features)), price)];
    assert(choice !== undefined, "a choice is one of them");
    return { model: name, policy: choice.policy, budgetTokens: choice.budgetTokens };
  }
}
