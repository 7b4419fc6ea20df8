/** Garbage collection on demand in another process, over its V8's inspector (Chrome DevTools Protocol): Node and workerd have it alike. */

/** Collecting a heap of the platform's 128 MiB takes under a second; a process that is busy or stopped answers later, or never. */
const ANSWER_MS_MAX = 10_000;

/** Calls a method; resolves to what its answer says. @throws {Error} for an answer that is an error */
export type InspectorCall = (method: string, params?: object) => Promise<Record<string, unknown>>;

/**
 * Has all garbage of the process collected. What its console has said goes, too: with an inspector V8 keeps the last 1,000 messages, with all that they name.
 * @param url of the inspector's web socket
 * @returns bytes of JavaScript's heap that are still used
 * @throws {Error} when nobody answers in time, or the process ends meanwhile
 */
export function collectGarbage(url: string): Promise<number> {
  return inspect(url, async (call) => {
    await call("Runtime.discardConsoleEntries");
    await call("HeapProfiler.collectGarbage");
    return Number((await call("Runtime.getHeapUsage")).usedSize);
  });
}

/**
 * Asks a process's V8.
 * @param url of the inspector's web socket
 * @param onEvent told of what comes without having been asked for
 * @throws {Error} when nobody answers in time, or the process ends meanwhile, and whatever `ask` throws
 */
export async function inspect<T>(
  url: string,
  ask: (call: InspectorCall) => Promise<T>,
  onEvent: (method: string, params: unknown) => void = () => undefined,
): Promise<T> {
  const socket = new WebSocket(url);
  const failed = Promise.withResolvers<never>();
  const fail = (why: string): void => failed.reject(new Error(`the inspector at ${url} ${why}`));
  // Whichever of them comes when nobody waits any more is not unhandled.
  failed.promise.catch(() => undefined);
  const timer = setTimeout(() => fail("does not answer"), ANSWER_MS_MAX);
  socket.addEventListener("error", () => fail("cannot be reached"));
  socket.addEventListener("close", () => fail("is gone"));
  socket.addEventListener("message", ({ data }) => {
    const { method, params } = JSON.parse(String(data)) as { method?: string; params?: unknown };
    if (method !== undefined) onEvent(method, params);
  });
  let id = 0;
  const send: InspectorCall = (method, params) => {
    id += 1;
    return Promise.race([call(socket, { id, method, params }), failed.promise]);
  };
  try {
    await Promise.race([opened(socket), failed.promise]);
    return await ask(send);
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}

function opened(socket: WebSocket): Promise<void> {
  return new Promise((resolve) => socket.addEventListener("open", () => resolve(), { once: true }));
}

/** Resolves to what the answer of this number says. */
function call(
  socket: WebSocket,
  { id, method, params = {} }: { id: number; method: string; params?: object | undefined },
): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    const listen = ({ data }: MessageEvent): void => {
      const answer = JSON.parse(String(data)) as { id?: number; result?: Record<string, unknown>; error?: unknown };
      if (answer.id !== id) return;
      socket.removeEventListener("message", listen);
      // Some answers have neither.
      if (answer.error === undefined) resolve(answer.result ?? {});
      else reject(new Error(`${method}: ${JSON.stringify(answer.error)}`));
    };
    socket.addEventListener("message", listen);
    socket.send(JSON.stringify({ id, method, params }));
  });
}
