/** Preloaded into an engine's process (`node --import`): from SIGUSR2 on its device is gone, as a GPU is after a reset of its driver. */
import { isMainThread } from "node:worker_threads";
import { DeviceLostError } from "../../../kernels/device-lost.ts";
import { LlamaRunner } from "../../../models/llama.ts";

if (isMainThread && process.argv.includes("serve")) {
  let isLost = false;
  process.on("SIGUSR2", () => {
    isLost = true;
  });
  const { step } = LlamaRunner.prototype;
  LlamaRunner.prototype.step = async function (sequences) {
    if (isLost) throw new DeviceLostError("the GPU was lost: planted");
    return await step.call(this, sequences);
  };
}
