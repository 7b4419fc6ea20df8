/** Garbage collection on demand in another process, over its V8's inspector (Chrome DevTools Protocol): Node and workerd have it alike. */

/** Collecting a heap of the platform's 128 MiB takes under a second; a process that is busy or stopped answers later, or never. */
const ANSWER_MS_MAX = 10_000;

/**
 * Has all garbage of the process collected.
 * @param url of the inspector's web socket
 * @returns bytes of JavaScript's heap that are still used
 * @throws {Error} when nobody answers in time, or the process ends meanwhile
 */
export async function collectGarbage(url: string): Promise<number> {
  const socket = new WebSocket(url);
  const failed = Promise.withResolvers<never>();
  const fail = (why: string): void => failed.reject(new Error(`the inspector at ${url} ${why}`));
  // Whichever of them comes when nobody waits any more is not unhandled.
  failed.promise.catch(() => undefined);
  const timer = setTimeout(() => fail("does not answer"), ANSWER_MS_MAX);
  socket.addEventListener("error", () => fail("cannot be reached"));
  socket.addEventListener("close", () => fail("is gone"));
  try {
    await Promise.race([opened(socket), failed.promise]);
    await Promise.race([call(socket, 1, "HeapProfiler.collectGarbage"), failed.promise]);
    const usage = await Promise.race([call(socket, 2, "Runtime.getHeapUsage"), failed.promise]);
    return Number(usage.usedSize);
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}

function opened(socket: WebSocket): Promise<void> {
  return new Promise((resolve) => socket.addEventListener("open", () => resolve(), { once: true }));
}

/** Resolves to what the answer of this number says. */
function call(socket: WebSocket, id: number, method: string): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    const listen = ({ data }: MessageEvent): void => {
      const answer = JSON.parse(String(data)) as { id?: number; result?: Record<string, unknown>; error?: unknown };
      if (answer.id !== id) return;
      socket.removeEventListener("message", listen);
      if (answer.result) resolve(answer.result);
      else reject(new Error(`${method}: ${JSON.stringify(answer.error)}`));
    };
    socket.addEventListener("message", listen);
    socket.send(JSON.stringify({ id, method }));
  });
}
