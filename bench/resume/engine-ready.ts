/** How long an engine's process takes from its start until it takes requests. */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { ENGINE_ENVIRONMENT, ENGINE_NODE_FLAGS } from "../../cli/engine-start.ts";

const READY_MS_MAX = 60_000;
const QUIRE = fileURLToPath(new URL("../../bin/quire.mjs", import.meta.url));

/**
 * Milliseconds from the start of `quire serve` to the line in which it says that it is ready, the disk being warm: the second of two starts.
 * @throws {Error} when it does not get ready.
 */
export async function engineReadyMs(modelFolder: string): Promise<number> {
  await startOnce(modelFolder);
  return await startOnce(modelFolder);
}

async function startOnce(modelFolder: string): Promise<number> {
  const startMs = performance.now();
  const flags = [`--model=${modelFolder}`, "--port=0", "--host=127.0.0.1", "--store=memory:"];
  const args = [...ENGINE_NODE_FLAGS, QUIRE, "serve", ...flags];
  const child = spawn(process.execPath, args, {
    stdio: ["ignore", "pipe", "ignore"],
    env: { ...ENGINE_ENVIRONMENT, ...process.env },
  });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  try {
    return await new Promise<number>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("the engine did not get ready in a minute")), READY_MS_MAX);
      let text = "";
      child.stdout.on("data", (data: Buffer) => {
        text += data.toString();
        if (!text.includes("is ready on")) return;
        clearTimeout(timer);
        resolve(performance.now() - startMs);
      });
      child.once("error", reject);
      child.once("close", (code) => reject(new Error(`the engine ended with ${code} before it was ready`)));
    });
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
}
