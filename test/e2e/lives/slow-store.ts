/**
 * Preloaded into an engine's process (`node --import`). For three seconds after SIGUSR2 its store answers late, and one call in six fails; or, every other
 * time, one read in three gives a flipped bit or an early end, and its disk is full.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { isMainThread } from "node:worker_threads";
import { StoreError } from "../../../storage/contract.ts";
import { FsStore } from "../../../storage/fs-store.ts";

const disturbedMs = 3_000;
const delayMsMax = 400;

if (isMainThread && process.argv.includes("serve")) {
  let untilMs = 0;
  let callCount = 0;
  let signalCount = process.pid;
  process.on("SIGUSR2", () => {
    untilMs = performance.now() + disturbedMs;
    signalCount += 1;
  });
  const isRotten = (): boolean => performance.now() < untilMs && signalCount % 2 === 0;
  const disturb = async (): Promise<void> => {
    if (performance.now() > untilMs || isRotten()) return;
    callCount += 1;
    await sleep((callCount * 97) % delayMsMax);
    if (callCount % 6 === 0) throw new StoreError("unavailable", "planted");
  };
  const { get, put, delete: remove } = FsStore.prototype;
  FsStore.prototype.get = async function (...args) {
    await disturb();
    const found = await get.apply(this, args);
    callCount += 1;
    if (found === undefined || !isRotten() || callCount % 3 > 0) return found;
    return { ...found, bytes: spoilt(found.bytes, callCount) };
  };
  FsStore.prototype.put = async function (...args) {
    await disturb();
    if (isRotten()) throw new StoreError("unavailable", "planted: no space left on device");
    return await put.apply(this, args);
  };
  FsStore.prototype.delete = async function (...args) {
    await disturb();
    return await remove.apply(this, args);
  };
}

function spoilt(bytes: Uint8Array<ArrayBuffer>, seed: number): Uint8Array<ArrayBuffer> {
  const at = (seed * 7_919) % Math.max(1, bytes.length);
  if (seed % 2 === 0) return bytes.slice(0, at);
  bytes[at] = (bytes[at] ?? 0) ^ (1 << (seed % 8));
  return bytes;
}
