/** Preloaded into an engine's process (`node --import`): for three seconds after SIGUSR2 its store answers late, and one call in six fails. */
import { setTimeout as sleep } from "node:timers/promises";
import { isMainThread } from "node:worker_threads";
import { StoreError } from "../../../storage/contract.ts";
import { FsStore } from "../../../storage/fs-store.ts";

const disturbedMs = 3_000;
const delayMsMax = 400;

if (isMainThread && process.argv.includes("serve")) {
  let untilMs = 0;
  let callCount = 0;
  process.on("SIGUSR2", () => {
    untilMs = performance.now() + disturbedMs;
  });
  const disturb = async (): Promise<void> => {
    if (performance.now() > untilMs) return;
    callCount += 1;
    await sleep((callCount * 97) % delayMsMax);
    if (callCount % 6 === 0) throw new StoreError("unavailable", "planted");
  };
  const { get, put, delete: remove } = FsStore.prototype;
  FsStore.prototype.get = async function (...args) {
    await disturb();
    return await get.apply(this, args);
  };
  FsStore.prototype.put = async function (...args) {
    await disturb();
    return await put.apply(this, args);
  };
  FsStore.prototype.delete = async function (...args) {
    await disturb();
    return await remove.apply(this, args);
  };
}
