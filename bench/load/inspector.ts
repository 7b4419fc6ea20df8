/** Garbage collection on demand in another process, over its V8's inspector (Chrome DevTools Protocol): Node and workerd have it alike. */

/** Collecting a heap of the platform's 128 MiB takes under a second; a process that is busy or stopped answers later, or never. */
const ANSWER_MS_MAX = 10_000;

/** Calls a method; resolves to what its answer says. @throws {Error} for an answer that is an error */
export type InspectorCall = (method: string, params?: object) => Promise<Record<string, unknown>>;

/** An event, which has a method, or an answer, which has the number of its call. */
interface InspectorMessage {
  id?: number;
  method?: string;
  params?: unknown;
  result?: Record<string, unknown>;
  error?: unknown;
}

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
  /** By the number of the call. */
  const calls = new Map<number, PromiseWithResolvers<Record<string, unknown>> & { method: string }>();
  socket.addEventListener("message", ({ data }) => {
    const { id, method, params, result, error } = JSON.parse(String(data)) as InspectorMessage;
    if (method !== undefined) onEvent(method, params);
    const call = id === undefined ? undefined : calls.get(id);
    // Some answers have neither.
    if (error === undefined) call?.resolve(result ?? {});
    else call?.reject(new Error(`${call.method}: ${JSON.stringify(error)}`));
  });
  const send: InspectorCall = (method, params = {}) => {
    const id = calls.size + 1;
    const call = { method, ...Promise.withResolvers<Record<string, unknown>>() };
    calls.set(id, call);
    socket.send(JSON.stringify({ id, method, params }));
    return Promise.race([call.promise, failed.promise]);
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
